"""What is true of every driver's sessions: cube.ports.session.Session, sentence by sentence.

Inherited beside DriverContract (driver_cases.py), with the same fixture `rig`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from cube.model.errors import DriverFailed
from cube.model.launch import Launch, RunState
from cube.model.sessions import ExecOrder
from cube.ports.session import Session
from tests.contract.driver_cases import Rig, ended, new_task_id, until


async def prepare_and_start(rig: Rig, launch: Launch) -> None:
    await rig.driver.prepare(launch)
    await rig.driver.start(launch)


@contextlib.asynccontextmanager
async def session(rig: Rig, launch: Launch, order: ExecOrder) -> AsyncIterator[Session]:
    one = await rig.driver.open_exec(launch.task_id, launch.attempt, order)
    try:
        yield one
    finally:
        await one.close()


async def all_of(one: Session) -> tuple[str, str]:
    """Its output to the end: stdout, stderr."""
    pieces = [piece async for piece in one.output()]
    out, err = (
        b"".join(piece.data for piece in pieces if piece.stream == stream).decode()
        for stream in ("stdout", "stderr")
    )
    return out, err


class SessionContract:
    """Inherit, and give the fixture `rig`."""

    async def _running(self, rig: Rig) -> Launch:
        launch = rig.launch(new_task_id())
        await prepare_and_start(rig, launch)
        return launch

    async def test_a_session_gives_output_and_exit_code(self, rig: Rig) -> None:
        launch = await self._running(rig)
        order = ExecOrder(argv=rig.argv_that_says("hi", 3))
        async with session(rig, launch, order) as one:
            assert (await all_of(one)) == ("hi\n", "")
            assert await one.exit_code() == 3

    async def test_what_a_command_says_is_never_taken_for_the_engines_words(self, rig: Rig) -> None:
        launch = await self._running(rig)
        words = "OCI runtime exec failed: exec failed: so it says"
        async with session(rig, launch, ExecOrder(argv=rig.argv_that_says(words, 3))) as one:
            assert (await all_of(one)) == (f"{words}\n", "")
            assert await one.exit_code() == 3

    async def test_a_session_is_given_input_to_its_end(self, rig: Rig) -> None:
        launch = await self._running(rig)
        sent = b"0123456789abcdef" * 16_384  # more than any pipe holds
        async with session(rig, launch, ExecOrder(argv=rig.argv_that_copies())) as one:

            async def send() -> None:
                for start in range(0, len(sent), 8_192):
                    await one.write(sent[start : start + 8_192])
                await one.end_input()

            sending = asyncio.create_task(send())
            async with asyncio.timeout(rig.patience_s):
                assert (await all_of(one))[0] == sent.decode()
                await sending
            assert await one.exit_code() == 0
            await one.write(b"too late")  # is dropped

    async def test_a_session_on_a_terminal_is_told_its_size(self, rig: Rig) -> None:
        launch = await self._running(rig)
        order = ExecOrder(argv=rig.argv_that_tells_its_size(), tty=True, rows=33, columns=101)
        async with session(rig, launch, order) as one:
            seen = ""
            has_asked = False
            async with asyncio.timeout(rig.patience_s):
                async for piece in one.output():
                    assert piece.stream == "stdout"
                    seen += piece.data.decode().replace("\r", "")
                    if "33 101\n" in seen and not has_asked:
                        await one.resize(40, 90)
                        has_asked = True
                    if "40 90\n" in seen:
                        break

    async def test_a_command_that_is_not_there_is_127_and_a_sentence(self, rig: Rig) -> None:
        launch = await self._running(rig)
        for tty in (False, True):
            order = ExecOrder(argv=("/no/such/command",), tty=tty)
            async with session(rig, launch, order) as one:
                out, err = await all_of(one)
                assert "/no/such/command" in (out if tty else err)
                assert await one.exit_code() == 127

    async def test_a_session_ends_with_its_task(self, rig: Rig) -> None:
        launch = await self._running(rig)
        async with session(rig, launch, ExecOrder(argv=rig.argv_that_copies())) as one:
            await one.write(b"hi\n")
            async with asyncio.timeout(rig.patience_s):
                output = aiter(one.output())
                assert (await anext(output)).data == b"hi\n"
                await rig.driver.stop(launch.task_id, 1, "SIGKILL", 0)
                assert [piece async for piece in output] == []
                assert await one.exit_code() != 0
        assert await rig.process_count(launch.task_id) == 0

    async def test_a_session_that_has_hardly_begun_ends_with_its_task(self, rig: Rig) -> None:
        launch = await self._running(rig)
        async with session(rig, launch, ExecOrder(argv=rig.argv_that_never_ends())) as one:
            await rig.driver.stop(launch.task_id, 1, "SIGKILL", 0)
            async with asyncio.timeout(rig.patience_s):
                await all_of(one)
                assert await one.exit_code() != 0
        assert await rig.process_count(launch.task_id) == 0

    async def test_a_session_that_is_left_ends_and_the_task_goes_on(self, rig: Rig) -> None:
        launch = await self._running(rig)
        before = await rig.process_count(launch.task_id)

        async def alone() -> bool:
            return await rig.process_count(launch.task_id) == before

        for tty in (False, True):
            order = ExecOrder(argv=rig.argv_that_never_ends(), tty=tty)
            async with session(rig, launch, order) as one:
                pass
            await one.close()  # again: nothing
            await until(alone, rig.patience_s)  # an engine buries what was killed in its own time
        assert (await rig.driver.inspect(launch.task_id, 1)).state is RunState.RUNNING

    async def test_what_nobody_takes_makes_the_command_wait(self, rig: Rig) -> None:
        launch = await self._running(rig)
        async with session(rig, launch, ExecOrder(argv=rig.argv_that_pours())) as one:
            first = await anext(aiter(one.output()))
            assert 0 < len(first.data) <= 64 * 1024

    async def test_there_is_no_session_beside_an_ended_task(self, rig: Rig) -> None:
        launch = rig.exits(rig.launch(new_task_id()), 0)
        await prepare_and_start(rig, launch)
        await ended(rig, launch.task_id)
        with pytest.raises(DriverFailed) as failed:
            await rig.driver.open_exec(launch.task_id, 1, ExecOrder(argv=rig.argv_that_copies()))
        assert failed.value.code == "not_running"
