"""A cron job on real agents: a run by hand goes on over the leader's death, and is in the history once.

That due times survive leaders is in tests/unit/services/test_cron_leaders.py, where a minute costs nothing.
"""

from __future__ import annotations

import pytest

from tests.e2e.harness import Json, TestCluster, wait_for

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
