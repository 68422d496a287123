"""A task's output read back: over rotated files and attempts, both streams merged by time.

Only reads, and never waits; the files are written by supervisors meanwhile (output.py).
"""

from __future__ import annotations

import contextlib
import heapq
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cube.adapters.process.output import INDEX_BYTES, segment_numbers, segment_path
from cube.model.launch import LogChunk

CHUNK_BYTES = 64 * 1024  # of one LogChunk
TAIL_BYTES_MAX = 8 << 20  # searched for the last lines; older ones are left out
TAIL_PIECES_MAX = 65_536  # likewise: a task that writes a little often has many small ones
STREAMS = ("stdout", "stderr")


class Piece(msgspec.Struct, frozen=True):
    """Bytes of one segment that were written at one time (to 10 ms). `dropped_bytes`: before them."""

    at_ms: int
    stream: str
    segment: int
    offset: int
    length: int
    dropped_bytes: int = 0


class StreamReader:
    """One stream's pieces, each once, oldest first."""

    def __init__(self, directory: Path, stream: str) -> None:
        self._directory, self._stream = str(directory), stream
        self._segment = self._offset = self._entries = self._at_ms = 0
        self._largest = 0  # segment that was seen: what one that was not seen will have had
        self._dropped = 0

    def new_pieces(self) -> Iterator[Piece]:
        """What was written since it was last called, as it is asked for: it may be left at any piece.
        What was dropped meanwhile is skipped, and counted."""
        try:
            numbers = segment_numbers(self._directory, self._stream)
        except FileNotFoundError:
            return
        for number in numbers:
            if number < self._segment:
                continue
            if number > self._segment:
                self._enter(number, numbers[0])
            yield from self._of_segment()

    def _enter(self, number: int, oldest: int) -> None:
        """From the end of one segment to the next that is there."""
        if self._segment and oldest > self._segment:  # it went away before it was read to its end
            self._note_size(number)
            self._dropped += max(0, self._largest - self._offset)
            self._dropped += (number - self._segment - 1) * self._largest
        self._segment, self._offset, self._entries, self._at_ms = number, 0, 0, 0

    def _note_size(self, number: int) -> None:
        path = segment_path(self._directory, self._stream, number) + ".log"
        with contextlib.suppress(FileNotFoundError):
            self._largest = max(self._largest, os.stat(path).st_size)

    def _of_segment(self) -> Iterator[Piece]:
        path = segment_path(self._directory, self._stream, self._segment)
        try:
            size = os.stat(path + ".log").st_size  # before the index: then all of it is indexed
            with open(path + ".idx", "rb") as index:
                index.seek(self._entries * INDEX_BYTES)
                entries = index.read()
        except FileNotFoundError:
            return
        self._largest = max(self._largest, size)
        for start in range(0, len(entries) - INDEX_BYTES + 1, INDEX_BYTES):
            begins = int.from_bytes(entries[start : start + 8], "big")
            if begins > size:
                break
            yield from self._up_to(begins)
            self._at_ms = int.from_bytes(entries[start + 8 : start + INDEX_BYTES], "big")
            self._entries += 1
        yield from self._up_to(size)

    def _up_to(self, end: int) -> Iterator[Piece]:
        while self._offset < end:
            offset, length = self._offset, min(end - self._offset, CHUNK_BYTES)
            self._offset += length
            dropped, self._dropped = self._dropped, 0
            yield Piece(self._at_ms, self._stream, self._segment, offset, length, dropped)


class LogReader:
    """The output of one task. Each call of read() gives what comes next. Holds little, however much
    there is: pieces are found as they are read, and of a tail TAIL_BYTES_MAX are looked at."""

    def __init__(
        self, directory: Path, streams: tuple[str, ...], tail: int | None, since_ms: int
    ) -> None:
        self._directory = directory
        self._readers = [StreamReader(directory, s) for s in STREAMS if s in streams]
        self._since_ms = since_ms
        self._files: dict[tuple[str, int], int] = {}
        self._lost: dict[str, int] = {}  # bytes whose segment went away after they were found
        # read() runs in a thread that outlives a cancelled call: it must not see its files closed.
        self._files_lock = threading.Lock()
        self._coming = self._look()
        self._waiting: list[Piece] = []  # the last lines of the past, the next one last
        self._cut = b""  # what of the first waiting piece is wanted, when only a part is
        if tail is not None:
            self._waiting = _last(self._coming)
            self._keep_last(tail)

    def read(self, bytes_max: int) -> list[LogChunk]:
        """The next chunks, about this much; empty when there is nothing now."""
        with self._files_lock:
            return self._read(bytes_max)

    def _read(self, bytes_max: int) -> list[LogChunk]:
        chunks: list[LogChunk] = []
        total = 0
        while total < bytes_max:
            piece = self._waiting.pop() if self._waiting else next(self._coming, None)
            if piece is None:
                self._coming = self._look()
                piece = next(self._coming, None) if not chunks else None
            if piece is None:
                break
            data, self._cut = self._cut or self._data(piece), b""
            dropped = piece.dropped_bytes + self._lost.pop(piece.stream, 0)
            if data:
                chunks.append(LogChunk(piece.stream, data, piece.at_ms, dropped))
            elif dropped or piece.length:
                self._lost[piece.stream] = dropped + piece.length
            total += len(data)
        return chunks

    def close(self) -> None:
        with self._files_lock:
            for fd in self._files.values():
                os.close(fd)
            self._files.clear()

    def _look(self) -> Iterator[Piece]:
        """New pieces of all streams."""
        merged = heapq.merge(*(_timed(r.new_pieces()) for r in self._readers), key=lambda p: p[0])
        return (piece for _, piece in merged if piece.at_ms >= self._since_ms)

    def _keep_last(self, lines: int) -> None:
        """Forget all that waits but the last lines. A line is counted where it ends: at its
        newline, or at the end of its stream."""
        left, at_end = lines, set(STREAMS)
        for position, piece in enumerate(self._waiting):
            data = self._data(piece)
            if data and piece.stream in at_end:
                at_end.remove(piece.stream)
                left -= not data.endswith(b"\n")
            if left < 0 or lines == 0:
                del self._waiting[position:]
                return
            end = len(data)
            while (end := data.rfind(b"\n", 0, end)) >= 0:
                if left == 0:
                    self._cut = data[end + 1 :]
                    del self._waiting[position + (1 if self._cut else 0) :]
                    return
                left -= 1

    def _data(self, piece: Piece) -> bytes:
        """Empty when its segment has been dropped."""
        key = (piece.stream, piece.segment)
        if key not in self._files:
            path = segment_path(str(self._directory), piece.stream, piece.segment) + ".log"
            try:
                self._files[key] = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return b""
            for old in [k for k in self._files if k[0] == key[0] and k[1] < key[1] - 4]:
                os.close(self._files.pop(old))
        return os.pread(self._files[key], piece.length, piece.offset)


def _last(pieces: Iterator[Piece]) -> list[Piece]:
    """The last of them, in reverse."""
    kept: deque[Piece] = deque()
    size = 0
    for piece in pieces:
        kept.append(piece)
        size += piece.length
        while size > TAIL_BYTES_MAX or len(kept) > TAIL_PIECES_MAX:
            size -= kept.popleft().length
    kept.reverse()
    return list(kept)


def _timed(pieces: Iterator[Piece]) -> Iterator[tuple[int, Piece]]:
    """Each with a time that never goes back: a stream stays in its own order when clocks do not."""
    latest_ms = 0
    for piece in pieces:
        latest_ms = max(latest_ms, piece.at_ms)
        yield latest_ms, piece
