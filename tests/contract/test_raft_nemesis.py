"""Cuts, restarts, hand-overs and snapshots in random order under load; then everything must agree.

CUBE_RAFT_NEMESIS_S and CUBE_RAFT_NEMESIS_SEED make it run longer, or again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from pathlib import Path

import pytest

from cube.adapters.raft import PySyncObjLog, RaftSettings
from cube.model.errors import CubeError, OutcomeUnknown, Unavailable
from tests.raft_support import RealCluster, until

SECONDS = float(os.environ.get("CUBE_RAFT_NEMESIS_S", "5"))
SEEDS = [int(seed) for seed in os.environ.get("CUBE_RAFT_NEMESIS_SEED", "1,2").split(",")]
MEMBERS = 3
FAST = RaftSettings(
    heartbeat_ms=40,
    election_min_ms=150,
    election_max_ms=300,
    snapshot_every=40,
    snapshot_tail=3,
    segment_bytes=4_000,
)


class Nemesis:
    def __init__(self, cluster: RealCluster, seed: int) -> None:
        self.cluster = cluster
        self.random = random.Random(seed)
        self.acknowledged: list[bytes] = []
        self.refused: list[bytes] = []
        self.leaders: dict[int, set[int]] = {}  # term → who was seen to lead it
        self.end = time.monotonic() + SECONDS

    async def propose(self, client: int) -> None:
        number = 0
        while time.monotonic() < self.end:
            number += 1
            data = b"%d-%d" % (client, number)
            logs = list(self.cluster.logs.values())
            try:
                await logs[client % len(logs)].propose(data, 400)
            except Unavailable:
                self.refused.append(data)
                await asyncio.sleep(0.01)
            except OutcomeUnknown:
                pass
            else:
                self.acknowledged.append(data)

    async def disturb(self) -> None:
        actions = [self.cut, self.cut_one_way, self.restart, self.hand_over, self.compact]
        while time.monotonic() < self.end:
            await self.random.choice(actions)(self.random.randrange(MEMBERS))
            await asyncio.sleep(self.random.uniform(0.02, 0.3))

    async def cut(self, number: int) -> None:
        await self._bypass(number, ["on_message", "send_frame"])

    async def cut_one_way(self, number: int) -> None:
        await self._bypass(number, [self.random.choice(["on_message", "send_frame"])])

    async def _bypass(self, number: int, names: list[str]) -> None:
        log = self.cluster.logs[number]
        assert isinstance(log, PySyncObjLog)
        assert log._node is not None
        attributes = vars(log._node.transport)
        for name in names:
            attributes[name] = lambda _peer, _what: True
        await asyncio.sleep(self.random.uniform(0.05, 0.8))
        for name in names:
            del attributes[name]

    async def restart(self, number: int) -> None:
        await self.cluster.logs[number].stop()
        await asyncio.sleep(self.random.uniform(0.0, 0.3))
        await self.cluster.start(number)

    async def hand_over(self, number: int) -> None:
        with contextlib.suppress(CubeError):
            await self.cluster.logs[number].transfer_leadership(300)

    async def compact(self, number: int) -> None:
        await self.cluster.logs[number].compact()

    async def observe(self) -> None:
        while time.monotonic() < self.end:
            for number in self.cluster.leaders():
                term = self.cluster.logs[number].status().term
                self.leaders.setdefault(term, set()).add(number)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_acknowledged_is_lost_or_done_twice(tmp_path: Path, seed: int) -> None:
    cluster = RealCluster(tmp_path, FAST, has_tls=seed % 2 == 0)
    await cluster.found(MEMBERS)
    nemesis = Nemesis(cluster, seed)
    await asyncio.gather(
        nemesis.disturb(), nemesis.observe(), *(nemesis.propose(client) for client in range(6))
    )
    await until(lambda: len(cluster.leaders()) == 1, 30)
    payloads = await cluster.agree()
    await cluster.close()
    assert len(payloads) == len(set(payloads)), "an entry was applied twice"
    assert set(nemesis.acknowledged) <= set(payloads), "an acknowledged entry is lost"
    assert not set(nemesis.refused) & set(payloads), "a refused entry was done"
    assert all(len(seen) == 1 for seen in nemesis.leaders.values()), "two leaders in a term"
    assert len(nemesis.acknowledged) > 20
