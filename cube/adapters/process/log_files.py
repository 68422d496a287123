"""A task's output read back: over rotated files and attempts, both streams merged by time.

Only reads, and never waits; the files are written by supervisors meanwhile (output.py).
"""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cube.adapters.process.output import INDEX_BYTES, segment_numbers, segment_path
from cube.model.launch import LogChunk

CHUNK_BYTES = 64 * 1024  # of one LogChunk
STREAMS = ("stdout", "stderr")


class Piece(msgspec.Struct, frozen=True):
    """Bytes of one segment that were written at one time (to 10 ms)."""

    at_ms: int
    stream: str
    segment: int
    offset: int
    length: int


class StreamReader:
    """One stream's pieces, each once, oldest first."""

    def __init__(self, directory: Path, stream: str) -> None:
        self._directory, self._stream = str(directory), stream
        self._segment = self._offset = self._entries = self._at_ms = 0

    def new_pieces(self) -> list[Piece]:
        """What was written since the last call. A segment that was dropped meanwhile is skipped."""
        try:
            numbers = segment_numbers(self._directory, self._stream)
        except FileNotFoundError:
            return []
        pieces: list[Piece] = []
        for number in numbers:
            if number < self._segment:
                continue
            if number > self._segment:
                self._segment, self._offset, self._entries, self._at_ms = number, 0, 0, 0
            pieces.extend(self._of_segment())
        return pieces

    def _of_segment(self) -> Iterator[Piece]:
        path = segment_path(self._directory, self._stream, self._segment)
        try:
            size = os.stat(path + ".log").st_size  # before the index: then all of it is indexed
            with open(path + ".idx", "rb") as index:
                index.seek(self._entries * INDEX_BYTES)
                entries = index.read()
        except FileNotFoundError:
            return
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
            length = min(end - self._offset, CHUNK_BYTES)
            yield Piece(self._at_ms, self._stream, self._segment, self._offset, length)
            self._offset += length


class LogReader:
    """The output of one task. Each call of read() gives what comes next."""

    def __init__(
        self, directory: Path, streams: tuple[str, ...], tail: int | None, since_ms: int
    ) -> None:
        self._directory = directory
        self._readers = [StreamReader(directory, s) for s in STREAMS if s in streams]
        self._since_ms = since_ms
        self._files: dict[tuple[str, int], int] = {}
        # read() runs in a thread that outlives a cancelled call: it must not see its files closed.
        self._files_lock = threading.Lock()
        self._waiting = self._look()
        self._cut = b""  # what of the first waiting piece is wanted, when only a part is
        if tail is not None:
            self._keep_last(tail)

    def read(self, bytes_max: int) -> list[LogChunk]:
        """The next chunks, about this much; empty when there is nothing now."""
        with self._files_lock:
            return self._read(bytes_max)

    def _read(self, bytes_max: int) -> list[LogChunk]:
        if not self._waiting:
            self._waiting = self._look()
        chunks: list[LogChunk] = []
        total = 0
        while self._waiting and total < bytes_max:
            piece = self._waiting.pop()
            data, self._cut = self._cut or self._data(piece), b""
            if data:
                chunks.append(LogChunk(piece.stream, data, piece.at_ms))
            total += len(data)
        return chunks

    def close(self) -> None:
        with self._files_lock:
            for fd in self._files.values():
                os.close(fd)
            self._files.clear()

    def _look(self) -> list[Piece]:
        """New pieces of all streams, the next one last."""
        merged = heapq.merge(*(_timed(r.new_pieces()) for r in self._readers), key=lambda p: p[0])
        kept = [p for _, p in merged if p.at_ms >= self._since_ms]
        kept.reverse()
        return kept

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


def _timed(pieces: list[Piece]) -> Iterator[tuple[int, Piece]]:
    """Each with a time that never goes back: a stream stays in its own order when clocks do not."""
    latest_ms = 0
    for piece in pieces:
        latest_ms = max(latest_ms, piece.at_ms)
        yield latest_ms, piece
