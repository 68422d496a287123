"""An engine that is reached over TCP, in the clear and with certificates on both sides, as DOCKER_HOST,
DOCKER_TLS_VERIFY and DOCKER_CERT_PATH say it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cube.adapters.docker_driver import DockerSettings
from cube.model.errors import DriverFailed
from cube.model.launch import RunState
from cube.model.sessions import ExecOrder, FileOrder
from cube.ports.session import Session
from tests.contract.docker_rig import OBEYS, WAITS, DockerRig, run, shell
from tests.contract.driver_cases import new_task_id, read, text, until
from tests.contract.private_engine import PrivateEngine, private_engine
from tests.engine_certificates import make_certificates
from tests.ports import free_port

pytestmark = [pytest.mark.docker, pytest.mark.root]

PATIENCE_S = 60.0
BIG = 3_000_000  # bytes: many times what any buffer on the way holds


class Remote:
    def __init__(self, engine: PrivateEngine, port: int, certs: Path | None) -> None:
        self.engine, self.certs = engine, certs
        self.environment = {"DOCKER_HOST": f"tcp://127.0.0.1:{port}"}
        if certs is not None:
            self.environment |= {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certs)}


@pytest.fixture(scope="module", params=["tcp", "tls"])
def remote(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Remote]:
    port = free_port()
    certs: Path | None = None
    flags = ["--tcp", str(port)]
    if request.param == "tls":
        certs = tmp_path_factory.mktemp("certs")
        make_certificates(certs)
        flags += ["--certs", str(certs)]
    with private_engine(*flags) as engine:
        yield Remote(engine, port, certs)


@pytest.fixture
async def rig(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DockerRig]:
    """The driver goes the long way, and the rig's own looks through the socket."""
    for name, value in remote.environment.items():
        monkeypatch.setenv(name, value)
    rig = DockerRig(remote.engine.host, DockerSettings(host=None))
    await rig.open()
    yield rig
    await rig.close()


async def all_of(session: Session, *data: bytes) -> tuple[bytes, int | None]:
    """What it says to this input, and its exit code."""

    async def feed() -> None:
        for piece in data:
            await session.write(piece)
        await session.end_input()

    feeding = asyncio.create_task(feed())
    said = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for one in session.output():
                said += one.data
            code = await session.exit_code()
            await feeding
    finally:
        feeding.cancel()
        await session.close()
    return said, code


async def test_a_task_runs_is_looked_into_and_ends(rig: DockerRig) -> None:
    launch = shell(rig.launch(new_task_id()), f"{OBEYS}echo hello; {WAITS}")
    seen = await run(rig, launch)
    assert seen.state is RunState.RUNNING
    assert [one.task_id for one in await rig.driver.recover()] == [launch.task_id]
    done = await rig.driver.execute(launch.task_id, 1, ("sh", "-c", "echo one; exit 3"), 30_000)
    assert (done.exit_code, done.output) == (3, b"one\n")
    ended = await rig.driver.stop(launch.task_id, 1, "SIGTERM", 30_000)
    assert ended.exit_code == 0
    assert text(await read(rig, launch.task_id)) == "hello\n"


async def test_a_command_reads_to_the_end_of_its_input(rig: DockerRig) -> None:
    """And what it says after that end still comes."""
    launch = rig.launch(new_task_id())
    await run(rig, launch)
    order = ExecOrder(argv=("sh", "-c", "wc -c; echo after; exit 5"))
    session = await rig.driver.open_exec(launch.task_id, 1, order)
    pieces = [b"x" * 60_000] * (BIG // 60_000)
    assert await all_of(session, *pieces) == (f"{BIG}\nafter\n".encode(), 5)
    session = await rig.driver.open_exec(launch.task_id, 1, ExecOrder(argv=("cat",)))
    assert await all_of(session) == (b"", 0)


async def test_much_output_waits_for_a_slow_reader_and_comes_whole(rig: DockerRig) -> None:
    launch = rig.launch(new_task_id())
    await run(rig, launch)
    argv = ("head", "-c", str(BIG), "/dev/zero")
    session = await rig.driver.open_exec(launch.task_id, 1, ExecOrder(argv=argv))
    size = 0
    async for piece in session.output():
        size += len(piece.data)
        await asyncio.sleep(0)
    assert (size, await session.exit_code()) == (BIG, 0)
    await session.close()


async def test_a_terminal_is_talked_to(rig: DockerRig) -> None:
    launch = rig.launch(new_task_id())
    await run(rig, launch)
    order = ExecOrder(argv=("sh",), tty=True, rows=33, columns=77)
    session = await rig.driver.open_exec(launch.task_id, 1, order)
    said, code = await all_of(session, b"stty size; exit 4\n")
    assert code == 4
    assert b"stty size" in said


async def test_files_go_in_and_out(rig: DockerRig) -> None:
    launch = shell(rig.launch(new_task_id()), f"{OBEYS}rm /bin/tar; {WAITS}")
    await run(rig, launch)
    get = ExecOrder(argv=("false",), files=FileOrder(action="get", path="/bin/sh"))
    archive, code = await all_of(await rig.driver.open_exec(launch.task_id, 1, get))
    assert code == 0
    put = ExecOrder(argv=("false",), files=FileOrder(action="put", path="/tmp"))
    pieces = [archive[start : start + 60_000] for start in range(0, len(archive), 60_000)]
    assert await all_of(await rig.driver.open_exec(launch.task_id, 1, put), *pieces) == (b"", 0)
    done = await rig.driver.execute(launch.task_id, 1, ("cmp", "/bin/sh", "/tmp/sh"), 30_000)
    assert done.exit_code == 0


async def test_a_session_whose_caller_goes_leaves_no_command(rig: DockerRig) -> None:
    launch = rig.launch(new_task_id())
    seen = await run(rig, launch)
    session = await rig.driver.open_exec(launch.task_id, 1, ExecOrder(argv=("sleep", "1239")))
    async with asyncio.timeout(PATIENCE_S):
        await session.close()

    async def is_over() -> bool:  # the engine notes it a little later
        running = rig.client.inspect_container(seen.handle)["ExecIDs"]
        return not any(rig.client.exec_inspect(one)["Running"] for one in running or ())

    await until(is_over, PATIENCE_S)


async def test_an_engine_lets_in_only_whom_its_ca_knows(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if remote.certs is None:
        return  # everybody may, there
    for name, source in (("ca", "ca"), ("cert", "other"), ("key", "other-key")):
        (tmp_path / f"{name}.pem").write_bytes((remote.certs / f"{source}.pem").read_bytes())
    for name, value in {**remote.environment, "DOCKER_CERT_PATH": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    rig = DockerRig(remote.engine.host, DockerSettings(host=None))
    await rig.open()
    info = await rig.driver.fingerprint()
    assert not info.healthy
    with pytest.raises(DriverFailed, match="certificate"):
        await rig.driver.recover()
    await rig.close()
