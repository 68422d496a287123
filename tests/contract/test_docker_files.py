"""Files out of containers and into them without a `tar` of their own (cube cp)."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from pathlib import Path

import msgspec
import pytest

from cube.cli.archives import pack, unpack
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.launch import Launch
from cube.model.sessions import ExecOrder, FileOrder, FileOwner
from cube.model.spec import MountSpec, MountType
from tests.contract.docker_rig import OBEYS, WAITS, DockerRig, run, shell, with_options
from tests.contract.driver_cases import new_task_id

pytestmark = pytest.mark.docker

NO_TAR = "rm /bin/tar; "
NOTHING = ("false",)  # what must not be run


async def ready(rig: DockerRig, script: str, **changes: object) -> TaskId:
    """A task that has done this, and waits."""
    task_id = new_task_id()
    launch: Launch = msgspec.structs.replace(rig.launch(task_id), **changes)
    await run(rig, shell(launch, f"{OBEYS}{script} touch /tmp/ready; {WAITS}"))
    seen = None
    async with asyncio.timeout(rig.patience_s):
        while seen is None or seen.exit_code != 0:
            seen = await rig.driver.execute(task_id, 1, ("test", "-e", "/tmp/ready"), 10_000)
    return task_id


async def files(
    rig: DockerRig, task_id: TaskId, action: str, path: str, data: bytes = b"",
    argv: tuple[str, ...] = NOTHING,
) -> tuple[int | None, bytes]:  # fmt: skip
    """Exit code and output."""
    order = ExecOrder(argv=argv, files=FileOrder(action=action, path=path))  # type: ignore[arg-type]
    session = await rig.driver.open_exec(task_id, 1, order)
    said = b""

    async def feed() -> None:
        for start in range(0, len(data), 50_000):
            await session.write(data[start : start + 50_000])
        await session.end_input()

    feeding = asyncio.create_task(feed())
    try:
        async for piece in session.output():
            said += piece.data
        return await session.exit_code(), said
    finally:
        feeding.cancel()
        await asyncio.wait({feeding})
        await session.close()


async def text_in(rig: DockerRig, task_id: TaskId, *argv: str) -> str:
    seen = await rig.driver.execute(task_id, 1, argv, 10_000)
    return seen.output.decode()


async def test_files_come_out_of_an_image_without_tar(rig: DockerRig, tmp_path: Path) -> None:
    script = (
        "mkdir -p /srv/d/e; cd /srv/d; echo one > a; ln -s a near; ln -s /etc far; ln a same;"
        "head -c 3000000 /dev/zero > e/big; mkfifo e/pipe;"
    )
    task_id = await ready(rig, NO_TAR + script, working_dir="/srv")
    for asked in ("/srv/d", "d"):
        code, data = await files(rig, task_id, "get", asked)
        assert code == 0
        counts = unpack(io.BytesIO(data), tmp_path, f"copy{len(asked)}")
        assert (counts.files, counts.skipped, counts.links) == (3, 1, 1)
        assert counts.left_out == ["d/far -> /etc"]
        copy = tmp_path / f"copy{len(asked)}"
        assert (copy / "a").read_text() == "one\n"
        assert os.readlink(copy / "near") == "a"
        assert (copy / "same").stat().st_ino == (copy / "a").stat().st_ino
        assert (copy / "e" / "big").stat().st_size == 3_000_000
    code, data = await files(rig, task_id, "get", "d/.")
    unpack(io.BytesIO(data), tmp_path, "all", has_top=False)
    assert sorted(one.name for one in (tmp_path / "all").iterdir()) == ["a", "e", "near", "same"]
    code, data = await files(rig, task_id, "get", "d/a")
    unpack(io.BytesIO(data), tmp_path, "b")
    assert (tmp_path / "b").read_text() == "one\n"


async def test_files_go_into_a_task_as_its_users(rig: DockerRig, tmp_path: Path) -> None:
    links = "mkdir /srv; cd /; ln -s srv to-srv; ln -s etc/passwd to-passwd;"
    task_id = await ready(rig, NO_TAR + links, working_dir="/srv")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "big").write_bytes(os.urandom(2_000_000))
    code, said = await files(rig, task_id, "look", ".")
    assert (code, msgspec.json.decode(said, type=FileOwner)) == (0, FileOwner())
    assert (await files(rig, task_id, "look", "/etc/passwd"))[0] == 1
    assert (await files(rig, task_id, "look", "nowhere"))[0] == 1
    assert (await files(rig, task_id, "look", "/to-srv"))[0] == 0
    assert (await files(rig, task_id, "look", "/to-passwd"))[0] == 1
    out = io.BytesIO()
    pack(tmp_path / "d", "in", out, FileOwner(1234, 1235))
    assert await files(rig, task_id, "put", ".", out.getvalue()) == (0, b"")
    assert await text_in(rig, task_id, "stat", "-c", "%u %g %s", "/srv/in/big") == (
        "1234 1235 2000000\n"
    )


async def test_who_owns_what_is_put_is_who_the_task_runs_as(rig: DockerRig) -> None:
    task_id = await ready(rig, "", user="65534:7")
    _, said = await files(rig, task_id, "look", "/")
    assert msgspec.json.decode(said, type=FileOwner) == FileOwner(65534, 7)


async def test_what_is_not_there_is_told_before_anything_is_copied(rig: DockerRig) -> None:
    task_id = await ready(rig, "")
    with pytest.raises(DriverFailed, match="no file /no/such") as caught:
        await files(rig, task_id, "get", "/no/such")
    assert caught.value.code == "no_such_file"
    with pytest.raises(DriverFailed, match="no file /no/such"):
        await files(rig, task_id, "put", "/no/such", b"\0" * 1024)
    with pytest.raises(DriverFailed):
        await files(rig, task_id, "put", "/etc/passwd", b"\0" * 1024)


async def test_what_is_no_archive_is_refused_by_the_engine(rig: DockerRig) -> None:
    task_id = await ready(rig, "")
    with pytest.raises(DriverFailed):
        await files(rig, task_id, "put", "/tmp", b"nonsense" * 500)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("../../../evil")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(DriverFailed):
        await files(rig, task_id, "put", "/tmp", out.getvalue())
    assert not Path("/evil").exists()


async def test_nothing_is_written_where_the_task_may_not_either(rig: DockerRig) -> None:
    launch = shell(rig.launch(new_task_id()), f"{OBEYS}{WAITS}")
    await run(rig, with_options(launch, read_only=True))
    out = io.BytesIO()
    pack(Path("/etc/hostname"), "x", out)
    with pytest.raises(DriverFailed, match="read-only"):
        await files(rig, launch.task_id, "put", "/etc", out.getvalue())


@pytest.mark.parametrize("directory", ["/fast", "/tmp/link/fast", "/quick"])
async def test_where_only_the_container_can_see_its_own_tar_is_run(
    rig: DockerRig, directory: str
) -> None:
    """Also where a link leads there, such as /var/run: below the mount, the task would not see it."""
    mounts = (MountSpec(MountType.TMPFS, "/fast"),)
    script = "echo here > /fast/x; ln -s / /tmp/link; ln -s fast /quick;"
    task_id = await ready(rig, script, mounts=mounts)
    tar = ("tar", "-cf", "-", "-C", directory, "./x")
    code, data = await files(rig, task_id, "get", f"{directory}/x", argv=tar)
    assert code == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["./x"]


async def test_who_goes_in_the_midst_leaves_nothing_open(rig: DockerRig) -> None:
    task_id = await ready(rig, "head -c 50000000 /dev/zero > /big;")
    before = len(os.listdir("/proc/self/fd"))
    for action, path in (("get", "/big"), ("put", "/tmp")):
        order = ExecOrder(argv=NOTHING, files=FileOrder(action=action, path=path))  # type: ignore[arg-type]
        session = await rig.driver.open_exec(task_id, 1, order)
        if action == "get":
            async for piece in session.output():
                assert piece.data
                break
        else:
            await session.write(b"\0" * 100)
        await session.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert await text_in(rig, task_id, "echo", "well") == "well\n"
