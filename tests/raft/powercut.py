"""One power cut: a cluster of processes on disks of their own, under load, and what must be true
afterwards. The tests do each kind once; scripts/powercut does many.

What is acknowledged is noted by the parent when it hears of it; terms and votes are noted when a
member says them, by reading its messages' terms in its status.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from tests.raft.disks import Disk
from tests.raft.members import Processes

KINDS = ("write", "snapshot", "compaction")
# Segments and snapshots so small that a second of load has many of them.
_SETTINGS: dict[str, dict[str, Any]] = {
    "write": {"snapshot_every": 100_000},
    # Much state and few entries a snapshot: one is being written nearly all the time.
    "snapshot": {"snapshot_every": 60, "snapshot_tail": 20, "segment_bytes": 1 << 20},
    # Segments come and go all the time.
    "compaction": {"snapshot_every": 20, "snapshot_tail": 2, "segment_bytes": 2_000},
}
_CLIENTS = 4
READY_S_MAX = 15.0
MOMENT_S_MAX = 10.0


class Round:
    """A cluster of `size` members; run() raises AssertionError when something was lost."""

    def __init__(self, directory: Path, size: int, kind: str, seed: int) -> None:
        self.size = size
        self.kind = kind
        self.random = random.Random(seed)
        self.disks = [Disk(directory / f"disk-{number}") for number in range(size)]
        self.processes = Processes(directory, **_SETTINGS[kind])
        self.processes.directory_of = lambda number: self.disks[number].path / "data"
        self.acknowledged = 0

    async def run(self, cuts: int = 1) -> None:
        await self.processes.found(self.size)
        for number in range(cuts):
            await self._cut(number)

    async def _cut(self, number: int) -> None:
        processes = self.processes
        work = [
            asyncio.ensure_future(
                process.request(
                    "propose_each", prefix=f"{number}-{process.number}-{client}", count=100_000
                )
            )
            for process in processes.running()
            for client in range(_CLIENTS)
        ]
        try:
            await asyncio.sleep(self.random.uniform(0.3, 1.2))
            before = [await process.request("status") for process in processes.all]
            await asyncio.sleep(self.random.uniform(0.0, 0.1))
            await self._moment()
            for disk in self.disks:
                disk.cut_power()
        finally:
            for process in processes.running():
                await process.kill()
            await asyncio.gather(*work, return_exceptions=True)
        for disk in self.disks:
            disk.restore_power()
        await asyncio.gather(*(process.start() for process in processes.all))
        await self._expect(before)

    async def _moment(self) -> None:
        """Returns in the middle of what this kind is about, or after a while."""
        pattern = {"snapshot": "snapshot.encoding", "compaction": "journal/*.new"}.get(self.kind)
        async with asyncio.timeout(MOMENT_S_MAX):
            while pattern is not None:
                if any(any((disk.path / "data").glob(pattern)) for disk in self.disks):
                    break
                await asyncio.sleep(0)
        if self.random.random() < 0.5:  # else at once
            await asyncio.sleep(self.random.uniform(0.0, 0.004))

    async def _expect(self, before: list[dict[str, Any]]) -> None:
        processes = self.processes
        for process, status in zip(processes.all, before, strict=True):
            now = await process.request("status")
            assert now["term"] >= status["term"], "a term went back"
            if now["term"] == status["term"]:
                assert now["vote"] in (status["vote"], None) or status["vote"] is None, (
                    "two votes in a term"
                )
                assert not status["vote"] or now["vote"], "a vote is forgotten"
        async with asyncio.timeout(READY_S_MAX):
            await processes.leader()
        acknowledged = {data for process in processes.all for data in process.acknowledged}
        logs = []
        for process in processes.running():
            await process.request("barrier", timeout_ms=15_000)
            logs.append(await process.request("payloads"))
        for log in logs:
            missing = acknowledged - set(log)
            assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged are lost"
            assert len(set(log)) == len(log), "an entry was applied twice"
            assert log == logs[0], "members differ"
        assert len(acknowledged) > self.acknowledged, "nothing was acknowledged in this round"
        self.acknowledged = len(acknowledged)

    async def close(self) -> None:
        try:
            await self.processes.close()
        finally:
            for disk in self.disks:
                disk.remove()
