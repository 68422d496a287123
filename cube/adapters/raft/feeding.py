"""What a member answers those that follow its log: the bytes of an answer, and who gets which.

Only committed entries are sent, so nothing need ever be taken back, and any member may send them:
what is committed is the same everywhere. All of it runs on the caller's loop; the Raft thread
leaves a View behind each turn, and a word when somebody waits for one. The entries of a View are
the journal's own list: they are never changed, only added to and dropped as a whole list, and a
slice of a list is taken in one step of the interpreter. So the answer to all who stand at the same
place is encoded once, and no file is read but a snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from cube.adapters.raft.commands import (
    ADDRESS_CHARS_MAX,
    KIND_DATA,
    KIND_MEMBERS,
    KIND_NO_OP,
    decode_members,
    kind_of,
    split,
)
from cube.adapters.raft.library import Entry
from cube.adapters.raft.snapshots import SnapshotPieces
from cube.model.errors import BadPacket, Unavailable
from cube.ports.log import FEED_BYTES_MAX, FOLLOWERS_MAX, Ask

# Of one answer. Enough that a learner which is behind catches up in few rounds, little enough that a
# hundred of them that read slowly fit into memory.
ANSWER_ENTRIES_MAX = 5_000
ANSWER_ENTRY_BYTES_MAX = 1 << 20
# However long an asker would wait: it wants to know that this member is there.
WAIT_MS_MAX = 5_000
# Remembered, so that those who stand at the same place share one: a tip that moved on a few times.
ANSWERS_KEPT = 4

_Index = Annotated[int, msgspec.Meta(ge=0)]
_Address = Annotated[str, msgspec.Meta(max_length=ADDRESS_CHARS_MAX)]
_KINDS = (KIND_DATA, KIND_NO_OP, KIND_MEMBERS)


class Office(msgspec.Struct, frozen=True):
    """Who leads, as far as the member that answers knows; an empty `leader` is unknown. `is_current`:
    that member hears the leader, and is not far behind it. `cluster` (and lineage) as in its hello:
    nobody takes the history of another one."""

    term: _Index
    leader: _Address
    is_current: bool
    cluster: _Address

    def __str__(self) -> str:
        return f"{self.term} {self.leader} {int(self.is_current)}"


class Entries(msgspec.Struct, frozen=True, tag=True):
    """`entries` follow (previous_index, previous_term), and are committed."""

    office: Office
    commit_index: _Index
    previous_index: _Index
    previous_term: _Index
    entries: list[tuple[bytes, _Index, _Index]]


class Piece(msgspec.Struct, frozen=True, tag=True):
    """`data` is at `offset` of the snapshot that stands at `index`."""

    office: Office
    index: _Index
    offset: _Index
    is_last: bool
    data: bytes


Answer = Entries | Piece
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def decode_answer(data: bytes) -> Answer:
    """Raises BadPacket for all that a member would not answer."""
    if len(data) > FEED_BYTES_MAX:
        raise BadPacket(f"an answer of {len(data)} bytes")
    try:
        answer = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise BadPacket(f"an answer cannot be read: {error}") from None
    if isinstance(answer, Entries):
        index, term = answer.previous_index, answer.previous_term
        for command, entry_index, entry_term in answer.entries:
            index += 1
            if entry_index != index or entry_term < term or kind_of(command) not in _KINDS:
                raise BadPacket(f"an answer has no entry where {index} should be")
            term = entry_term
            if kind_of(command) == KIND_MEMBERS:
                decode_members(command)
            elif kind_of(command) == KIND_DATA:
                split(command)
        if index > answer.commit_index:
            raise BadPacket("an answer has entries that are not committed")
    return answer


class View(msgspec.Struct, frozen=True):
    """A member's log, as of a turn of its thread."""

    office: Office
    commit_index: int
    entries: Sequence[Entry]
    fault: str


class LogFeed:
    """One owner: the caller's loop; `view` and `is_awaited` are for the Raft thread, too."""

    def __init__(self, directory: Path) -> None:
        """`directory` is the member's: its snapshot is there."""
        self.view: View | None = None
        self._pieces = SnapshotPieces(directory / "snapshot")
        self._reading = asyncio.Lock()  # one piece at a time: it is a matter of disk and memory
        self._waiting = 0
        self._news = asyncio.Event()
        self._answers: dict[tuple[object, ...], bytes] = {}
        self._is_closed = False

    @property
    def is_awaited(self) -> bool:
        return self._waiting > 0

    def on_news(self) -> None:
        """`view` says something that it did not say before."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def close(self) -> None:
        self._is_closed = True
        self.on_news()
        self._pieces.close()

    async def feed(self, ask: Ask, wait_ms: int) -> bytes:
        """See cube.ports.log.Log."""
        if self._waiting >= FOLLOWERS_MAX:
            raise Unavailable(f"{FOLLOWERS_MAX} members follow this one already")
        now_s = asyncio.get_running_loop().time
        deadline_s = now_s() + min(wait_ms, WAIT_MS_MAX) / 1000
        self._waiting += 1
        try:
            while True:
                news = self._news
                answer = await self._answer(ask, is_late=now_s() >= deadline_s)
                if answer is not None:
                    return answer
                try:
                    async with asyncio.timeout_at(deadline_s):
                        await news.wait()
                except TimeoutError:
                    continue
        finally:
            self._waiting -= 1

    async def _answer(self, ask: Ask, *, is_late: bool) -> bytes | None:
        """None while there is nothing new to say, and time to wait for it."""
        view = self.view
        if view is None or self._is_closed:
            raise Unavailable("the log is not running")
        if view.fault:
            raise Unavailable(view.fault)
        entries = view.entries
        first_index = entries[0][1]
        if ask.index > view.commit_index:
            if is_late:
                raise Unavailable(f"this member has {view.commit_index}, and not yet {ask.index}")
            return None
        if ask.index < first_index or (ask.snapshot and self._pieces.has(ask.snapshot)):
            return await self._piece(view, ask)
        position = ask.index - first_index
        if entries[position][2] != ask.term:
            raise Unavailable(f"entry {ask.index} is of another term here: not the same history")
        if ask.index == view.commit_index and ask.office == str(view.office) and not is_late:
            return None
        end = view.commit_index - first_index + 1
        return self._encode(view, ask, _cut(entries[position + 1 : end][:ANSWER_ENTRIES_MAX]))

    def _encode(self, view: View, ask: Ask, entries: list[Entry]) -> bytes:
        key = (ask.index, ask.term, len(entries), view.commit_index, view.office)
        answer = self._answers.get(key)
        if answer is None:
            answer = _encoder.encode(
                Entries(view.office, view.commit_index, ask.index, ask.term, entries)
            )
            while len(self._answers) >= ANSWERS_KEPT:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = answer
        return answer

    async def _piece(self, view: View, ask: Ask) -> bytes:
        async with self._reading:
            try:
                index, offset, data, is_last = await asyncio.to_thread(
                    self._pieces.read, ask.snapshot, ask.offset
                )
            except (OSError, BadPacket) as error:
                raise Unavailable(f"the snapshot cannot be read: {error}") from None
        return _encoder.encode(Piece(view.office, index, offset, is_last, data))


def _cut(entries: Sequence[Entry]) -> list[Entry]:
    """As many of them as make an answer, one at least."""
    size = 0
    for number, entry in enumerate(entries):
        size += len(entry[0])
        if size > ANSWER_ENTRY_BYTES_MAX and number:
            return list(entries[:number])
    return list(entries)
