"""Ending a command beside a task, at the worst moments; no engine is needed."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from cube.adapters.docker_engine import exec as execs
from cube.adapters.docker_engine import session as sessions
from cube.adapters.docker_engine.exec import Prepared, kill_exec, kill_tree
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.sessions import ExecOrder


def alive(mark: str) -> list[int]:
    """Processes with the mark in their environment that have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CUBE_TEST_MARK") == mark:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def started(script: str) -> tuple[subprocess.Popen[bytes], str]:
    """A shell that runs it, once it has said something; and the mark of its processes."""
    mark = secrets.token_hex(8)
    environment = {**os.environ, "CUBE_TEST_MARK": mark}
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    return process, mark


def bury(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    process.stdout.close()
    process.wait()


def end_all(mark: str) -> None:
    for pid in alive(mark):
        os.kill(pid, 9)


@pytest.mark.parametrize("round_number", range(5))
def test_whoever_forks_while_it_is_killed_leaves_nobody_behind(round_number: int) -> None:
    script = "echo go; i=0; while [ $i -lt 400 ]; do sleep 1234 & i=$((i+1)); done; wait"
    process, mark = started(script)
    try:
        time.sleep(0.01 * round_number)  # at different points of it
        kill_tree(process.pid)
        bury(process)
        deadline = time.monotonic() + 30
        while alive(mark) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert alive(mark) == []
    finally:
        end_all(mark)


class FakeEngine:
    """Says what an engine says of a command, in turn; the last for ever."""

    def __init__(self, *told: dict[str, Any]) -> None:
        self.told = list(told)
        self.asked = 0
        self.commands: set[str] = set()

    async def call(self, function: Callable[[Any], Any], timeout_ms: int = 0) -> Any:
        self.asked += 1
        return function(self)

    def exec_inspect(self, exec_id: str) -> dict[str, Any]:
        return self.told.pop(0) if len(self.told) > 1 else self.told[0]


def seen(running: bool, pid: int, code: int | None = None) -> dict[str, Any]:
    return {"Running": running, "Pid": pid, "ExitCode": code}


async def killed(monkeypatch: pytest.MonkeyPatch, *told: dict[str, Any]) -> list[int]:
    """Which processes' trees were killed."""
    victims: list[int] = []
    monkeypatch.setattr(execs, "kill_tree", victims.append)
    monkeypatch.setattr(execs, "_is_in", lambda pid, container_id: pid > 1)
    monkeypatch.setattr(execs, "KILL_LOOK_S", 0.001)
    monkeypatch.setattr(execs, "KILL_S", 0.05)

    engine: Any = FakeEngine(*told)
    async with asyncio.timeout(60):
        await kill_exec(engine, Prepared("container", "exec"))
    return victims


@pytest.fixture
def command() -> Iterator[psutil.Process]:
    """Some process, which has the number that the engine tells."""
    process = subprocess.Popen(["sleep", "1238"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "before",
    [
        [],
        [seen(running=True, pid=0)],  # under way: no process yet
        [seen(running=False, pid=0), seen(running=True, pid=0)],  # asked for, and not begun
    ],
)
async def test_a_command_that_has_only_just_begun_is_killed(
    monkeypatch: pytest.MonkeyPatch, before: list[dict[str, Any]], command: psutil.Process
) -> None:
    pid = command.pid
    assert await killed(monkeypatch, *before, seen(running=True, pid=pid)) == [pid]


async def test_a_process_that_has_a_commands_number_after_it_is_not_touched(
    monkeypatch: pytest.MonkeyPatch, command: psutil.Process
) -> None:
    """The engine's word is older than what is there now; so it is asked again."""
    pid = command.pid
    ended, replaced = seen(running=False, pid=pid, code=0), seen(running=True, pid=pid + 1)
    for now in (ended, replaced):
        assert await killed(monkeypatch, seen(running=True, pid=pid), now) == []
    assert command.status() != psutil.STATUS_STOPPED


async def test_one_that_has_ended_or_never_begins_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await killed(monkeypatch, seen(running=False, pid=4242, code=0)) == []
    assert await killed(monkeypatch, seen(running=False, pid=0, code=126)) == []
    assert await killed(monkeypatch, seen(running=False, pid=0)) == []


class DeafWire:
    """An engine that takes the order to begin, and says nothing."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.is_closed = False

    async def ask(self, *_: object) -> None:
        self.asked.set()
        await asyncio.Event().wait()

    async def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("who", ["the client goes", "the engine is too late"])
async def test_a_session_that_nobody_waits_for_any_more_leaves_no_command(
    monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    wire, killed = DeafWire(), list[str]()

    async def connect(_: Any) -> DeafWire:
        return wire

    async def kill(_: Any, prepared: Prepared) -> None:
        killed.append(prepared.exec_id)

    async def call(_: Any) -> tuple[Prepared, str]:
        return Prepared("c1", "e1"), "1.41"

    monkeypatch.setattr(sessions, "connect", connect)
    monkeypatch.setattr(sessions, "kill_exec", kill)
    engine: Any = type("Engine", (), {"call": staticmethod(call), "commands": {"e1"}})
    marks: Any = None
    if who == "the engine is too late":
        monkeypatch.setattr(sessions, "ANSWER_S", 0.0)
        with pytest.raises(DriverFailed):
            await sessions.open_session(engine, marks, TaskId("t"), 1, ExecOrder(argv=("x",)))
    else:
        opening = asyncio.create_task(
            sessions.open_session(engine, marks, TaskId("t"), 1, ExecOrder(argv=("x",)))
        )
        await wire.asked.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    assert (wire.is_closed, killed, engine.commands) == (True, ["e1"], set())
