"""Commands beside tasks in the cluster's history: each of a few, the number of many, none of them in
the way of who runs it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec
import pytest

from cube.adapters.fake_driver import FakeDriver
from cube.adapters.fake_sessions import FakeSession
from cube.model import commands as c
from cube.model.commands import NoteExec
from cube.model.errors import DriverFailed, OutcomeUnknown, Unavailable
from cube.model.events import ExecEvent
from cube.model.ids import CommandId, NodeId, TaskId
from cube.model.outcome import Done
from cube.model.sessions import (
    PROGRAM_CHARS_MAX,
    ExecCaller,
    ExecOrder,
    FileOrder,
    is_one_line,
    program_of,
)
from cube.ports.cluster import Proposed
from cube.services import exec_audit
from cube.services.exec_audit import (
    NOTES_MAX,
    NOTES_OF_TASK_MAX,
    WAITING_MAX,
    WINDOW_MS,
    ExecAudit,
    ExecTally,
    Note,
)
from cube.services.local_tasks import DriverTasks
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import World, job_spec
from tests.unit.api.test_api_streams import eventually
from tests.unit.services.test_worker_loop import make_driver

ALICE = ExecCaller("token:0000000a", "operator", "alice", "10.0.0.9")
ORDER = ExecOrder(argv=("mysql", "-pSECRET"), tty=True)


def note_of(task: str, number: int = 0) -> Note:
    body = NoteExec(
        task_id=TaskId(task), task=task, job="j", node_id=NodeId("n"), attempt=1, program=f"p{number}"
    )  # fmt: skip
    return Note(body, "somebody")


def told(tally: ExecTally, task: str, count: int, now_ms: int) -> list[Note]:
    taken = [tally.take(note_of(task, n), now_ms, has_room=True) for n in range(count)]
    return [note for note in taken if note is not None]


def test_a_loop_is_told_a_few_times_and_then_as_a_number() -> None:
    tally = ExecTally()
    assert len(told(tally, "a", 1_000, 0)) == NOTES_OF_TASK_MAX
    assert len(told(tally, "b", 1, 0)) == 1
    assert tally.due(WINDOW_MS - 1) == []
    [number] = tally.due(WINDOW_MS)
    assert (number.actor, number.body.program, number.body.more) == (
        "", "", 1_000 - NOTES_OF_TASK_MAX,
    )  # fmt: skip
    assert tally.due(10 * WINDOW_MS) == []
    [again] = told(tally, "a", 1, 10 * WINDOW_MS)
    assert again.body.more == 0


def test_who_comes_again_tells_what_was_counted_before() -> None:
    tally = ExecTally()
    told(tally, "a", NOTES_OF_TASK_MAX + 3, 0)
    [note] = told(tally, "a", 1, WINDOW_MS)
    assert (note.body.program, note.body.more) == ("p0", 3)
    assert tally.due(2 * WINDOW_MS) == []


def test_a_loop_over_tasks_is_a_loop() -> None:
    tally = ExecTally()
    notes = [told(tally, f"t{n}", 1, 0) for n in range(exec_audit.TASKS_MAX + 5)]
    assert sum(map(len, notes)) == NOTES_MAX
    counted = exec_audit.TASKS_MAX - max(0, NOTES_MAX - 5)
    for minute in range(1, 3):  # numbers are notes, too: some now, some later
        numbers = tally.due(minute * WINDOW_MS)
        assert {note.body.more for note in numbers} == {1} and len(numbers) == NOTES_MAX
        assert tally.due(minute * WINDOW_MS + 1) == []
        counted -= NOTES_MAX
    rest = [tally.due(minute * WINDOW_MS) for minute in range(3, 100)]
    assert sum(map(len, rest)) == counted


class Log:
    """Proposals into a world, once there is a quorum."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.failures: list[Exception] = []
        self.has_quorum = asyncio.Event()
        self.ids: list[str] = []

    async def __call__(
        self, body: c.Body, *, actor: str = "", command_id: CommandId | None = None
    ) -> Proposed:
        await self.has_quorum.wait()
        assert command_id is not None
        self.ids.append(command_id)
        if self.failures:
            raise self.failures.pop()
        return Proposed(self.world.apply(body, actor=actor), 1)


@contextlib.asynccontextmanager
async def audited(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[World, Log, ExecAudit, FakeClock]]:
    monkeypatch.setattr(exec_audit, "RETRY_S", 0.0)
    monkeypatch.setattr(exec_audit, "LOOK_S", 0.01)
    world, clock, numbers = World(), FakeClock(), iter(range(1_000))
    log, audit = Log(world), ExecAudit(clock, lambda: f"id-{next(numbers)}")
    running = asyncio.create_task(audit.run(log))
    yield world, log, audit, clock
    running.cancel()
    await asyncio.wait({running})


async def test_it_is_in_the_events_and_in_the_tasks_history(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with audited(monkeypatch) as (world, log, audit, _):
        [task] = world.running(job_spec())
        log.has_quorum.set()
        audit.note(task, ORDER, ALICE)
        await eventually(lambda: bool(world.state.tasks[task.id].execs))
        events = [e for p in world.published for e in p.events if isinstance(e, ExecEvent)]
        [event] = events
        assert (event.actor, event.role, event.name) == ("token:0000000a", "operator", "alice")
        assert (event.program, event.arguments, event.tty) == ("mysql", 1, True)
        assert event.message == (
            "token:0000000a (operator, alice) ran mysql with 1 argument on a terminal, from 10.0.0.9"
        )
        after = world.state.tasks[task.id]
        assert [entry.message for entry in after.execs] == [event.message]
        assert msgspec.structs.replace(after, execs=()) == task
        assert b"SECRET" not in msgspec.json.encode(events)


async def test_nobody_waits_for_a_quorum_and_it_is_told_later_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with audited(monkeypatch) as (world, log, audit, clock):
        [task] = world.running(job_spec())
        log.failures = [OutcomeUnknown("lost"), Unavailable("no leader")]
        for _ in range(3):
            audit.note(task, ORDER, ALICE)
        clock.advance(WINDOW_MS)
        log.has_quorum.set()
        await eventually(lambda: len(world.state.tasks[task.id].execs) == 3)
        assert len(set(log.ids)) == 3 and len(set(log.ids[:3])) == 1


async def test_what_may_have_run_is_told_and_what_was_refused_is_not() -> None:
    told: list[ExecCaller] = []
    world = World()
    [task] = world.running(job_spec())
    begun = asyncio.Event()

    class Driver(FakeDriver):
        async def open_exec(self, task_id: TaskId, attempt: int, order: ExecOrder) -> FakeSession:
            if order.argv[0] == "no":
                raise DriverFailed("not_running", "no", transient=False)
            begun.set()
            await asyncio.sleep(3600)
            raise AssertionError

    tasks = DriverTasks(
        {task.driver: make_driver(Driver)}, FakeClock(), lambda *said: told.append(said[2])
    )
    with pytest.raises(DriverFailed):
        async with tasks.exec(task, ExecOrder(argv=("no",)), ALICE):
            pass
    assert told == []

    async def hang() -> None:
        async with tasks.exec(task, ORDER, ALICE):
            pass

    hanging = asyncio.create_task(hang())
    await begun.wait()
    hanging.cancel()
    await asyncio.wait({hanging})
    assert told == [ALICE]


async def test_what_waits_is_bounded_and_said_when_it_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with audited(monkeypatch) as (world, _, audit, clock):
        [task] = world.running(job_spec())
        for _ in range(WAITING_MAX * 2):
            audit.note(task, ORDER, ALICE)
            clock.advance(WINDOW_MS)
        assert len(audit._waiting) <= WAITING_MAX + 1
        await asyncio.sleep(0)  # its loop has begun
    assert "exec_notes_untold" in caplog.text


def test_a_program_is_told_cut_and_clean() -> None:
    assert program_of(ExecOrder(argv=("\x1b[2J" + "x" * 200,))) == "?[2J" + "x" * 96


def test_files_are_not_taken_for_a_command_nor_a_command_for_files() -> None:
    """Which of the two it is, the driver decides: both are told, or `date` would copy /etc/shadow."""
    path = "/etc/shadow"
    for name, told in (
        ("date", "date (cube cp get /etc/shadow)"),
        ("x" * 300, "x" * 30 + " (cube "),
    ):
        order = ExecOrder(argv=(name,), files=FileOrder(action="get", path=path))
        assert program_of(order).startswith(told)
    order = ExecOrder(argv=("\n" * 300,), files=FileOrder(action="get", path="\x1b" * 300))
    assert is_one_line(program_of(order), PROGRAM_CHARS_MAX)


@pytest.mark.parametrize("changes", [
    {"program": "x" * 101}, {"program": "a\nb"}, {"name": "\x1b"}, {"remote": "x" * 251},
    {"arguments": -1}, {"more": 1 << 62},
])  # fmt: skip
def test_a_note_that_is_none_changes_nothing(changes: dict[str, object]) -> None:
    world = World()
    [task] = world.running(job_spec())
    body = NoteExec(task_id=task.id, task="t", job="j", node_id=NodeId("n"), attempt=1, program="p")
    assert world.apply(body) == Done()
    before = world.state.tasks
    assert world.apply(msgspec.structs.replace(body, **changes)) != Done()
    assert world.state.tasks == before


def test_notes_of_one_task_are_bounded_and_a_forgotten_one_has_its_event() -> None:
    world = World()
    [task] = world.running(job_spec())
    body = NoteExec(task_id=task.id, task="t", job="j", node_id=NodeId("n"), attempt=1, program="p")
    for number in range(20):
        assert world.apply(msgspec.structs.replace(body, arguments=number)) == Done()
    assert len(world.state.tasks[task.id].execs) == 8
    assert "with 19 arguments" in world.state.tasks[task.id].execs[-1].message
    assert world.state.tasks[task.id].history == task.history
    before = len(world.published)
    assert world.apply(msgspec.structs.replace(body, task_id=TaskId("gone"))) == Done()
    assert isinstance(world.published[before].events[0], ExecEvent)
