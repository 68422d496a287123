"""How much a directory is said to hold, and how often it is asked."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cube.adapters.process import disk_watch
from cube.adapters.process.attempts import Identity
from cube.adapters.process.disk_watch import DiskWatch, Quota, held_bytes
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from tests.fakes.clock import FakeClock

KIB = 1024


def blocks(*paths: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in paths)


def file(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def test_all_that_is_below_counts_by_its_blocks(tmp_path: Path) -> None:
    assert held_bytes(tmp_path) == 0
    files = [file(tmp_path / f"a/b{n}/c/file-{n}", 10 * KIB + n) for n in range(5)]
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as out:
        out.truncate(1 << 40)
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert held_bytes(tmp_path) == blocks(*files, sparse, *folders)
    assert 50 * KIB <= held_bytes(tmp_path) < 200 * KIB


def test_a_file_of_two_names_counts_once_and_links_are_not_followed(tmp_path: Path) -> None:
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    one = file(work / "one", 100 * KIB)
    os.link(one, work / "two")
    file(elsewhere / "big", 1000 * KIB)
    (work / "link").symlink_to(elsewhere)
    (work / "file-link").symlink_to(elsewhere / "big")
    assert held_bytes(work) < 200 * KIB
    (tmp_path / "itself").symlink_to(work)
    assert held_bytes(tmp_path / "itself") == 0
    assert held_bytes(tmp_path / "absent") == 0


def test_what_is_very_deep_or_very_much_costs_no_more_than_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_watch, "DEPTH_MAX", 4)
    monkeypatch.setattr(disk_watch, "ENTRIES_MAX", 50)
    before = len(os.listdir("/proc/self/fd"))
    file(tmp_path / "1/2/3/4/5/6/deep", 1000 * KIB)
    file(tmp_path / "1/2/shallow", 10 * KIB)
    assert 10 * KIB <= held_bytes(tmp_path) < 500 * KIB
    for number in range(100):
        file(tmp_path / f"many/{number}", 10 * KIB)
    assert 100 * KIB <= held_bytes(tmp_path) <= 900 * KIB
    assert len(os.listdir("/proc/self/fd")) == before


ONE, OTHER = (TaskId("one"), 1), (TaskId("other"), 1)


class Watched:
    """Two running attempts, of which one holds 100 KiB."""

    def __init__(self, tmp_path: Path, limit_bytes: int) -> None:
        file(tmp_path / "file", 100 * KIB)
        self.clock = FakeClock()
        self.quotas = {ONE: Quota(tmp_path, limit_bytes), OTHER: Quota(tmp_path, 0)}
        self.running = set(self.quotas)
        self.asked: list[Identity] = []
        self.ended: list[tuple[Identity, int]] = []
        self.is_refused = False
        self.watch = DiskWatch(self.clock, 1000, lambda: self.running, self.quota_of, self.end)

    async def quota_of(self, identity: Identity) -> Quota:
        self.asked.append(identity)
        if self.is_refused:
            raise DriverFailed("not_running", "x", transient=False)
        return self.quotas[identity]

    async def end(self, identity: Identity, quota: Quota, held: int) -> None:
        self.ended.append((identity, held))
        if self.is_refused:
            raise DriverFailed("not_killed", "x", transient=True)


def test_who_holds_more_than_asked_for_is_ended_until_that_has_worked(tmp_path: Path) -> None:
    async def main() -> None:
        world = Watched(tmp_path, 50 * KIB)
        world.is_refused = True
        await world.watch.look()
        assert (world.watch.looks, world.ended) == (0, [])
        world.is_refused = False
        await world.watch.look()
        await world.watch.look()  # not yet again
        assert [identity for identity, _ in world.ended] == [ONE]
        assert world.ended[0][1] >= 100 * KIB
        world.is_refused = True
        for _ in range(2):
            world.clock.advance(1000)
            await world.watch.look()
        assert len(world.ended) == 3
        assert world.asked == [ONE, OTHER, ONE, OTHER], "limits are asked for once"
        world.running.clear()
        world.clock.advance(1000)
        await world.watch.look()
        assert len(world.ended) == 3

    asyncio.run(main())


def test_who_holds_less_is_left_alone_and_rests_after_a_long_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        world = Watched(tmp_path, 1 << 30)

        def slow(directory: Path) -> int:
            world.clock.advance(500)
            return held_bytes(directory)

        monkeypatch.setattr(disk_watch, "held_bytes", slow)
        await world.watch.look()
        world.clock.advance(500 * disk_watch.REST_SHARE - 1)
        await world.watch.look()
        assert world.watch.looks == 1
        world.clock.advance(1)
        await world.watch.look()
        assert (world.watch.looks, world.ended) == (2, [])

    asyncio.run(main())
