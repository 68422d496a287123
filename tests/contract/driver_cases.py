"""What is true of every driver: cube.ports.driver.Driver, sentence by sentence.

A driver joins by a test file of its own:

    class TestMyDriver(DriverContract):
        @pytest.fixture
        async def rig(self, tmp_path: Path) -> AsyncIterator[Rig]: ...

The rig knows how this driver's workloads are made to behave; the cases know nothing of any driver.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.launch import Launch, LogChunk, Observation, RunState
from cube.ports.driver import Driver
from cube.ports.kept import OutputKeeper

BOTH = ("stdout", "stderr")
NEVER_MS = 600_000  # a stop timeout that no test waits for: pytest's own deadline comes first


class Rig(Protocol):
    """One host with one node's driver on it. Everything it made is gone after the test."""

    driver: Driver  # the live one: open
    changes: list[Observation]  # all that any driver of this rig told on_change
    patience_s: float  # how long anything may take before a test gives up

    async def restart(self) -> Driver:
        """The agent was killed without warning and started again: `driver` is a new object over
        the same host, open; the old one does nothing any more, and was not closed."""
        ...

    async def kill_agent(self) -> None:
        """The first half of restart(): until restart() is called, nothing watches the tasks."""
        ...

    async def stranger(self) -> Driver:
        """An open driver of another node of another cluster, on this host."""
        ...

    def launch(self, task_id: TaskId, attempt: int = 1) -> Launch:
        """Marked with this rig's cluster and node. Runs for ever, ends by SIGTERM with any code."""
        ...

    def exits(self, launch: Launch, code: int) -> Launch:
        """Ends by itself at once with this code."""
        ...

    def prints(self, launch: Launch, stdout: str, stderr: str = "") -> Launch:
        """Writes these texts (with their newlines) to the two streams and ends with 0."""
        ...

    def prints_for_ever(self, launch: Launch, line: str) -> Launch:
        """Writes this line some times a second, and never ends."""
        ...

    def ignores_sigterm(self, launch: Launch) -> Launch:
        """Only KILL ends it. What it ignores, it ignores from its first output on: "ready\\n"."""
        ...

    def forks(self, launch: Launch) -> Launch:
        """Never ends; starts at least two more processes, one of them in a session of its own,
        and then writes "ready\\n"."""
        ...

    def cannot_start(self, launch: Launch) -> Launch:
        """Names a command that does not exist."""
        ...

    def argv_that_says(self, text: str, code: int) -> tuple[str, ...]:
        """For execute(): writes `text` to stdout and exits with `code`."""
        ...

    def argv_that_never_ends(self) -> tuple[str, ...]:
        """For execute()."""
        ...

    def argv_that_copies(self) -> tuple[str, ...]:
        """For open_exec(): writes what it reads to stdout, and exits with 0 at the end of it."""
        ...

    def argv_that_tells_its_size(self) -> tuple[str, ...]:
        """For open_exec(): writes "ROWS COLUMNS\n" of its terminal again and again."""
        ...

    def argv_that_pours(self) -> tuple[str, ...]:
        """For open_exec(): writes 64 MiB of the letter x to stdout, and exits with 0."""
        ...

    async def process_count(self, task_id: TaskId) -> int:
        """How many processes of this task live on the host, seen from outside the driver."""
        ...


def new_task_id() -> TaskId:
    return TaskId(secrets.token_hex(8))


async def until(condition: Callable[[], Awaitable[bool]], patience_s: float) -> None:
    """Waits for something to become true, and fails when it does not."""
    deadline = time.monotonic() + patience_s
    while not await condition():
        assert time.monotonic() < deadline, "gave up waiting"
        await asyncio.sleep(0.02)


async def ended(rig: Rig, task_id: TaskId, attempt: int = 1) -> Observation:
    """Waits until the attempt has ended by itself."""

    async def is_over() -> bool:
        return (await rig.driver.inspect(task_id, attempt)).state is RunState.EXITED

    await until(is_over, rig.patience_s)
    return await rig.driver.inspect(task_id, attempt)


async def read(
    rig: Rig,
    task_id: TaskId,
    streams: tuple[str, ...] = BOTH,
    tail: int | None = None,
    since_ms: int = 0,
) -> list[LogChunk]:
    return [
        chunk
        async for chunk in rig.driver.logs(
            task_id, streams=streams, tail=tail, since_ms=since_ms, follow=False
        )
    ]


def text(chunks: list[LogChunk], stream: str | None = None) -> str:
    return b"".join(c.data for c in chunks if stream in (None, c.stream)).decode()


async def wait_for_output(rig: Rig, task_id: TaskId, wanted: str) -> None:
    async def is_there() -> bool:
        return wanted in text(await read(rig, task_id))

    await until(is_there, rig.patience_s)


class DriverContract:
    """Inherit, and give the fixture `rig`."""

    # -- starting ---------------------------------------------------------------------------------

    async def test_a_healthy_driver_says_so_and_names_itself(self, rig: Rig) -> None:
        info = await rig.driver.fingerprint()
        assert info.healthy, info.reason
        assert info.name == rig.driver.name
        assert all(isinstance(value, str) for value in info.attributes.values())

    async def test_a_started_attempt_runs_and_is_found_again(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await rig.driver.prepare(launch)
        seen = await rig.driver.start(launch)
        assert seen.state is RunState.RUNNING
        assert (seen.task_id, seen.attempt) == (launch.task_id, 1)
        assert seen.handle
        assert seen.exit_code is None
        assert seen.started_at_ms > 0
        assert await rig.driver.inspect(launch.task_id, 1) == seen
        assert await rig.driver.recover() == [seen]

    async def test_preparing_twice_is_as_preparing_once(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await rig.driver.prepare(launch)
        await rig.driver.prepare(launch)
        assert (await rig.driver.inspect(launch.task_id, 1)).state is RunState.GONE

    async def test_starting_again_starts_nothing(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await rig.driver.prepare(launch)
        first = await rig.driver.start(launch)
        assert await rig.driver.start(launch) == first

    async def test_starting_twice_at_the_same_time_starts_one(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await rig.driver.prepare(launch)
        one, other = await asyncio.gather(rig.driver.start(launch), rig.driver.start(launch))
        assert one.handle == other.handle
        assert len(await rig.driver.recover()) == 1

    async def test_an_attempt_that_ended_is_not_run_again(self, rig: Rig) -> None:
        launch = rig.prints(rig.launch(new_task_id()), "once\n")
        await rig.driver.prepare(launch)
        await rig.driver.start(launch)
        first = await ended(rig, launch.task_id)
        assert await rig.driver.start(launch) == first
        assert text(await read(rig, launch.task_id)) == "once\n"

    async def test_a_command_that_does_not_exist_is_a_lasting_failure(self, rig: Rig) -> None:
        launch = rig.cannot_start(rig.launch(new_task_id()))
        with pytest.raises(DriverFailed) as failed:
            await self._prepare_and_start(rig, launch)
        assert failed.value.code == "command_not_found"
        assert not failed.value.transient
        assert failed.value.message
        with pytest.raises(DriverFailed):
            await self._prepare_and_start(rig, launch)
        assert (await rig.driver.inspect(launch.task_id, 1)).state is not RunState.RUNNING
        await rig.driver.stop(launch.task_id, 1, "SIGTERM", 0)
        await rig.driver.remove(launch.task_id, keep_logs=False)
        assert await rig.driver.recover() == []

    async def _prepare_and_start(self, rig: Rig, launch: Launch) -> Observation:
        await rig.driver.prepare(launch)
        return await rig.driver.start(launch)

    # -- ending -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("code", [0, 3, 255])
    async def test_an_exit_code_is_told_and_kept(self, rig: Rig, code: int) -> None:
        launch = rig.exits(rig.launch(new_task_id()), code)
        await self._prepare_and_start(rig, launch)
        seen = await ended(rig, launch.task_id)
        assert seen.exit_code == code
        assert not seen.oom_killed
        assert seen.finished_at_ms >= seen.started_at_ms > 0

        async def told() -> bool:
            return any(
                c.task_id == launch.task_id and c.state is RunState.EXITED for c in rig.changes
            )

        await until(told, rig.patience_s)

    async def test_what_nobody_knows_is_gone(self, rig: Rig) -> None:
        unknown = new_task_id()
        assert (await rig.driver.inspect(unknown, 1)).state is RunState.GONE
        assert (await rig.driver.stop(unknown, 1, "SIGTERM", 1000)).state is RunState.GONE
        await rig.driver.remove(unknown, keep_logs=False)
        await rig.driver.remove(unknown, keep_logs=True)
        assert await read(rig, unknown) == []
        following = rig.driver.logs(unknown, streams=BOTH, tail=None, since_ms=0, follow=True)
        assert [chunk async for chunk in following] == []
        with pytest.raises(DriverFailed):
            await rig.driver.execute(unknown, 1, rig.argv_that_says("x", 0), 1000)

    async def test_another_attempt_of_a_running_task_is_gone(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await self._prepare_and_start(rig, launch)
        assert (await rig.driver.inspect(launch.task_id, 2)).state is RunState.GONE
        assert (await rig.driver.stop(launch.task_id, 2, "SIGKILL", 0)).state is RunState.GONE
        assert (await rig.driver.inspect(launch.task_id, 1)).state is RunState.RUNNING

    async def test_the_signal_ends_it_long_before_the_timeout(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await self._prepare_and_start(rig, launch)
        seen = await rig.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS)
        assert seen.state is RunState.EXITED
        assert seen.exit_code is not None
        assert await rig.driver.inspect(launch.task_id, 1) == seen
        assert await rig.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS) == seen
        assert await rig.process_count(launch.task_id) == 0

    async def test_what_ignores_the_signal_is_killed_after_the_timeout(self, rig: Rig) -> None:
        launch = rig.ignores_sigterm(rig.launch(new_task_id()))
        await self._prepare_and_start(rig, launch)
        await wait_for_output(rig, launch.task_id, "ready\n")
        seen = await rig.driver.stop(launch.task_id, 1, "SIGTERM", 300)
        assert (seen.state, seen.exit_code) == (RunState.EXITED, 137)
        assert await rig.process_count(launch.task_id) == 0

    async def test_a_timeout_of_zero_kills_at_once(self, rig: Rig) -> None:
        launch = rig.ignores_sigterm(rig.launch(new_task_id()))
        await self._prepare_and_start(rig, launch)
        await wait_for_output(rig, launch.task_id, "ready\n")
        seen = await rig.driver.stop(launch.task_id, 1, "SIGTERM", 0)
        assert (seen.state, seen.exit_code) == (RunState.EXITED, 137)

    async def test_two_stops_at_once_agree(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await self._prepare_and_start(rig, launch)
        one, other = await asyncio.gather(
            rig.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS),
            rig.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS),
        )
        assert one == other
        assert one.state is RunState.EXITED

    async def test_stopping_ends_all_that_it_started(self, rig: Rig) -> None:
        launch = rig.forks(rig.launch(new_task_id()))
        await self._prepare_and_start(rig, launch)
        await wait_for_output(rig, launch.task_id, "ready\n")

        async def are_all_there() -> bool:
            return await rig.process_count(launch.task_id) >= 3

        await until(are_all_there, rig.patience_s)
        seen = await rig.driver.stop(launch.task_id, 1, "SIGTERM", 2000)
        assert seen.state is RunState.EXITED
        assert await rig.process_count(launch.task_id) == 0

    # -- removing ---------------------------------------------------------------------------------

    async def test_a_running_task_is_not_removed(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        seen = await self._prepare_and_start(rig, launch)
        with pytest.raises(DriverFailed) as failed:
            await rig.driver.remove(launch.task_id, keep_logs=True)
        assert failed.value.code == "still_running"
        assert await rig.driver.inspect(launch.task_id, 1) == seen

    async def test_removed_leaves_its_output_and_then_nothing(self, rig: Rig) -> None:
        launch = rig.prints(rig.launch(new_task_id()), "kept\n")
        await self._prepare_and_start(rig, launch)
        await ended(rig, launch.task_id)
        for _ in range(2):
            await rig.driver.remove(launch.task_id, keep_logs=True)
            assert (await rig.driver.inspect(launch.task_id, 1)).state is RunState.GONE
            assert await rig.driver.recover() == []
            assert text(await read(rig, launch.task_id)) == "kept\n"
            if isinstance(rig.driver, OutputKeeper):
                assert await rig.driver.kept() == [launch.task_id]
        for _ in range(2):
            await rig.driver.remove(launch.task_id, keep_logs=False)
            assert await read(rig, launch.task_id) == []
            if isinstance(rig.driver, OutputKeeper):
                assert await rig.driver.kept() == []

    async def test_the_output_of_an_attempt_that_is_there_is_not_all_that_is_kept(
        self, rig: Rig
    ) -> None:
        launch = rig.prints(rig.launch(new_task_id()), "said\n")
        await self._prepare_and_start(rig, launch)
        assert isinstance(rig.driver, OutputKeeper)
        assert await rig.driver.kept() == []
        await ended(rig, launch.task_id)
        assert await rig.driver.kept() == []

    # -- attempts ---------------------------------------------------------------------------------

    async def test_the_next_attempt_replaces_the_ended_one_and_keeps_its_output(
        self, rig: Rig
    ) -> None:
        task_id = new_task_id()
        await self._prepare_and_start(rig, rig.prints(rig.launch(task_id), "first\n"))
        await ended(rig, task_id)
        await self._prepare_and_start(rig, rig.prints(rig.launch(task_id, 2), "second\n"))
        await ended(rig, task_id, 2)
        assert (await rig.driver.inspect(task_id, 1)).state is RunState.GONE
        assert [o.attempt for o in await rig.driver.recover()] == [2]
        assert text(await read(rig, task_id)) == "first\nsecond\n"

    async def test_an_attempt_of_the_past_is_never_started(self, rig: Rig) -> None:
        task_id = new_task_id()
        await self._prepare_and_start(rig, rig.exits(rig.launch(task_id), 0))
        await ended(rig, task_id)
        await self._prepare_and_start(rig, rig.launch(task_id, 2))
        with pytest.raises(DriverFailed) as failed:
            await rig.driver.start(rig.launch(task_id, 1))
        assert failed.value.code == "attempt_superseded"
        assert not failed.value.transient
        assert [o.attempt for o in await rig.driver.recover()] == [2]

    # -- output -----------------------------------------------------------------------------------

    async def test_output_is_kept_by_stream(self, rig: Rig) -> None:
        launch = rig.prints(rig.launch(new_task_id()), "out 1\nout 2\n", "err 1\n")
        await self._prepare_and_start(rig, launch)
        await ended(rig, launch.task_id)
        chunks = await read(rig, launch.task_id)
        assert text(chunks, "stdout") == "out 1\nout 2\n"
        assert text(chunks, "stderr") == "err 1\n"
        assert text(await read(rig, launch.task_id, streams=("stderr",))) == "err 1\n"
        assert text(await read(rig, launch.task_id, streams=("stdout",))) == "out 1\nout 2\n"

    async def test_tail_is_the_last_lines(self, rig: Rig) -> None:
        lines = [f"line {number}\n" for number in range(100)]
        launch = rig.prints(rig.launch(new_task_id()), "".join(lines))
        await self._prepare_and_start(rig, launch)
        await ended(rig, launch.task_id)
        for tail in (0, 1, 7, 100, 1000):
            wanted = "".join(lines[len(lines) - min(tail, 100) :])
            assert text(await read(rig, launch.task_id, tail=tail)) == wanted, tail

    async def test_since_leaves_out_what_is_older(self, rig: Rig) -> None:
        launch = rig.prints(rig.launch(new_task_id()), "old\n")
        await self._prepare_and_start(rig, launch)
        seen = await ended(rig, launch.task_id)
        later_ms = seen.finished_at_ms + 60_000
        earlier_ms = seen.started_at_ms - 60_000
        assert await read(rig, launch.task_id, since_ms=later_ms) == []
        assert text(await read(rig, launch.task_id, since_ms=earlier_ms)) == "old\n"

    async def test_following_brings_what_comes_and_ends_with_the_task(self, rig: Rig) -> None:
        launch = rig.prints_for_ever(rig.launch(new_task_id()), "tick")
        await self._prepare_and_start(rig, launch)
        got = b""
        following = rig.driver.logs(
            launch.task_id, streams=BOTH, tail=None, since_ms=0, follow=True
        )
        stopping: asyncio.Task[Observation] | None = None
        async with asyncio.timeout(rig.patience_s):
            async for chunk in following:
                got += chunk.data
                if stopping is None and got.count(b"tick\n") >= 3:
                    stopping = asyncio.create_task(
                        rig.driver.stop(launch.task_id, 1, "SIGTERM", 2000)
                    )
        assert stopping is not None
        assert (await stopping).state is RunState.EXITED
        assert got.startswith(b"tick\ntick\ntick\n")

    async def test_a_follower_may_leave(self, rig: Rig) -> None:
        launch = rig.prints_for_ever(rig.launch(new_task_id()), "tick")
        await self._prepare_and_start(rig, launch)
        for _ in range(2):
            following = rig.driver.logs(
                launch.task_id, streams=BOTH, tail=0, since_ms=0, follow=True
            )
            async with asyncio.timeout(rig.patience_s):
                assert b"tick" in (await anext(following)).data
            await following.aclose()  # type: ignore[attr-defined]  # a generator has it; all ours are
        assert (await rig.driver.inspect(launch.task_id, 1)).state is RunState.RUNNING

    # -- commands beside the task -----------------------------------------------------------------

    async def test_a_command_beside_the_task_answers(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await self._prepare_and_start(rig, launch)
        result = await rig.driver.execute(launch.task_id, 1, rig.argv_that_says("hi", 3), 30_000)
        assert result.exit_code == 3
        assert result.output.strip() == b"hi"

    async def test_a_command_beside_the_task_is_killed_at_its_deadline(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await self._prepare_and_start(rig, launch)
        result = await rig.driver.execute(launch.task_id, 1, rig.argv_that_never_ends(), 300)
        assert result.exit_code is None
        assert (await rig.driver.inspect(launch.task_id, 1)).state is RunState.RUNNING

    async def test_no_command_runs_beside_an_ended_task(self, rig: Rig) -> None:
        launch = rig.exits(rig.launch(new_task_id()), 0)
        await self._prepare_and_start(rig, launch)
        await ended(rig, launch.task_id)
        with pytest.raises(DriverFailed) as failed:
            await rig.driver.execute(launch.task_id, 1, rig.argv_that_says("x", 0), 1000)
        assert failed.value.code == "not_running"

    async def test_what_runs_says_what_it_uses_and_what_does_not_is_refused(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await self._prepare_and_start(rig, launch)
        first = await rig.driver.stats(launch.task_id, 1)
        second = await rig.driver.stats(launch.task_id, 1)
        for stats in (first, second):
            assert stats.at_ms > 0 and stats.cpu_ms is not None and stats.cpu_ms >= 0
            assert stats.memory_bytes is not None and stats.memory_bytes > 0
            assert stats.pids is not None and stats.pids >= 1
        assert second.at_ms >= first.at_ms and (second.cpu_ms or 0) >= (first.cpu_ms or 0)
        await rig.driver.stop(launch.task_id, 1, "SIGKILL", 0)
        for attempt in (1, 2):
            with pytest.raises(DriverFailed) as failed:
                await rig.driver.stats(launch.task_id, attempt)
            assert failed.value.code == "not_running"

    async def test_a_signal_reaches_what_runs_and_nothing_else(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await self._prepare_and_start(rig, launch)
        with pytest.raises(DriverFailed) as failed:
            await rig.driver.signal(launch.task_id, 1, "SIGNONSENSE")
        assert failed.value.code == "bad_signal"
        assert (await rig.driver.inspect(launch.task_id, 1)).state is RunState.RUNNING
        await rig.driver.signal(launch.task_id, 1, "KILL")
        assert (await ended(rig, launch.task_id)).exit_code == 137
        for attempt in (1, 2):
            with pytest.raises(DriverFailed) as failed:
                await rig.driver.signal(launch.task_id, attempt, "SIGHUP")
            assert failed.value.code == "not_running"

    # -- the agent dies ---------------------------------------------------------------------------

    async def test_a_new_agent_finds_the_same_task(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        before = await self._prepare_and_start(rig, launch)
        driver = await rig.restart()
        assert await driver.recover() == [before]
        assert await driver.start(launch) == before
        result = await driver.execute(launch.task_id, 1, rig.argv_that_says("hi", 0), 30_000)
        assert (result.exit_code, result.output.strip()) == (0, b"hi")
        seen = await driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS)
        assert seen.state is RunState.EXITED

    async def test_a_new_agent_is_told_of_the_end(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        await self._prepare_and_start(rig, launch)
        await rig.restart()
        await rig.driver.recover()
        rig.changes.clear()
        await rig.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS)

        async def told() -> bool:
            return any(
                c.task_id == launch.task_id and c.state is RunState.EXITED for c in rig.changes
            )

        await until(told, rig.patience_s)

    async def test_an_end_while_no_agent_watched_is_known(self, rig: Rig) -> None:
        launch = rig.exits(rig.launch(new_task_id()), 7)
        await self._prepare_and_start(rig, launch)
        await rig.kill_agent()

        async def is_over() -> bool:
            return await rig.process_count(launch.task_id) == 0

        await until(is_over, rig.patience_s)
        driver = await rig.restart()
        await ended(rig, launch.task_id)  # an engine may take a moment to notice
        (seen,) = await driver.recover()
        assert (seen.state, seen.exit_code) == (RunState.EXITED, 7)
        assert await driver.start(launch) == seen

    async def test_closing_leaves_the_tasks_alone(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        before = await self._prepare_and_start(rig, launch)
        await rig.driver.close()
        await rig.restart()
        assert await rig.driver.inspect(launch.task_id, 1) == before

    async def test_another_node_of_this_host_sees_and_touches_nothing(self, rig: Rig) -> None:
        launch = rig.launch(new_task_id())
        before = await self._prepare_and_start(rig, launch)
        stranger = await rig.stranger()
        try:
            assert await stranger.recover() == []
            assert (await stranger.inspect(launch.task_id, 1)).state is RunState.GONE
            assert (await stranger.stop(launch.task_id, 1, "SIGKILL", 0)).state is RunState.GONE
            await stranger.remove(launch.task_id, keep_logs=False)
        finally:
            await stranger.close()
        assert await rig.driver.inspect(launch.task_id, 1) == before
