"""A Docker Engine that hangs, dies, comes back, or was never there. On an engine of our own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cube.adapters.docker_driver import DockerDriver, DockerSettings
from cube.adapters.docker_engine.engine import STREAMS_MAX
from cube.adapters.system_clock import SystemClock
from cube.model.errors import DriverFailed
from cube.model.ids import ClusterId, NodeId
from cube.model.launch import Launch, Observation, RunState
from cube.ports.images import ImageStore
from tests.contract.docker_rig import OBEYS, WAITS, DockerRig, run, shell
from tests.contract.driver_cases import BOTH, new_task_id, read, text, until, wait_for_output
from tests.contract.private_engine import PrivateEngine, private_engine

# Short, so that a hang is found soon; a working engine answers in milliseconds.
CALL_MS, PING_MS = 3_000, 500
BOUND_S = 30.0  # what "bounded in time" means here, however loaded the machine is


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateEngine]:
    with private_engine() as engine:
        yield engine


@pytest.fixture
async def rig(engine: PrivateEngine) -> AsyncIterator[DockerRig]:
    settings = DockerSettings(
        host=engine.host, call_timeout_ms=CALL_MS, ping_timeout_ms=PING_MS, pool_size=4
    )
    rig = DockerRig(engine.host, settings)
    await rig.open()
    yield rig
    await rig.close()


async def until_healthy(rig: DockerRig) -> None:
    async def is_healthy() -> bool:
        return (await rig.driver.fingerprint()).healthy

    await until(is_healthy, rig.patience_s)


async def until_told(rig: DockerRig, launch: Launch, state: RunState) -> Observation:
    def told() -> list[Observation]:
        return [c for c in rig.changes if c.task_id == launch.task_id and c.state is state]

    async def is_told() -> bool:
        return bool(told())

    await until(is_told, rig.patience_s)
    return told()[-1]


async def assert_down(call: object) -> None:
    with pytest.raises(DriverFailed) as failed:
        await call  # type: ignore[misc]
    assert (failed.value.code, failed.value.transient) == ("engine_down", True)


@pytest.mark.docker
@pytest.mark.root
class TestEngineFaults:
    async def test_a_hung_engine_is_a_reason_and_never_a_hang(
        self, engine: PrivateEngine, rig: DockerRig
    ) -> None:
        launch = rig.launch(new_task_id())
        before = await run(rig, launch)
        with engine.hung():
            async with asyncio.timeout(BOUND_S):
                info = await rig.driver.fingerprint()
                assert not info.healthy
                assert "does not answer" in info.reason
                assert str(engine.home) in info.reason
                await assert_down(rig.driver.inspect(launch.task_id, 1))
                await assert_down(rig.driver.start(rig.launch(new_task_id())))
                await assert_down(rig.driver.stop(launch.task_id, 1, "SIGTERM", 600_000))
                await assert_down(rig.driver.remove(launch.task_id, keep_logs=False))
                await assert_down(rig.driver.recover())
                await assert_down(rig.driver.execute(launch.task_id, 1, ("true",), 600_000))
                await assert_down(read(rig, launch.task_id))
                assert isinstance(rig.driver, ImageStore)
                await assert_down(rig.driver.images())
                await assert_down(rig.driver.remove_image("sha256:" + 64 * "0", ()))
        await until_healthy(rig)
        assert await rig.driver.inspect(launch.task_id, 1) == before
        assert (await run(rig, rig.launch(new_task_id()))).state is RunState.RUNNING

    async def test_calls_under_way_when_it_hangs_fail_and_leave_no_thread_behind(
        self, engine: PrivateEngine, rig: DockerRig
    ) -> None:
        """Ten times as many as there are threads, before anybody knows that it hangs."""
        launch = rig.launch(new_task_id())
        before = await run(rig, launch)
        with engine.hung():
            async with asyncio.timeout(BOUND_S):
                calls = [rig.driver.inspect(launch.task_id, 1) for _ in range(40)]
                results = await asyncio.gather(*calls, return_exceptions=True)
        assert {getattr(result, "code", result) for result in results} == {"engine_down"}
        await until_healthy(rig)
        async with asyncio.timeout(BOUND_S):
            calls = [rig.driver.inspect(launch.task_id, 1) for _ in range(40)]
            assert set(await asyncio.gather(*calls)) == {before}

    async def test_a_start_whose_answer_was_lost_takes_effect_once(
        self, engine: PrivateEngine, rig: DockerRig
    ) -> None:
        launch = rig.launch(new_task_id())
        await rig.driver.prepare(launch)
        with engine.hung():
            async with asyncio.timeout(BOUND_S):
                await assert_down(rig.driver.start(launch))
        await until_healthy(rig)
        # The engine finds the request in its socket and creates the container, perhaps at this
        # very moment: start() takes it over or makes its own.
        assert (await rig.driver.start(launch)).state is RunState.RUNNING
        assert len(rig.containers(launch.task_id)) == 1

    async def test_a_killed_engine_comes_back_with_the_same_containers(
        self, engine: PrivateEngine, rig: DockerRig
    ) -> None:
        stays, ends, waits = (rig.launch(new_task_id()) for _ in range(3))
        ends = shell(ends, f"{OBEYS}echo up; while [ ! -e /tmp/end ]; do sleep 0.05; done; exit 9")
        before = [await run(rig, launch) for launch in (stays, ends, waits)]
        await wait_for_output(rig, ends.task_id, "up")
        pids = [rig.inspected(launch.task_id)["State"]["Pid"] for launch in (stays, ends, waits)]
        rig.changes.clear()
        engine.signal(signal.SIGKILL)
        try:
            async with asyncio.timeout(BOUND_S):
                await until_down(rig)
                await assert_down(rig.driver.inspect(stays.task_id, 1))
            # While nobody manages it, one ends by itself.
            Path(f"/proc/{pids[1]}/root/tmp/end").touch()
        finally:
            engine.start()
        await until_healthy(rig)
        assert (await until_told(rig, ends, RunState.EXITED)).exit_code == 9
        assert await rig.driver.inspect(stays.task_id, 1) == before[0]
        assert rig.inspected(stays.task_id)["State"]["Pid"] == pids[0]
        assert {c.task_id for c in rig.changes} == {ends.task_id}
        # News come again by themselves, not only by the look after the reconnection.
        await rig.driver.stop(waits.task_id, 1, "SIGTERM", 60_000)
        await until_told(rig, waits, RunState.EXITED)

    async def test_what_vanishes_while_we_are_deaf_is_told(
        self, engine: PrivateEngine, rig: DockerRig
    ) -> None:
        """The container is removed between the engine's return and our look at it."""
        launch = rig.launch(new_task_id())
        seen = await run(rig, launch)
        engine.signal(signal.SIGKILL)
        engine.start()
        rig.client.remove_container(seen.handle, force=True)
        await until_told(rig, launch, RunState.GONE)

    async def test_a_follower_of_a_dead_engine_is_told_and_one_of_a_hung_engine_may_leave(
        self, engine: PrivateEngine, rig: DockerRig
    ) -> None:
        launch = shell(rig.launch(new_task_id()), f"{OBEYS}echo once; {WAITS}")
        await run(rig, launch)
        following = rig.driver.logs(
            launch.task_id, streams=BOTH, tail=None, since_ms=0, follow=True
        )
        async with asyncio.timeout(BOUND_S):
            assert (await anext(following)).data == b"once\n"
            with engine.hung():
                await following.aclose()  # type: ignore[attr-defined]  # it is a generator
        await until_healthy(rig)
        following = rig.driver.logs(
            launch.task_id, streams=BOTH, tail=None, since_ms=0, follow=True
        )
        async with asyncio.timeout(BOUND_S):
            assert (await anext(following)).data == b"once\n"
            engine.signal(signal.SIGKILL)
            try:
                await assert_down(anext(following))
            finally:
                engine.start()
        await until_healthy(rig)

    async def test_streams_are_bounded_and_given_back(
        self, engine: PrivateEngine, rig: DockerRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cube.adapters.docker_engine.engine.STREAM_WAIT_S", 0.1)
        # Silent after its first line: only closing can wake the threads that wait for a second one.
        launch = shell(rig.launch(new_task_id()), f"{OBEYS}echo tick; {WAITS}")
        await run(rig, launch)
        followers = [
            rig.driver.logs(launch.task_id, streams=BOTH, tail=None, since_ms=0, follow=True)
            for _ in range(STREAMS_MAX)
        ]
        for follower in followers:
            assert (await anext(follower)).data == b"tick\n"
        with pytest.raises(DriverFailed) as failed:
            await read(rig, launch.task_id)
        assert (failed.value.code, failed.value.transient) == ("too_many_streams", True)
        for follower in followers:
            await follower.aclose()  # type: ignore[attr-defined]  # it is a generator

        async def is_free() -> bool:
            with contextlib.suppress(DriverFailed):
                return "tick" in text(await read(rig, launch.task_id))
            return False

        await until(is_free, rig.patience_s)


async def until_down(rig: DockerRig) -> None:
    async def is_down() -> bool:
        return not (await rig.driver.fingerprint()).healthy

    await until(is_down, rig.patience_s)


# -- no engine at all: these run everywhere --------------------------------------------------------


def driver_without_engine(path: Path) -> DockerDriver:
    settings = DockerSettings(host=f"unix://{path}", call_timeout_ms=CALL_MS, ping_timeout_ms=200)
    return DockerDriver(ClusterId("c"), NodeId("n"), settings, SystemClock())


async def test_an_absent_engine_is_a_clear_reason(tmp_path: Path) -> None:
    driver = driver_without_engine(tmp_path / "docker.sock")
    assert not (await driver.fingerprint()).healthy
    task_id = new_task_id()
    await assert_down(driver.inspect(task_id, 1))  # not open yet
    async with asyncio.timeout(BOUND_S):
        await driver.open(lambda _: None)
        try:
            info = await driver.fingerprint()
            assert not info.healthy
            assert "is Docker installed and running?" in info.reason
            assert str(tmp_path) in info.reason
            await assert_down(driver.inspect(task_id, 1))
            await assert_down(driver.recover())
            await assert_down(driver.stop(task_id, 1, "SIGTERM", 60_000))
        finally:
            await driver.close()
    assert not (await driver.fingerprint()).healthy
    await assert_down(driver.recover())


async def turns() -> None:
    """Of the loop, enough for what has begun with a connection."""
    for _ in range(8):
        await asyncio.sleep(0)


async def close(server: asyncio.Server) -> None:
    """Nobody is accepted any more, and who was is known (asyncio 3.11 loses a connection that is between
    the two)."""
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    await turns()
    server.close()


async def test_an_absent_engine_is_not_waited_for(tmp_path: Path) -> None:
    settings = DockerSettings(host=f"unix://{tmp_path}/docker.sock", ping_timeout_ms=600_000)
    driver = DockerDriver(ClusterId("c"), NodeId("n"), settings, SystemClock())
    async with asyncio.timeout(BOUND_S):
        await driver.open(lambda _: None)
        await driver.close()


async def test_an_engine_that_accepts_and_says_nothing_is_a_hung_one(tmp_path: Path) -> None:
    held: list[asyncio.StreamWriter] = []

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    path = tmp_path / "docker.sock"
    server = await asyncio.start_unix_server(say_nothing, path)
    driver = driver_without_engine(path)
    async with asyncio.timeout(BOUND_S):
        await driver.open(lambda _: None)
        try:
            info = await driver.fingerprint()
            assert not info.healthy
            assert "does not answer" in info.reason
            await assert_down(driver.inspect(new_task_id(), 1))
        finally:
            await driver.close()
            await close(server)
            for writer in held:
                writer.transport.abort()
            await turns()


async def test_an_engine_that_talks_nonsense_is_no_engine(tmp_path: Path) -> None:
    async def say_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<nonsense")
        writer.close()

    path = tmp_path / "docker.sock"
    server = await asyncio.start_unix_server(say_nonsense, path)
    driver = driver_without_engine(path)
    async with asyncio.timeout(BOUND_S):
        await driver.open(lambda _: None)
        try:
            assert not (await driver.fingerprint()).healthy
            await assert_down(driver.inspect(new_task_id(), 1))
        finally:
            await driver.close()
            await close(server)
