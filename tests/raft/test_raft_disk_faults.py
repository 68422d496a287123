"""A disk that is full or broken, and kills in the middle of a snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cube.adapters.raft import PySyncObjLog, RaftSettings, applying, snapshots
from cube.adapters.raft import journal as journal_module
from cube.adapters.raft.node import RaftNode
from cube.model.errors import Unavailable
from cube.ports.log import Role
from tests.raft.disks import Disk, directory_for_disks, why_unavailable
from tests.raft.members import Processes
from tests.raft_support import PROPOSE_MS, RealCluster, propose_surely, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[RealCluster]:
    made = RealCluster(tmp_path, RaftSettings(snapshot_tail=5, segment_bytes=2_000))
    yield made
    await made.close()


def node_of(cluster: RealCluster, number: int) -> RaftNode:
    log = cluster.logs[number]
    assert isinstance(log, PySyncObjLog)
    assert log._node is not None
    return log._node


def break_disk(
    monkeypatch: pytest.MonkeyPatch, directory: Path, code: int, call: str
) -> Callable[[], None]:
    """`call` fails for files under `directory` until the returned function is called."""
    real = getattr(os, call)
    is_broken = True

    def fail(fd: int, *arguments: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if is_broken and Path(path).is_relative_to(directory):
            raise OSError(code, os.strerror(code))
        return real(fd, *arguments)

    def mend() -> None:
        nonlocal is_broken
        is_broken = False

    monkeypatch.setattr(os, call, fail)
    return mend


@pytest.mark.parametrize(
    ("code", "call"),
    [(errno.ENOSPC, "pwrite"), (errno.EIO, "pwrite"), (errno.EIO, "fdatasync")],
)
async def test_d6_a_leader_whose_disk_fails_steps_down_says_so_and_comes_back(
    cluster: RealCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    """D6: the library dies of SIGBUS."""
    leader = await cluster.found(3)
    await leader.propose(b"before", PROPOSE_MS)
    told: list[str] = []
    leader.watch(lambda status: told.append(status.fault))
    if call == "fdatasync":
        monkeypatch.setattr(node_of(cluster, 0).journal, "retry", lambda: False)
    mend = break_disk(monkeypatch, tmp_path / "0", code, call)
    unsure = asyncio.create_task(leader.propose(b"unsure", PROPOSE_MS))
    await until(lambda: bool(cluster.leaders()) and 0 not in cluster.leaders())
    await propose_surely(cluster.logs[1], b"meanwhile")
    status = leader.status()
    assert status.fault == f"disk: {os.strerror(code)}"
    assert (status.role, status.quorum) == (Role.VOTER, False)
    with pytest.raises(Unavailable, match="disk"):
        await leader.propose(b"refused", PROPOSE_MS)
    with pytest.raises(Unavailable, match="disk"):
        await leader.barrier(100)
    mend()
    monkeypatch.undo()
    await until(lambda: leader.status().fault == "")
    await until(lambda: told[-1] == "")
    assert f"disk: {os.strerror(code)}" in told
    await asyncio.gather(unsure, return_exceptions=True)
    await propose_surely(leader, b"after")
    payloads = await cluster.agree()
    assert payloads[0] == b"before"
    assert [p for p in payloads if p != b"unsure"] == [b"before", b"meanwhile", b"after"]
    for number in range(3):
        await cluster.stop(number)
    for number in range(3):
        await cluster.start(number)
    assert await cluster.agree() == payloads


async def test_a_lone_member_whose_disk_is_full_waits_and_goes_on(
    cluster: RealCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await cluster.found(1)
    await log.propose(b"before", PROPOSE_MS)
    mend = break_disk(monkeypatch, tmp_path / "0", errno.ENOSPC, "pwrite")
    with pytest.raises(Exception, match="deadline"):
        await log.propose(b"unsure", 300)
    assert log.status().role is Role.VOTER
    assert cluster.replicas[0].payloads == [b"before"], "applied what is not on its disk"
    mend()
    await until(lambda: log.status().role is Role.LEADER and log.status().ready)
    await log.propose(b"after", PROPOSE_MS)
    assert await cluster.agree() == [b"before", b"unsure", b"after"]


async def test_a_follower_whose_disk_is_full_promises_nothing(
    cluster: RealCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it cost the others their leader, or vote for another."""
    leader = await cluster.found(3)
    term = leader.status().term
    mend = break_disk(monkeypatch, tmp_path / "2", errno.ENOSPC, "pwrite")
    await leader.propose(b"a", PROPOSE_MS)
    await until(lambda: cluster.logs[2].status().fault != "")
    for _ in range(10):
        await leader.propose(b"b", PROPOSE_MS)
    matched = node_of(cluster, 0)._SyncObj__raftMatchIndex
    follower = next(peer for peer in matched if peer.id == cluster.addresses[2])
    assert matched[follower] <= node_of(cluster, 2).journal.synced_index
    assert (leader.status().role, leader.status().term) == (Role.LEADER, term)
    mend()
    await until(lambda: cluster.logs[2].status().fault == "")
    assert len(await cluster.agree()) == 11


@pytest.fixture
def disk() -> Iterator[Disk]:
    with directory_for_disks() as directory:
        reason = why_unavailable(directory)
        if reason:
            pytest.skip(reason)
        made = Disk(directory / "disk", 16)
        yield made
        made.remove()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler:
        for size in (1 << 20, 512):
            with contextlib.suppress(OSError):
                while filler.write(bytes(size)):
                    pass


async def test_a_disk_that_is_really_full(disk: Disk, tmp_path: Path) -> None:
    """Three processes, the first one's disk filled to the last block and emptied again."""
    processes = Processes(tmp_path, snapshot_every=100_000)
    processes.directory_of = lambda number: (disk.path if number == 0 else tmp_path) / str(number)
    try:
        await processes.found(3)
        first = processes.all[0]
        pid = first._process.pid
        fill(disk.path / "filler")
        work = [
            asyncio.ensure_future(p.request("propose_each", prefix=f"{p.number}", count=100_000))
            for p in processes.all
        ]

        async def fault() -> str:
            return str((await first.request("status"))["fault"])

        async with asyncio.timeout(60):
            while not await fault():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        async with asyncio.timeout(20):  # it has told of its disk, and steps down
            while (leader := await processes.leader()) is first:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        before = len(leader.acknowledged)
        await until(lambda: len(leader.acknowledged) > before + 50)
        (disk.path / "filler").unlink()
        async with asyncio.timeout(20):
            while await fault():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        back = len(first.acknowledged)
        work.append(asyncio.ensure_future(first.request("propose_each", prefix="b", count=100_000)))
        await until(lambda: len(first.acknowledged) > back + 20)
        assert first._process.pid == pid, "the process was not restarted"
        for process in processes.all:
            await process.kill()
        await asyncio.gather(*work, return_exceptions=True)
        for process in processes.all:
            await process.start()
        acknowledged = {data for process in processes.all for data in process.acknowledged}
        await processes.leader()
        for process in processes.all:
            await process.request("barrier", timeout_ms=15_000)
            assert acknowledged <= set(await process.request("payloads"))
    finally:
        await processes.close()


# --- a kill at any step of a snapshot

STEPS = ("before write", "after write", "after rename", "before trim", "after trim")


@pytest.mark.parametrize("step", STEPS)
async def test_a_kill_at_any_step_of_a_snapshot_loses_nothing(
    cluster: RealCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """What a kill would leave at that step is copied, and a member started from the copy."""
    log = await cluster.found(1)
    wanted = [b"%d" % i for i in range(60)]
    for data in wanted:
        await log.propose(data, PROPOSE_MS)
    directory, copy = tmp_path / "0", tmp_path / "copy"

    def at(owner: Any, name: str, *, after: bool) -> None:
        real = getattr(owner, name)

        def stop_here(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options) if after else None
            if not copy.exists():
                shutil.copytree(directory, copy)
            return result if after else real(*arguments, **options)

        monkeypatch.setattr(owner, name, stop_here)

    match step:
        case "before write":
            at(snapshots, "write_snapshot", after=False)
        case "after write":
            at(snapshots, "write_snapshot", after=True)
        case "after rename":
            at(snapshots, "sync_directory", after=False)
        case "before trim":
            at(journal_module.FileJournal, "trim_to", after=False)
        case _:
            at(applying.Applying, "_trim_behind", after=True)
    await log.compact()
    await until(lambda: node_of(cluster, 0).journal.first_index > 50)
    await until(copy.exists)
    monkeypatch.undo()
    await cluster.stop(0)
    assert (copy / "snapshot").exists() == (step not in ("before write", "after write"))
    shutil.rmtree(directory)
    shutil.move(copy, directory)
    await cluster.start(0)
    assert await cluster.agree() == wanted
    await cluster.logs[0].propose(b"after", PROPOSE_MS)
    await cluster.stop(0)
    await cluster.start(0)
    assert await cluster.agree() == [*wanted, b"after"]
