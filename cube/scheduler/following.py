"""Whom a node without a vote follows: architecture.md, "Membership and voters". Pure: sources and
times in, an address out.

Every learner ranks the voters by a hash of itself and the voter (rendezvous hashing), so that learners
spread over them evenly, and only those of a dead voter go elsewhere. The leader comes last: it has
other work. Who fails, or falls behind, is passed over for a while that doubles, and is returned to
afterwards; when all are, the one that may be asked again first is. Nothing is decided for ever.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence

import msgspec

# How long a source that failed is passed over, the first time; doubles up to the last.
PENALTY_MS_MIN = 500
PENALTY_MS_MAX = 30_000
# When all sources are passed over, one of them is asked this long after the last failure.
RETRY_MS = 1_000
# A voter whose leader is gone hears the next one sooner than this; it is worth waiting for.
STALE_MS = 2_500
# Between two questions to one that has just answered, while nobody here waits for the answer:
# a busy log comes in larger pieces then, and costs the voter less.
PACE_MS = 20
# Sources remembered: those that do not vote any more are forgotten, the oldest first.
REMEMBERED_MAX = 64


class Source(msgspec.Struct, frozen=True):
    """A node that may be asked, by its HTTP address. `is_alive`: gossip has nothing against it. One
    that does not vote, as far as is known here, is asked when no voter answers: it may by now."""

    address: str
    is_alive: bool = True
    is_leader: bool = False
    is_voter: bool = True


class Result(enum.Enum):
    FINE = "fine"
    STALE = "stale"  # it answers, and hears no leader itself or is behind
    FAILED = "failed"


class _Record(msgspec.Struct):
    penalty_ms: int = 0
    free_at_ms: int = 0
    stale_since_ms: int | None = None


def rank(me: str, address: str) -> int:
    """The higher, the sooner it is followed by `me`. The same on every run and host."""
    digest = hashlib.blake2b(f"{me}\0{address}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


class Choice(msgspec.Struct, frozen=True):
    """Ask `address`, not before `at_ms`."""

    address: str
    at_ms: int


class Sources:
    """What is known of each source, and so which one is next. Owner: the loop that asks."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._records: dict[str, _Record] = {}
        self._hint: str | None = None
        self._answered_at_ms: int | None = None
        self._failed_at_ms = 0

    def choose(
        self,
        sources: Sequence[Source],
        now_ms: int,
        *,
        is_awaited: bool = False,
        keep: str | None = None,
    ) -> Choice | None:
        """None: there is nobody to ask. `is_awaited`: somebody here waits for what comes next.
        `keep`: a source that is not left for a better one: half a snapshot is here of it."""
        known = {source.address: source for source in sources}
        if self._hint is not None:
            known.setdefault(self._hint, Source(self._hint, is_leader=True))
        if not known:
            return None
        ranked = sorted(known.values(), key=self._key)
        free = [s for s in ranked if self._free_at_ms(s.address) <= now_ms]
        if free:
            best = next((s for s in free if s.address == keep), free[0])
        else:
            best = min(ranked, key=lambda source: self._free_at_ms(source.address))
        at_ms = min(self._free_at_ms(best.address), self._failed_at_ms + RETRY_MS)
        at_ms = max(now_ms, at_ms)
        if self._answered_at_ms is not None and not is_awaited:
            at_ms = max(at_ms, self._answered_at_ms + PACE_MS)
        return Choice(best.address, at_ms)

    def _key(self, source: Source) -> tuple[bool, bool, bool, int]:
        score = rank(self._me, source.address)
        return (not source.is_voter, not source.is_alive, source.is_leader, -score)

    def _free_at_ms(self, address: str) -> int:
        record = self._records.get(address)
        return 0 if record is None else record.free_at_ms

    def on_result(self, address: str, result: Result, now_ms: int) -> None:
        """What came of asking `address`. A stale source is passed over once it stays so."""
        record = self._records.pop(address, None) or _Record()
        self._records[address] = record
        while len(self._records) > REMEMBERED_MAX:
            del self._records[next(iter(self._records))]
        self._answered_at_ms = None if result is Result.FAILED else now_ms
        if result is Result.FINE:
            self._records[address] = _Record()
            return
        if result is Result.STALE:
            if record.stale_since_ms is None:
                record.stale_since_ms = now_ms
            if now_ms - record.stale_since_ms < STALE_MS:
                return
        if address == self._hint:
            self._hint = None
        self._failed_at_ms = now_ms
        record.stale_since_ms = None
        record.penalty_ms = min(max(PENALTY_MS_MIN, 2 * record.penalty_ms), PENALTY_MS_MAX)
        record.free_at_ms = now_ms + record.penalty_ms

    def on_redirect(self, address: str, leader: str, now_ms: int) -> None:
        """`address` does not vote, and named who leads: good to begin with."""
        self.on_result(address, Result.FAILED, now_ms)
        if leader != address:
            self._hint = leader
