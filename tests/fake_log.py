"""An in-memory Log: a whole cluster in one event loop, with no thread, clock or disk.

FakeLogCluster is the agreed list of entries and outlives its members, as data directories do.
What real clusters only do now and then can be asked for: `outcomes_to_lose`, `cut_off`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from cube.model.errors import BadPacket, OutcomeUnknown, Unavailable
from cube.ports.log import (
    ENTRY_BYTES_MAX,
    Ask,
    Committed,
    LogStatus,
    Progress,
    Replica,
    Role,
    Taken,
    Voter,
)

FEED_LOOK_MS = 10


class Entry(msgspec.Struct, frozen=True):
    """`data` is None for a leader's first entry, a barrier and a change of the voters."""

    index: int
    term: int
    at_ms: int
    data: bytes | None
    voters: tuple[str, ...]


class FakeAnswer(msgspec.Struct, frozen=True):
    """What feed() answers."""

    leader: str | None
    entries: list[Entry]
    applied_index: int


class FakeLogCluster:
    """What all members agree on. There is a leader while a majority of the voters runs."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.voters: tuple[str, ...] = ()
        self.running: dict[str, FakeLog] = {}
        self.joining: set[str] = set()
        self.term = 0
        self.leader: str | None = None
        # This many next proposals are committed, and their proposers not told.
        self.outcomes_to_lose = 0
        # These run, but hear nobody and are heard by nobody.
        self.cut_off: set[str] = set()
        # Where each member's snapshot stands: (bytes, index). Entries before it are not replayed.
        self.snapshots: dict[str, tuple[bytes, int]] = {}

    @property
    def last_index(self) -> int:
        return self.entries[-1].index if self.entries else 0

    def reachable(self) -> list[str]:
        return [voter for voter in self.voters if self.is_reachable(voter)]

    def is_reachable(self, address: str) -> bool:
        return address in self.running and address not in self.cut_off

    def hears_leader(self, address: str) -> bool:
        """A leader sends its log to voters; others are told of it by whom they follow."""
        if self.leader is None or not self.is_reachable(address):
            return False
        return address in self.voters or self.running[address].told_leader == self.leader

    def has_quorum(self) -> bool:
        return len(self.reachable()) > len(self.voters) // 2

    def settle(self) -> None:
        """A leader holds office exactly while it can; everybody knows all that is committed."""
        leader = self.leader
        if not self.has_quorum():
            self.leader = None
        elif leader is None or leader not in self.reachable():
            self.elect(self.reachable()[0])
        self.spread()

    def elect(self, address: str) -> None:
        self.term += 1
        self.leader = address
        self.append(None, self.voters)

    def append(self, data: bytes | None, voters: tuple[str, ...]) -> Entry:
        assert self.leader is not None
        at_ms = self.running[self.leader].stamp()
        entry = Entry(self.last_index + 1, self.term, at_ms, data, voters)
        self.entries.append(entry)
        self.voters = voters
        self.joining -= set(voters)
        self.spread()
        return entry

    def spread(self) -> None:
        for address, log in list(self.running.items()):
            log.catch_up(is_heard=address not in self.cut_off)


class FakeLog:
    """A member. Restart it by making another one of the same address."""

    def __init__(
        self,
        address: str,
        cluster: FakeLogCluster,
        replica: Replica,
        stamp: Callable[[], int] = lambda: 0,
        *,
        members: tuple[str, ...] = (),
        joining: bool = False,
    ) -> None:
        self.address = address
        self.cluster = cluster
        self.replica = replica
        self.stamp = stamp
        self._members = members
        self._is_joining = joining
        self._applied_index = 0
        self._results: dict[int, object] = {}
        self._watchers: list[Callable[[LogStatus], None]] = []
        self._watched: tuple[object, ...] = ()
        self.told_leader: str | None = None  # by whom it follows, without a vote
        self._waiting = 0

    # --- the Log port

    async def start(self) -> None:
        cluster = self.cluster
        if self.address in cluster.running:
            raise Unavailable("the address is in use")
        if self._is_joining:
            cluster.joining.add(self.address)
        elif not cluster.voters and self.address not in cluster.joining:
            cluster.voters = tuple(sorted({self.address, *self._members}))
        if self.address in cluster.snapshots:
            data, index = cluster.snapshots[self.address]
            self.replica.load(data, index)
            self._applied_index = index
        cluster.running[self.address] = self
        await asyncio.sleep(0)
        cluster.settle()

    async def stop(self) -> None:
        self.cluster.running.pop(self.address, None)
        await asyncio.sleep(0)
        self.cluster.settle()

    async def propose(self, data: bytes, timeout_ms: int) -> Committed:
        if len(data) > ENTRY_BYTES_MAX:
            raise Unavailable("too large")
        await self._expect_leader(timeout_ms)
        entry = self.cluster.append(data, self.cluster.voters)
        await self._applied(entry.index, timeout_ms)
        if self.cluster.outcomes_to_lose:
            self.cluster.outcomes_to_lose -= 1
            raise OutcomeUnknown("the outcome was lost")
        if entry.index not in self._results:
            raise OutcomeUnknown("cut off on the way")
        return Committed(entry.index, entry.term, self._results.pop(entry.index))

    async def barrier(self, timeout_ms: int) -> int:
        await self._expect_leader(timeout_ms)
        entry = self.cluster.append(None, self.cluster.voters)
        await self._applied(entry.index, timeout_ms)
        if self._applied_index < entry.index:
            raise Unavailable("cut off on the way")
        return self._applied_index

    def status(self) -> LogStatus:
        cluster = self.cluster
        hears = cluster.hears_leader(self.address)
        if hears and cluster.leader == self.address:
            role = Role.LEADER
        else:
            is_voter = self.address in cluster.voters and self.address not in cluster.joining
            role = Role.VOTER if is_voter else Role.LEARNER
        return LogStatus(
            role=role,
            term=cluster.term,
            leader=cluster.leader if hears else None,
            commit_index=self._applied_index,
            applied_index=self._applied_index,
            voters=tuple(Voter(address) for address in sorted(cluster.voters)),
            quorum=hears,
            ready=self.address in cluster.running,
        )

    def watch(self, callback: Callable[[LogStatus], None]) -> None:
        self._watchers.append(callback)

    def ask(self) -> Ask:
        term = self.cluster.entries[self._applied_index - 1].term if self._applied_index else 0
        return Ask(self._applied_index, term)

    def is_awaited(self) -> bool:
        return self._waiting > 0

    async def feed(self, ask: Ask, wait_ms: int) -> bytes:
        cluster = self.cluster
        for look in range(1 + wait_ms // FEED_LOOK_MS):
            if not cluster.is_reachable(self.address):
                raise Unavailable("nobody hears it")
            leader = cluster.leader if cluster.hears_leader(self.address) else None
            entries = cluster.entries[ask.index : self._applied_index]
            is_late = (look + 1) * FEED_LOOK_MS > wait_ms
            if entries or is_late or ask.office != (leader or "nobody"):
                return msgspec.msgpack.encode(FakeAnswer(leader, entries, self._applied_index))
            await asyncio.sleep(FEED_LOOK_MS / 1000)
        raise AssertionError("the last look answers")

    async def take(self, source: str, answer: bytes) -> Taken:
        cluster = self.cluster
        try:
            told = msgspec.msgpack.decode(answer, type=FakeAnswer)
        except msgspec.MsgspecError as error:
            raise BadPacket(str(error)) from None
        if not cluster.is_reachable(self.address):
            raise Unavailable("nobody hears it")
        if self.address not in cluster.voters:
            self.told_leader = told.leader
            for entry in told.entries:
                if entry.index == self._applied_index + 1:
                    self._apply(entry)
        self._tell_watchers()
        ask = self.ask()
        ask = msgspec.structs.replace(ask, office=told.leader or "nobody")
        return Taken(ask, told.leader is not None, told.applied_index > self._applied_index)

    def progress(self) -> tuple[Progress, ...]:
        cluster = self.cluster
        if cluster.leader != self.address:
            return ()
        others = {*cluster.voters} - {self.address}
        return tuple(
            Progress(
                address,
                cluster.running[address].applied_index,
                cluster.last_index - cluster.running[address].applied_index,
                0,
            )
            if cluster.hears_leader(address)
            else Progress(address, 0, cluster.last_index, 60_000)
            for address in sorted(others)
        )

    async def add_voter(self, address: str, timeout_ms: int) -> None:
        await self._expect_leadership(timeout_ms)
        if address in self.cluster.voters:
            return
        if not self.cluster.is_reachable(address):
            await asyncio.sleep(timeout_ms / 1000)
            raise Unavailable("the new voter did not catch up")
        self.cluster.append(None, tuple(sorted({*self.cluster.voters, address})))

    async def remove_voter(self, address: str, timeout_ms: int) -> None:
        await self._expect_leadership(timeout_ms)
        if address == self.address:
            raise Unavailable("a leader cannot remove itself")
        if address in self.cluster.voters:
            self.cluster.append(None, tuple(v for v in self.cluster.voters if v != address))

    async def transfer_leadership(self, timeout_ms: int, to: str | None = None) -> None:
        await self._expect_leadership(timeout_ms)
        if to == self.address:
            return
        others = [v for v in self.cluster.reachable() if v != self.address and to in (None, v)]
        if not others:
            raise Unavailable("nobody to hand over to")
        self.cluster.elect(others[0])

    async def compact(self) -> None:
        self.cluster.snapshots[self.address] = (
            b"".join(self.replica.dump()()),
            self._applied_index,
        )

    # --- inside

    @property
    def applied_index(self) -> int:
        return self._applied_index

    def catch_up(self, *, is_heard: bool) -> None:
        if is_heard and self.address in self.cluster.voters:
            for entry in self.cluster.entries[self._applied_index :]:
                self._apply(entry)
        self._tell_watchers()

    def _apply(self, entry: Entry) -> None:
        self._applied_index = entry.index
        if entry.data is not None:
            result = self.replica.apply(entry.index, entry.term, entry.at_ms, entry.data)
            self._results[entry.index] = result
            self._results.pop(entry.index - 10_000, None)

    def _tell_watchers(self) -> None:
        status = self.status()
        watched = (status.role, status.term, status.leader, status.voters, status.quorum)
        if watched != self._watched:
            self._watched = watched
            for watcher in self._watchers:
                asyncio.get_running_loop().call_soon(watcher, status)

    async def _applied(self, index: int, timeout_ms: int) -> None:
        """Until the entry is applied here, or the deadline: who follows gets it a little later."""
        await asyncio.sleep(0)
        self._waiting += 1
        for _ in range(timeout_ms // FEED_LOOK_MS):
            if self._applied_index >= index or self.cluster.running.get(self.address) is not self:
                break
            if self.address in self.cluster.voters:
                break
            await asyncio.sleep(FEED_LOOK_MS / 1000)
        self._waiting -= 1

    async def _expect_leader(self, timeout_ms: int) -> None:
        await asyncio.sleep(0)
        if self.cluster.running.get(self.address) is not self or timeout_ms <= 0:
            raise Unavailable("the log is not running")
        if not self.cluster.hears_leader(self.address):
            raise Unavailable("no leader is known")

    async def _expect_leadership(self, timeout_ms: int) -> None:
        await self._expect_leader(timeout_ms)
        if self.cluster.leader != self.address:
            raise Unavailable("not the leader")
