"""Clusters of logs in one process, fake or real, driven alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from cube.adapters.raft import PySyncObjLog, RaftSettings
from cube.adapters.system_clock import SystemClock
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import NodeId
from cube.ports.cluster import LogRequest
from cube.ports.log import Log, Role
from cube.services.log_follower import LogFollower
from cube.services.state_feed import StateFeed
from tests.fake_log import FakeLog, FakeLogCluster
from tests.fakes.remote import FakeRemote
from tests.ports import free_port
from tests.raft_tls import Authority, MemberTls, Roster

PROPOSE_MS = 5_000


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """`condition` holds, within the deadline."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions come from other threads too
            await asyncio.sleep(0.005)


class ListReplica:
    """Remembers what was applied; its result names it, so that a test sees whose apply it was."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: list[tuple[int, int, int, bytes]] = []
        self.loads = 0

    def apply(self, index: int, term: int, at_ms: int, data: bytes) -> object:
        assert not self.entries or index > self.entries[-1][0], "applied out of order or twice"
        self.entries.append((index, term, at_ms, data))
        return (self.name, index)

    def dump(self) -> Callable[[], Iterator[bytes]]:
        entries = list(self.entries)
        return lambda: iter([msgspec.msgpack.encode(entries)])

    def load(self, data: bytes, index: int) -> None:
        self.entries = msgspec.msgpack.decode(data, type=list[tuple[int, int, int, bytes]])
        assert all(entry[0] <= index for entry in self.entries)
        self.loads += 1

    @property
    def payloads(self) -> list[bytes]:
        return [entry[3] for entry in self.entries]


class CompactingLog(Log, Protocol):
    async def compact(self) -> None: ...


class Lines(FakeRemote):
    """Members ask each other directly; `asked` counts who asked whom. A member in `cut` is not reached,
    nor is one that has no vote: it follows itself."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__()
        self.cluster = cluster
        self.number = number

    async def log(self, address: str, request: LogRequest) -> bytes:
        cluster = self.cluster
        number = next((n for n, known in cluster.addresses.items() if known == address), None)
        if number not in cluster.logs or {number, self.number} & cluster.cut:
            raise Unavailable(f"cannot reach {address}")
        log = cluster.logs[number]
        if log.status().role is Role.LEARNER:
            raise Unavailable("it has no vote")
        cluster.asked[self.number, number] = cluster.asked.get((self.number, number), 0) + 1
        return await log.feed(request.ask, request.wait_ms)


class Cluster:
    """Members by number. A stopped one keeps what a process would keep. Who has no vote follows whom
    it likes, as agents do."""

    def __init__(self) -> None:
        self.cut: set[int] = set()
        self.asked: dict[tuple[int, int], int] = {}
        self.followers: dict[int, LogFollower] = {}
        self._following: dict[int, asyncio.Task[None]] = {}
        self.logs: dict[int, CompactingLog] = {}
        self.replicas: dict[int, ListReplica] = {}
        self.addresses: dict[int, str] = {}

    def make(self, number: int, members: tuple[str, ...], *, joining: bool) -> CompactingLog:
        raise NotImplementedError

    async def start(
        self, number: int, members: tuple[str, ...] = (), *, joining: bool = False
    ) -> CompactingLog:
        self.replicas[number] = ListReplica(f"replica-{number}")
        log = self.make(number, members, joining=joining)
        await log.start()
        self.logs[number] = log
        follower = self.followers[number] = LogFollower(
            NodeId(str(number)),
            log,
            StateFeed(),
            SystemClock(),
            Lines(self, number),
            dict,
            lambda: [a for n, a in self.addresses.items() if n != number],
        )
        self._following[number] = asyncio.create_task(follower.run())
        return log

    async def found(self, size: int) -> CompactingLog:
        """Members 0 to size-1 run and vote; 0 leads."""
        leader = await self.start(0)
        await until(lambda: leader.status().ready and leader.status().role is Role.LEADER)
        for number in range(1, size):
            await self.join(number)
        return leader

    async def join(self, number: int) -> CompactingLog:
        leader = self.leader()
        log = await self.start(number, tuple(self.addresses.values()), joining=True)
        await leader.add_voter(self.addresses[number], PROPOSE_MS)
        await until(lambda: log.status().role is not Role.LEARNER)
        return log

    async def stop(self, number: int) -> None:
        await self.logs.pop(number).stop()
        following = self._following.pop(number, None)
        if following is None:
            return
        assert not following.done(), following
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    async def close(self) -> None:
        for number in list(self.logs):
            await self.stop(number)

    def leader(self) -> CompactingLog:
        return self.logs[self.leader_number()]

    def leader_number(self) -> int:
        leaders = [n for n, log in self.logs.items() if log.status().role is Role.LEADER]
        assert len(leaders) == 1
        return leaders[0]

    def leaders(self) -> list[int]:
        return [
            number
            for number, log in self.logs.items()
            if log.status().role is Role.LEADER and log.status().ready
        ]

    async def agree(self) -> list[bytes]:
        """All running members have applied the same; returns what."""

        def same() -> bool:
            entries = [self.replicas[number].entries for number in self.logs]
            return all(one == entries[0] for one in entries)

        await until(lambda: len(self.leaders()) == 1)
        await self.leader().barrier(PROPOSE_MS)
        index = self.leader().status().applied_index
        await until(lambda: all(x.status().applied_index >= index for x in self.logs.values()))
        assert same()
        return next(iter(self.replicas[number] for number in self.logs)).payloads


class FakeCluster(Cluster):
    def __init__(self) -> None:
        super().__init__()
        self.cluster = FakeLogCluster()

    def make(self, number: int, members: tuple[str, ...], *, joining: bool) -> CompactingLog:
        address = self.addresses.setdefault(number, f"member-{number}:1")
        return FakeLog(
            address,
            self.cluster,
            self.replicas[number],
            lambda: 1_000 * (number + 1),
            members=members,
            joining=joining,
        )


class RealCluster(Cluster):
    def __init__(
        self, directory: Path, settings: RaftSettings | None = None, *, has_tls: bool = False
    ) -> None:
        super().__init__()
        self.directory = directory
        self.settings = settings or RaftSettings()
        self.authority = Authority() if has_tls else None
        self.roster = Roster()
        self.fatal: list[BaseException] = []

    def make(self, number: int, members: tuple[str, ...], *, joining: bool) -> PySyncObjLog:
        address = self.addresses.setdefault(number, f"127.0.0.1:{free_port()}")
        return PySyncObjLog(
            address,
            data_dir=self.directory / str(number),
            replica=self.replicas[number],
            stamp=lambda: 1_000 * (number + 1),
            members=members,
            settings=self.settings,
            joining=joining,
            cluster=str(self.directory),
            on_fatal=self.fatal.append,
            tls=self.tls_of(number),
        )

    def tls_of(self, number: int) -> MemberTls | None:
        """Node `node-<number>` at its address, with a certificate."""
        if self.authority is None:
            return None
        name = f"node-{number}"
        self.roster.ids[self.addresses[number]] = NodeId(name)
        directory = self.directory / f"trust-{number}"
        return MemberTls(directory, self.authority, name, self.roster)

    async def close(self) -> None:
        await super().close()
        assert self.fatal == []


async def propose_surely(log: Log, data: bytes, deadline_s: float = 15.0) -> None:
    """`data` is committed at least once, over any election."""
    async with asyncio.timeout(deadline_s):
        while True:
            try:
                await log.propose(data, 1_000)
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(0.01)
            else:
                return
