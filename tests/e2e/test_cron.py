"""A cron job on real agents: runs go on over the leader's death, and are in the history once.

Leaders that change at each moment around due times: tests/unit/services/test_cron_leaders.py.
"""

from __future__ import annotations

import datetime
import time

import pytest

from tests.e2e.harness import Json, TestCluster, wait_for
from tests.faults.clocks import Clock, build, why_no_clocks

pytestmark = pytest.mark.e2e

JOB = """
name = "nightly"
type = "cron"
cron = {{ schedule = "0 0 1 1 *", timezone = "Europe/Berlin" }}
[groups.report]
driver = "process"
command = ["sh", "-c", "echo began; while [ ! -e {flag} ]; do sleep 0.1; done; echo ended"]
placement.constraints = [{{ attribute = "node.name", operator = "!=", value = "{leader}" }}]
"""


def test_a_run_goes_on_when_the_leader_dies(cluster: TestCluster) -> None:
    cluster.form(3)
    victim = cluster.leader()
    at = next(node for node in cluster.nodes if node is not victim)
    flag = cluster.directory / "flag"
    text = JOB.format(flag=flag, leader=victim.name)
    done = cluster.cube("run", "-", stdin=text.encode(), at=at)
    assert "the next run of nightly is due in" in done.stderr
    assert cluster.cube_json("job", "trigger", "nightly", at=at)["run"] == 1
    [before] = cluster.serving("nightly", 1, at=at)
    refused = cluster.cube("job", "trigger", "nightly", at=at, code=5)
    assert "run 1 has not ended" in refused.stderr
    victim.kill()
    flag.touch()

    def runs() -> list[Json]:
        found: list[Json] = cluster.cube_json("job", "runs", "nightly", at=at)["items"]
        return found

    wait_for("the run has completed", lambda: runs()[0]["status"] == "completed")
    [run] = runs()
    assert (run["run"], run["trigger"], run["completed"], run["failed"]) == (1, "hand", 1, 0)
    assert cluster.cube_json("task", "show", before["id"], at=at)["restarts"] == 0
    assert "ended" in cluster.cube("logs", "nightly.report.0", at=at).stdout
    cluster.cube("job", "trigger", "nightly", at=at)
    wait_for("another run has completed", lambda: runs()[0]["status"] == "completed")
    assert [run["run"] for run in runs()] == [2, 1]
    told = cluster.cube("status", "nightly", at=at)
    assert "1 completed, 0 failed" in told.stdout
    cluster.cube("rm", "nightly", at=at)
    assert cluster.cube_json("job", "ls", at=at)["items"] == []


DUE = """
name = "minutely"
type = "cron"
cron = {{ schedule = "* * * * *", timezone = "UTC" }}
[groups.report]
driver = "process"
command = ["sh", "-c", "echo $CUBE_TASK_ID >> {witness}"]
"""
MINUTE_MS = 60_000
BEFORE_MS = 100  # so long before a run is due the leader dies: sooner than another can lead


def test_a_run_that_is_due_while_nobody_leads_begins_once(cluster: TestCluster) -> None:
    """The agents' wall clock is moved to shortly before the full minute, and on to the next one."""
    if why_no_clocks():
        pytest.skip(why_no_clocks())
    build(cluster.directory)
    clock = Clock(cluster.directory, "all")
    cluster.environment |= clock.environment
    cluster.form(3)
    witness = cluster.directory / "witness"
    error_ms = 0

    def move_to_before_the_minute() -> int:
        nonlocal error_ms
        now_ms = time.time_ns() // 1_000_000 + error_ms
        due_ms = (now_ms + BEFORE_MS) // MINUTE_MS * MINUTE_MS + MINUTE_MS
        error_ms += due_ms - BEFORE_MS - now_ms
        clock.step(error_ms)
        return due_ms

    cluster.cube("run", "-", stdin=DUE.format(witness=witness).encode())
    victim = cluster.leader()
    due = [move_to_before_the_minute()]
    victim.kill()
    at = cluster.running()[0]

    def ended(count: int) -> list[Json]:
        runs: list[Json] = at.get("/v1/jobs/minutely/runs")["items"]
        return runs if len([run for run in runs if run["status"] == "completed"]) == count else []

    wait_for("the run has completed", lambda: ended(1))
    assert cluster.leader() is not victim
    cluster.start(victim)
    wait_for("it is back", victim.is_ready)
    # The next one begins under a leader; whoever saw the first one has forgotten nothing of it.
    due.append(move_to_before_the_minute())
    runs = wait_for("the next run has completed", lambda: ended(2))
    assert [(run["run"], run["trigger"]) for run in runs] == [(2, "schedule"), (1, "schedule")]
    assert [told_ms(run["scheduled_at"]) for run in reversed(runs)] == due
    assert len(set(witness.read_text().split())) == len(witness.read_text().split()) == 2


def told_ms(rfc3339: str) -> int:
    return round(datetime.datetime.fromisoformat(rfc3339).timestamp() * 1000)
