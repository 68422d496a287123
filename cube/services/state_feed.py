"""commit → apply → publish. The one place where entries become state on this node."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from cube.model.cluster import ClusterState
from cube.model.codec import decode_command
from cube.model.commands import ApplyPlan, Body, Entry
from cube.model.errors import BadPacket
from cube.model.events import Event
from cube.model.outcome import Outcome, Rejected, RejectReason
from cube.ports.cluster import Published
from cube.statemachine import snapshot
from cube.statemachine.apply import Step, apply

# Remembered for watchers that resume: five full plans, or some minutes of a busy cluster; about 20 MB.
# Counted in events: one entry may have ten thousand.
EVENTS_KEPT = 50_000
TRAIL_STEPS_MAX = 10_000  # entries between two looks of a leader: seconds of a busy log
# Placements of one entry from which on applying it is not interrupted by the garbage collector: it
# took two fifths of the time. What is a cycle's garbage at that moment is not given back, and these
# are too few for that to add up.
LARGE_PLACEMENTS = 500
_ALL_OF_IT = 1 << 32  # above the number of events of any entry

_log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """`events`: all that led from `before` to `after`; None: they are not known."""

    before: ClusterState
    after: ClusterState
    events: list[Event] | None


class Trail:
    """What has been applied since the last look, for one reader on the loop."""

    def __init__(self, state: ClusterState) -> None:
        self._last = state
        self._steps: deque[tuple[ClusterState, ClusterState, tuple[Event, ...] | None]] = deque(
            maxlen=TRAIL_STEPS_MAX
        )

    def add(
        self, before: ClusterState, after: ClusterState, events: tuple[Event, ...] | None
    ) -> None:
        """On the log's thread. None: `after` came in one piece."""
        self._steps.append((before, after, events))

    def look(self) -> Seen:
        before = after = self._last
        events: list[Event] | None = []
        while self._steps:
            came_from, after_step, news = self._steps.popleft()
            # A step that is missing was before the first look, or one of too many.
            if came_from is not after or news is None:
                events = None
            elif events is not None:
                events.extend(news)
            after = after_step
        self._last = after
        return Seen(before, after, events)


class AppliedEntry(msgspec.Struct, frozen=True):
    """What a proposal comes back with."""

    outcome: Outcome
    index: int


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Nothing made inside is looked at by the garbage collector, now or later: a state of 100,000
    tasks holds up every thread for a quarter of a second each time. It has no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _is_large(body: Body) -> bool:
    return isinstance(body, ApplyPlan) and (
        sum(len(placement.slots) for placement in body.placements) >= LARGE_PLACEMENTS
    )


class StateFeed:
    """The replica that the log drives (its thread), and what the loops read (any thread).

    `state` is the newest applied state: one reference, replaced as a whole. Subscribers wait with
    changed(); events are remembered for a while for those that resume.
    """

    def __init__(self) -> None:
        self.state = ClusterState()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._published: deque[Published] = deque()
        self._events_kept = 0
        self._incoming: deque[Published] = deque()
        self._wake_pending = False
        self._trail: Trail | None = None
        # (index, number) of the newest event that is not remembered here any more.
        self._forgotten = (0, -1)
        self._restored_index: int | None = None
        # Held while a large entry is applied, and by who plans on the loop: in one process the two
        # can only take turns, and then both take as long as both together.
        self.large_entries = threading.Lock()

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Publications go to this loop from now on."""
        self._loop = loop

    # On the log's thread (ports.log.Replica)

    def apply(self, index: int, term: int, at_ms: int, data: bytes) -> AppliedEntry:
        """See Replica. Bytes that do not decode are a command of a newer release: going on without
        it would make this replica differ, so BadPacket ends the process."""
        entry = Entry(index, term, at_ms, decode_command(data))
        try:
            if _is_large(entry.command.body):
                with self.large_entries, _no_collections():
                    step = apply(self.state, entry)
            else:
                step = apply(self.state, entry)
        except (MemoryError, RecursionError):
            raise
        except Exception as error:  # noqa: BLE001 - a named boundary (DESIGN.md)
            # A bug. Every replica has it alike and keeps the old state, which is safe: immutable.
            _log.critical(
                "apply_failed index=%d command=%s",
                index,
                type(entry.command.body).__name__,
                exc_info=True,
            )
            state = msgspec.structs.replace(self.state, index=index, term=term)
            refusal = Rejected(RejectReason.INTERNAL, f"internal error: {error!r}"[:200])
            step = Step(state, refusal, (), index)
        before, self.state = self.state, step.state
        if self._trail is not None:
            self._trail.add(before, step.state, step.events)
        self._hand_over(Published(index, step.state.now_ms, step.events))
        return AppliedEntry(step.outcome, step.index)

    def dump(self) -> Callable[[], Iterator[bytes]]:
        state = self.state
        return lambda: snapshot.dump_slices(state)

    def load(self, data: bytes, index: int) -> None:
        with _no_collections():
            state = snapshot.load(data)
        if state.index > index:
            raise BadPacket(f"a dump at index {index} holds a state of index {state.index}")
        before, self.state = self.state, state
        if self._trail is not None:
            self._trail.add(before, state, None)
        self._restored_index = state.index
        self._hand_over(None)

    def _hand_over(self, published: Published | None) -> None:
        if published is not None and published.events:
            self._incoming.append(published)
        if self._loop is not None and not self._wake_pending:
            self._wake_pending = True
            try:
                self._loop.call_soon_threadsafe(self._publish)
            except RuntimeError:  # the loop is closed: the process is ending
                self._loop = None

    # On the main loop

    def _publish(self) -> None:
        self._wake_pending = False
        while self._incoming:
            entry = self._incoming.popleft()
            self._published.append(entry)
            self._events_kept += len(entry.events)
        while self._events_kept > EVENTS_KEPT:
            oldest = self._published.popleft()
            self._events_kept -= len(oldest.events)
            self._forgotten = (oldest.index, len(oldest.events) - 1)
        if self._restored_index is not None:
            # How many events its last entry had, a dump does not say.
            self._forgotten = max(self._forgotten, (self._restored_index, _ALL_OF_IT))
            self._restored_index = None
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    @contextlib.contextmanager
    def trail(self) -> Iterator[Trail]:
        """A trail that begins now. Only one is kept, the newest."""
        trail = self._trail = Trail(self.state)
        try:
            yield trail
        finally:
            if self._trail is trail:
                self._trail = None

    async def changed(self, after_index: int) -> ClusterState:
        """The newest state, as soon as its index is above `after_index`."""
        while self.state.index <= after_index:
            await self._changed.wait()
        return self.state

    async def wait_index(self, index: int, timeout_ms: int) -> bool:
        """True as soon as `index` is applied; False at the deadline."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self.changed(index - 1)
        except TimeoutError:
            return False
        return True

    def events_since(self, index: int, number: int) -> list[Published] | None:
        """See ports.cluster.Cluster."""
        if (index, number) < self._forgotten or index > self.state.index:
            return None
        found: list[Published] = []
        for entry in reversed(self._published):
            if entry.index < index or (entry.index == index and len(entry.events) <= number + 1):
                break
            found.append(entry)
        found.reverse()
        return found

    def events_kept(self) -> list[Published]:
        """See ports.cluster.Cluster."""
        first = self._forgotten[0]
        return [entry for entry in self._published if entry.events and entry.index > first]
