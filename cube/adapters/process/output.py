"""Where a task's output is kept: per stream a few bounded files of plain text, each with an index
of times. This is the writing half; log_files.py reads.

Stdlib only: supervisors import it (see supervisor.py).
"""

from __future__ import annotations

import os

from cube.adapters.process.wire import ignoring

INDEX_BYTES = 16  # an entry: offset and ms since the epoch, 8 bytes each, big-endian
INDEX_EVERY_MS = 10  # finer would let a chatty task write more index than text
INDEX_SHARE = 8  # an index may take 1/8 of its segment, then the segment is full


def segment_path(directory: str, stream: str, number: int) -> str:
    return f"{directory}/{stream}.{number:06}"


def segment_numbers(directory: str, stream: str) -> list[int]:
    """In order. A stream's text is in `stdout.000007.log`, its times in `stdout.000007.idx`."""
    names = os.listdir(directory)
    found = [
        n[len(stream) + 1 : -4] for n in names if n.startswith(stream + ".") and n.endswith(".log")
    ]
    return sorted(int(number) for number in found if number.isdigit())


class StreamFiles:
    """One stream's bounded files, written on from where the last attempt stopped.

    Invariant: at most `segments` files of at most `segment_bytes`. A disk that is full costs
    output, never the task: what cannot be written is dropped.
    """

    def __init__(self, directory: str, stream: str, segment_bytes: int, segments: int) -> None:
        self._directory, self._stream = directory, stream
        self._segment_bytes, self._segments = segment_bytes, segments
        self._text_fd = self._index_fd = -1
        self._size = self._index_size = self._indexed_ms = 0
        numbers = segment_numbers(directory, stream)
        self._number = numbers[-1] if numbers else 1
        with ignoring(OSError):
            self._open()

    def write(self, data: bytes, now_ms: int) -> None:
        for start in range(0, len(data), self._segment_bytes):
            with ignoring(OSError):
                self._write(data[start : start + self._segment_bytes], now_ms)

    def _write(self, data: bytes, now_ms: int) -> None:
        if self._text_fd < 0:
            self._open()
        is_full = self._size + len(data) > self._segment_bytes
        if is_full or self._index_size >= self._segment_bytes // INDEX_SHARE:
            self._rotate()
        if abs(now_ms - self._indexed_ms) >= INDEX_EVERY_MS or self._index_size == 0:
            self._index(now_ms)
        while data:
            written = os.write(self._text_fd, data)
            self._size += written
            data = data[written:]

    def _index(self, now_ms: int) -> None:
        entry = self._size.to_bytes(8, "big") + now_ms.to_bytes(8, "big")
        if os.write(self._index_fd, entry) != INDEX_BYTES:
            os.ftruncate(self._index_fd, self._index_size)
            return
        self._index_size += INDEX_BYTES
        self._indexed_ms = now_ms

    def _open(self) -> None:
        path, flags = segment_path(self._directory, self._stream, self._number), os.O_APPEND
        self._text_fd = os.open(path + ".log", os.O_WRONLY | os.O_CREAT | flags, 0o600)
        self._index_fd = os.open(path + ".idx", os.O_WRONLY | os.O_CREAT | flags, 0o600)
        self._size = os.fstat(self._text_fd).st_size
        self._index_size = os.fstat(self._index_fd).st_size // INDEX_BYTES * INDEX_BYTES
        os.ftruncate(self._index_fd, self._index_size)
        self._indexed_ms = 0

    def _rotate(self) -> None:
        self.close()
        self._number += 1
        for number in segment_numbers(self._directory, self._stream):
            if number <= self._number - self._segments:
                path = segment_path(self._directory, self._stream, number)
                for ending in (".idx", ".log"):
                    with ignoring(FileNotFoundError):
                        os.unlink(path + ending)
        self._open()

    def close(self) -> None:
        for fd in (self._text_fd, self._index_fd):
            if fd >= 0:
                os.close(fd)
        self._text_fd = self._index_fd = -1
