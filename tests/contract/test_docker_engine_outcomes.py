"""What becomes of tasks when their engine is restarted, upgraded, full, or when the host was rebooted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from cube.adapters import docker_driver
from cube.adapters.docker_driver import DockerDriver, DockerSettings
from cube.adapters.system_clock import SystemClock
from cube.model.errors import DriverFailed
from cube.model.ids import ClusterId, NodeId
from cube.model.launch import RunState
from cube.worker.endings import cause_of
from tests.contract.docker_rig import DockerRig, run, shell
from tests.contract.driver_cases import ended, new_task_id, until
from tests.contract.private_engine import PrivateEngine, private_engine

CALL_MS, PING_MS = 10_000, 1_000
BOUND_S = 60.0


async def opened(engine: PrivateEngine) -> DockerRig:
    settings = DockerSettings(host=engine.host, call_timeout_ms=CALL_MS, ping_timeout_ms=PING_MS)
    rig = DockerRig(engine.host, settings)
    await rig.open()
    return rig


async def until_healthy(rig: DockerRig) -> None:
    async def is_healthy() -> bool:
        return (await rig.driver.fingerprint()).healthy

    await until(is_healthy, rig.patience_s)


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateEngine]:
    with private_engine("--no-live-restore") as engine:
        yield engine


@pytest.fixture
async def rig(engine: PrivateEngine) -> AsyncIterator[DockerRig]:
    rig = await opened(engine)
    yield rig
    await rig.close()


@pytest.mark.docker
@pytest.mark.root
class TestWithoutLiveRestore:
    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
    async def test_what_the_engine_takes_with_it_has_ended_and_says_so(
        self, engine: PrivateEngine, rig: DockerRig, how: signal.Signals
    ) -> None:
        runs = shell(rig.launch(new_task_id()), "exec sleep 1000")
        over = rig.exits(rig.launch(new_task_id()), 7)
        for launch in (runs, over):
            await run(rig, launch)
        await ended(rig, over.task_id)
        pid = int((engine.home / "docker.pid").read_text())
        engine.signal(how)
        with contextlib.suppress(psutil.NoSuchProcess):
            await asyncio.to_thread(psutil.Process(pid).wait, BOUND_S)
        engine.start()
        await until_healthy(rig)

        async def is_told() -> bool:
            return any(
                seen.task_id == runs.task_id and seen.state is RunState.EXITED
                for seen in rig.changes
            )

        await until(is_told, rig.patience_s)
        seen = await rig.driver.inspect(runs.task_id, 1)
        assert (seen.state, seen.exit_code) == (RunState.EXITED, 128 + signal.SIGTERM)
        message = cause_of(seen).message
        assert message == "killed by signal 15 (its engine was stopped about then)"
        assert (await rig.driver.inspect(over.task_id, 1)).exit_code == 7
        # The next attempt comes up, and its end by somebody's hand is not the engine's.
        later = await run(rig, rig.launch(runs.task_id, 2))
        assert later.state is RunState.RUNNING

    async def test_a_reboot_of_the_host_is_told_as_one(
        self, engine: PrivateEngine, rig: DockerRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs = rig.launch(new_task_id())
        own = rig.exits(rig.launch(new_task_id()), 255)
        await run(rig, runs)
        await run(rig, own)
        await ended(rig, own.task_id)
        await rig.kill_agent()
        lose_power(engine)
        monkeypatch.setattr(docker_driver, "boot_id", lambda: "another-boot")
        engine.start()
        driver = await rig.restart()
        await until_healthy(rig)
        found = {seen.task_id: seen for seen in await driver.recover()}
        seen = found[runs.task_id]
        assert (seen.state, seen.exit_code) == (RunState.EXITED, None)
        assert cause_of(seen).message == "its host was rebooted"
        assert (await run(rig, rig.launch(runs.task_id, 2))).state is RunState.RUNNING


def lose_power(engine: PrivateEngine) -> None:
    """Everything of it is dead at once, and what the engine keeps below /run is gone."""
    home = str(engine.home)
    doomed = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid != os.getpid()
        and any(home in word for word in process.info["cmdline"] or ())
    ]
    for process in [*doomed, *(child for one in doomed for child in children_of(one))]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(doomed, BOUND_S)
    for point in sorted((m for m in mounts() if m.startswith(f"{home}/")), reverse=True):
        os.system(f"umount --lazy {point}")
    for run_dir in ("cd", "exec"):
        shutil.rmtree(engine.home / run_dir, ignore_errors=True)


def children_of(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def mounts() -> list[str]:
    return [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]


@pytest.mark.docker
@pytest.mark.root
async def test_a_full_disk_is_a_passing_failure_that_leaves_nothing() -> None:
    with private_engine("--disk", "24") as engine:
        rig = await opened(engine)
        try:
            stays = rig.launch(new_task_id())
            await run(rig, stays)
            filler = engine.home / "data" / "filler"
            with contextlib.suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(b"\0" * 4096)
                    file.flush()
            launch = rig.launch(new_task_id())
            with pytest.raises(DriverFailed, match="free some space") as failed:
                await run(rig, launch)
            assert (failed.value.code, failed.value.transient) == ("disk_full", True)
            assert (await rig.driver.inspect(stays.task_id, 1)).state is RunState.RUNNING
            filler.unlink()
            assert (await run(rig, launch)).state is RunState.RUNNING
            assert len(rig.containers(launch.task_id)) == 1
        finally:
            await rig.close()


# -- an engine of another version: a few answers of one are enough, so this runs everywhere --------


class SmallEngine:
    """Answers pings, info and an event stream that stays open, in the version that it is given."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.asked: list[str] = []

    @contextlib.asynccontextmanager
    async def running(self, version: str, api_version: str) -> AsyncIterator[None]:
        writers: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            while line := (await reader.readline()).decode():
                while (await reader.readline()).strip():
                    pass
                path = line.split()[1]
                self.asked.append(path)
                head = f"HTTP/1.1 200 OK\r\nApi-Version: {api_version}\r\n"
                if "/events" in path:
                    writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
                    continue
                info = {"ServerVersion": version, "LoggingDriver": "json-file"}
                is_list = "/containers/json" in path
                body = json.dumps([] if is_list else info).encode()
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

        server = await asyncio.start_unix_server(serve, self._path)
        try:
            yield
        finally:
            server.close()
            for writer in writers:
                writer.close()
            self._path.unlink(missing_ok=True)


async def test_an_upgraded_engine_is_known_as_such_though_no_call_failed(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    engine = SmallEngine(path)
    settings = DockerSettings(host=f"unix://{path}", ping_timeout_ms=PING_MS)
    driver = DockerDriver(ClusterId("c"), NodeId("n"), settings, SystemClock())
    try:
        async with asyncio.timeout(BOUND_S):
            async with engine.running("20.10.24", "1.41"):
                await driver.open(lambda _: None)
                assert (await driver.fingerprint()).attributes["version"] == "20.10.24"
            # Nobody asks it anything meanwhile: only the stream of events breaks.
            async with engine.running("28.2.2", "1.50"):

                async def is_listening_again() -> bool:
                    return any(asked.startswith("/v1.50/events") for asked in engine.asked)

                await until(is_listening_again, BOUND_S)
                info = await driver.fingerprint()
                assert (info.attributes["version"], info.attributes["api_version"]) == (
                    "28.2.2", "1.50",
                )  # fmt: skip
    finally:
        await driver.close()


async def test_an_engine_that_comes_after_the_agent_is_found(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    engine = SmallEngine(path)
    settings = DockerSettings(host=f"unix://{path}", ping_timeout_ms=PING_MS)
    driver = DockerDriver(ClusterId("c"), NodeId("n"), settings, SystemClock())
    async with asyncio.timeout(BOUND_S):
        await driver.open(lambda _: None)
        try:
            assert not (await driver.fingerprint()).healthy
            async with engine.running("20.10.24", "1.41"):

                async def is_healthy() -> bool:
                    return (await driver.fingerprint()).healthy

                await until(is_healthy, BOUND_S)
                assert await driver.recover() == []
        finally:
            await driver.close()
