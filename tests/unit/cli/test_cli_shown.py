"""What people see while a job comes up, and printing that never fails because of where it goes."""

from __future__ import annotations

import os
import pty
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path

import msgspec
import pytest

from cube.agent.run import run as run_agent
from cube.cli import rollout
from cube.cli.exits import CommandError, report
from cube.cli.rollout import Watch, _Bars, _Lines, is_done, word_of
from cube.cli.run import _addresses
from cube.cli.why import print_explanations
from cube.client.errors import ApiProblem
from cube.model.views import (
    ExplanationView,
    GroupCounts,
    JobView,
    NodeReasons,
    ProblemView,
    ReasonView,
    TaskPortView,
    TaskView,
    WhyView,
)

ROOT = Path(__file__).resolve().parents[3]

TASK = TaskView(
    id="t0", name="j.g.0", job="j", group="g", slot=0, version=1, attempt=1, node_id="a",
    node_name="n1", state="running", desired="run", health=None, driver="process", image=None,
    handle="1", address="127.0.0.1", ports={}, restarts=0, exit_code=None, oom_killed=False,
    reason="", message="", created_at=None, started_at=None, finished_at=None, history=(),
)  # fmt: skip


def task(slot: int, state: str = "running", message: str = "", desired: str = "run") -> TaskView:
    return msgspec.structs.replace(
        TASK, id=f"t{slot}", name=f"j.g.{slot}", slot=slot, state=state, message=message,
        desired=desired, node_name="n1" if state != "pending" else None,
    )  # fmt: skip


def job(count: int) -> JobView:
    return JobView(
        name="j", type="service", version=1, status="running", spec={}, created_at=None,
        groups={"g": GroupCounts(count)}, modified_index=1,
    )  # fmt: skip


def test_addresses_are_of_what_is_to_stay(capsys: pytest.CaptureFixture[str]) -> None:
    """Right after a rollout its last old tasks still serve those who know them."""
    port = {"http": TaskPortView(host=20_000, target=80, protocol="tcp")}
    new = msgspec.structs.replace(task(0), ports=port)
    old = msgspec.structs.replace(
        task(0, desired="stop"), id="t1", ports={"http": TaskPortView(20_001, 80, "tcp")}
    )

    class Agent:
        def tasks(self, job: str) -> list[TaskView]:
            return [new, old]

    _addresses(Agent(), job(1))  # type: ignore[arg-type]
    assert capsys.readouterr().out == "  j.g.0  http://127.0.0.1:20000\n"


# Bars on a terminal


def drawn(tasks: Sequence[TaskView], columns: int, rows: int, monkeypatch: object) -> list[str]:
    """The lines that bars draw on a terminal of this size."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)  # type: ignore[attr-defined]
        _Bars().update(tasks)
        text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    return text.replace("\x1b[K", "").split("\r\n")[:-1]


@pytest.mark.parametrize("columns", [30, 80, 200])
def test_no_bar_is_wider_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [task(0), task(1, "pending", "3 tasks about to be placed: 3 nodes have room " * 5)]
    lines = drawn(tasks, columns, 24, monkeypatch)
    assert len(lines) == 3
    assert max(map(len, lines)) == columns - 1


def test_no_bar_scrolls_away(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn([task(slot) for slot in range(50)], 80, 10, monkeypatch)
    assert len(lines) < 10
    assert "50/50" in lines[-1]
    assert "not shown" in lines[-1]


# Lines without a terminal


def test_many_tasks_in_the_same_state_share_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines()
    lines.update([task(0), *(task(slot, "pending", "no room") for slot in range(1, 100))])
    lines.update([task(0), *(task(slot, "pending", "no room") for slot in range(1, 100))])
    told = capsys.readouterr().err.splitlines()
    assert told == ["  j.g.0  n1  healthy", "  j.g.1, j.g.2, … (99 tasks)  –  pending: no room"]


def test_a_few_tasks_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    _Lines().update([task(slot) for slot in range(3)])
    assert len(capsys.readouterr().err.splitlines()) == 3


# Done


def test_scaled_down_is_done_when_what_is_too_much_has_ended() -> None:
    wanted, surplus = task(0), task(1, desired="stop")
    assert word_of(wanted) == "healthy"
    assert not is_done(job(1), [wanted, surplus])
    assert is_done(job(1), [wanted, task(1, "completed", desired="stop")])
    assert not is_done(job(2), [wanted])


class Stopped:
    """A client of a job that someone stopped while another waits for it."""

    def job(self, _name: str) -> JobView:
        return msgspec.structs.replace(job(1), status="stopping")

    def tasks(self, _job: str) -> list[TaskView]:
        return [task(0, "stopping", desired="stop")]


def test_a_job_that_was_stopped_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match="j is stopped"):
        Watch(Stopped(), "j", 1, 5.0).until_done()  # type: ignore[arg-type]


class Placeless:
    """A client of a job that has no place from `since_s` to `until_s`, by the watch's own clock."""

    def __init__(self, clock: Clock, since_s: float, until_s: float) -> None:
        self._clock = clock
        self._since_s, self._until_s = since_s, until_s
        self.asked = 0

    def job(self, _name: str) -> JobView:
        return job(2)

    def tasks(self, _job: str) -> list[TaskView]:
        now_s = self._clock.monotonic()
        if now_s < self._since_s:
            return [task(0), task(1, "starting")]
        if now_s < self._until_s:
            return [task(0), msgspec.structs.replace(task(1, "pending"), node_id=None)]
        return [task(0), task(1)]

    def why(self, name: str) -> WhyView:
        self.asked += 1
        item = ExplanationView(
            job=name, group="g", slots=(1,), kind="unplaced", summary="1 task not placed",
            reasons=(), nodes=(), suggestions=("cube node uncordon n1",), since=None,
        )  # fmt: skip
        return WhyView(name, "degraded", (item,), 1)


class Clock:
    def __init__(self) -> None:
        self._now_s = 100.0

    def monotonic(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds


def watched(
    since_s: float, until_s: float, timeout_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Watch, Placeless]:
    clock = Clock()
    monkeypatch.setattr(rollout, "time", clock)
    client = Placeless(clock, 100 + since_s, 100 + until_s)
    return Watch(client, "j", 1, timeout_s), client  # type: ignore[arg-type]


def test_what_has_no_place_is_explained_once_and_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than anything that runs may take to become healthy: room may come at any time."""
    watch, client = watched(0, 3_000, None, monkeypatch)
    watch.until_done()
    told = capsys.readouterr().err
    assert client.asked == 1
    assert told.count("1 task of j cannot be placed yet") == 1
    assert "  try: cube node uncordon n1" in told


def test_a_moment_without_a_place_is_not_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rolling update has one between the old task's end and the new one's placing."""
    watch, client = watched(60, 64, None, monkeypatch)
    watch.until_done()
    assert client.asked == 0
    assert "cannot be placed" not in capsys.readouterr().err


def test_a_place_that_only_the_new_task_lacks_is_explained_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start-first: the old task runs on, and nothing that is listed lacks a place."""

    class OldStays(Placeless):
        def tasks(self, _job: str) -> list[TaskView]:
            return [msgspec.structs.replace(task(slot), version=0) for slot in (0, 1)]

    clock = Clock()
    monkeypatch.setattr(rollout, "time", clock)
    watch = Watch(OldStays(clock, 0, 0), "j", 1, 30.0)  # type: ignore[arg-type]
    with pytest.raises(CommandError, match="could not be placed in time") as caught:
        watch.until_done()
    assert caught.value.code == 3
    assert capsys.readouterr().err.count("1 task of j cannot be placed yet") == 1


@pytest.mark.parametrize("timeout_s", [1.0, 20.0, 1_000.0])
def test_a_timeout_without_a_place_is_exit_3_with_the_reasons(
    timeout_s: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, client = watched(0, 9_000, timeout_s, monkeypatch)
    with pytest.raises(CommandError, match="could not be placed in time") as caught:
        watch.until_done()
    assert caught.value.code == 3
    assert client.asked == 1
    assert "1 task not placed" in capsys.readouterr().err


# Why


def test_reasons_have_their_figures(capsys: pytest.CaptureFixture[str]) -> None:
    reason = ReasonView("cpu", "not enough cpu", "0.1", "0.067 free")
    item = ExplanationView(
        job="j", group="g", slots=(0,), kind="unplaced", summary="1 task not placed", reasons=(),
        nodes=(NodeReasons("a", "n1", (reason,)),), suggestions=(), since=None,
    )  # fmt: skip
    print_explanations([item], print)
    assert "not enough cpu (needs 0.1, 0.067 free)" in capsys.readouterr().out


# Errors


def problem(status: int, code: str, detail: str, hint: str = "") -> ApiProblem:
    view = ProblemView(
        type="about:blank", title="t", status=status, detail=detail, code=code, hint=hint
    )
    return ApiProblem(view)


def test_advice_is_in_words_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    code = report(problem(404, "not_found", "there is no job x", "GET /v1/jobs lists them"))
    assert code == 4
    assert capsys.readouterr().err == "error: there is no job x\n  try: cube job ls\n"


def test_what_is_no_agent_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(problem(404, "not_an_agent", "status 404: <html>")) == 7
    told = capsys.readouterr().err
    assert "no Cube agent" in told
    assert "<html>" not in told


# Where the output goes


def cube(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cube", *arguments]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, timeout=60, check=False, cwd=ROOT, text=True, stderr=subprocess.PIPE, **options
    )


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script], timeout=60, check=False, cwd=ROOT, text=True, capture_output=True,
        env={**os.environ, "CUBE": f"{sys.executable} -m cube", **environment},
    )  # fmt: skip


def test_help_without_a_command_is_help() -> None:
    bare, asked = cube(), cube("help", stdout=subprocess.PIPE)
    assert (bare.returncode, asked.returncode) == (2, 0)
    assert bare.stderr.startswith("Usage: cube")
    assert asked.stdout.startswith("Usage: cube")


def test_a_terminal_without_utf8_gets_question_marks() -> None:
    done = shell(
        "printf 'name = \"x–y\"' | $CUBE run -",
        LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="",
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_a_pipe_that_is_closed_early_is_no_failure() -> None:
    done = shell("$CUBE job init | true; echo ${PIPESTATUS[0]}")
    assert done.stdout.strip() == "0"
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told() -> None:
    done = shell("$CUBE job init > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_closed_streams_are_borne(closed: str) -> None:
    done = shell(f"$CUBE job validate - {closed} < /dev/null" if closed != "<&-" else
                 f"$CUBE job validate - {closed}")  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# The agent's ports


def test_taken_ports_are_told_together_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        ports = [each.getsockname()[1] for each in (one, two, free)]
        free.close()
        directory = tmp_path / "d"
        flags = {"insecure": True, "data_dir": str(directory)}
        flags |= dict(zip(("raft", "gossip", "http"), ports, strict=True))
        assert run_agent(None, flags) == 1
    told = capsys.readouterr().err
    assert f"127.0.0.1:{ports[0]}" in told
    assert f"127.0.0.1:{ports[1]}" in told
    assert f"127.0.0.1:{ports[2]}" not in told
    assert not directory.exists()


# Batch


class Batch:
    """A client of a batch job that runs for `lasts_s`, by the watch's own clock, and then is over."""

    def __init__(
        self, clock: Clock, lasts_s: float, ended: Sequence[TaskView], status: str
    ) -> None:
        self._clock = clock
        self._until_s = clock.monotonic() + lasts_s
        self._ended, self._status = ended, status

    @property
    def _is_over(self) -> bool:
        return self._clock.monotonic() >= self._until_s

    def job(self, _name: str) -> JobView:
        status = self._status if self._is_over else "running"
        return msgspec.structs.replace(job(2), type="batch", status=status)

    def tasks(self, _job: str) -> Sequence[TaskView]:
        return self._ended if self._is_over else [task(0), task(1)]


def test_a_batch_may_run_for_longer_than_a_service_may_come_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(rollout, "time", clock)
    client = Batch(clock, 3_000, [task(0, "completed"), task(1, "completed")], "completed")
    watch = Watch(client, "j", 1, None)  # type: ignore[arg-type]
    assert watch.until_done().status == "completed"


def test_a_batch_that_failed_names_the_tasks_and_their_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(rollout, "time", clock)
    failed = msgspec.structs.replace(task(1, "failed", "exited with code 3"), exit_code=3)
    stopped = msgspec.structs.replace(task(2, "failed", "gave up", desired="stop"), exit_code=4)
    client = Batch(clock, 1, [task(0, "completed"), failed, stopped], "failed")
    with pytest.raises(CommandError, match="j v1 failed") as raised:
        Watch(client, "j", 1, None).until_done()  # type: ignore[arg-type]
    assert raised.value.code == 1
    assert raised.value.why.splitlines() == [
        "j.g.1: failed, exited with code 3",
        "j.g.2: failed, gave up (exit code 4)",
    ]
