"""A task's output: what StreamFiles writes, LogReader reads, and the disk stays bounded."""

from __future__ import annotations

import errno
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cube.adapters.process.log_files import LogReader
from cube.adapters.process.output import StreamFiles
from cube.model.launch import LogChunk

SEGMENT = 1000


def read(
    directory: Path, *, tail: int | None = None, since_ms: int = 0, stream: str = ""
) -> list[LogChunk]:
    reader = LogReader(
        directory, (stream,) if stream else ("stdout", "stderr"), tail=tail, since_ms=since_ms
    )
    chunks: list[LogChunk] = []
    while more := reader.read(500):
        chunks += more
    reader.close()
    return chunks


def joined(chunks: list[LogChunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


def disk_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def test_times_and_streams_are_kept(tmp_path: Path) -> None:
    out = StreamFiles(str(tmp_path), "stdout", SEGMENT, 2)
    err = StreamFiles(str(tmp_path), "stderr", SEGMENT, 2)
    out.write(b"one\n", 1000)
    err.write(b"two\n", 2000)
    out.write(b"three\n", 3000)
    assert read(tmp_path) == [
        LogChunk("stdout", b"one\n", 1000),
        LogChunk("stderr", b"two\n", 2000),
        LogChunk("stdout", b"three\n", 3000),
    ]
    assert joined(read(tmp_path, since_ms=2000)) == b"two\nthree\n"
    assert joined(read(tmp_path, stream="stderr")) == b"two\n"
    assert joined(read(tmp_path, tail=2)) == b"two\nthree\n"


def test_what_comes_close_together_shares_one_time(tmp_path: Path) -> None:
    out = StreamFiles(str(tmp_path), "stdout", SEGMENT, 2)
    for ms in (1000, 1003, 1009, 1010):
        out.write(b"x\n", ms)
    assert read(tmp_path) == [
        LogChunk("stdout", b"x\nx\nx\n", 1000),
        LogChunk("stdout", b"x\n", 1010),
    ]


def test_a_clock_that_goes_back_does_not_change_the_order(tmp_path: Path) -> None:
    out = StreamFiles(str(tmp_path), "stdout", SEGMENT, 2)
    out.write(b"first\n", 90_000)
    out.write(b"second\n", 1_000)
    assert joined(read(tmp_path)) == b"first\nsecond\n"


def test_the_next_attempt_writes_on(tmp_path: Path) -> None:
    first = StreamFiles(str(tmp_path), "stdout", SEGMENT, 2)
    first.write(b"first\n", 1000)
    first.close()
    StreamFiles(str(tmp_path), "stdout", SEGMENT, 2).write(b"second\n", 2000)
    assert joined(read(tmp_path)) == b"first\nsecond\n"


def test_a_reader_gets_each_byte_once_while_files_are_written_and_rotated(tmp_path: Path) -> None:
    out = StreamFiles(str(tmp_path), "stdout", SEGMENT, 3)
    reader = LogReader(tmp_path, ("stdout",), tail=0, since_ms=0)
    written = got = b""
    for number in range(500):
        line = f"line {number}\n".encode()
        out.write(line, number * 7)
        written += line
        if number % 20 == 0:
            while chunks := reader.read(500):
                got += joined(chunks)
    while chunks := reader.read(500):
        got += joined(chunks)
    reader.close()
    assert got == written


def test_a_full_disk_costs_output_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = StreamFiles(str(tmp_path), "stdout", SEGMENT, 2)
    out.write(b"before\n", 1000)
    really_write = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    out.write(b"lost\n", 2000)
    monkeypatch.setattr(os, "write", really_write)
    out.write(b"after\n", 3000)
    assert joined(read(tmp_path)) == b"before\nafter\n"


def test_an_index_torn_by_a_crash_costs_times_and_no_text(tmp_path: Path) -> None:
    out = StreamFiles(str(tmp_path), "stdout", SEGMENT, 2)
    out.write(b"one\n", 1000)
    out.write(b"two\n", 2000)
    out.close()
    index = tmp_path / "stdout.000001.idx"
    index.write_bytes(index.read_bytes()[:-5])
    assert joined(read(tmp_path)) == b"one\ntwo\n"
    StreamFiles(str(tmp_path), "stdout", SEGMENT, 2).write(b"three\n", 3000)
    assert [c.at_ms for c in read(tmp_path)] == [1000, 3000]
    assert joined(read(tmp_path)) == b"one\ntwo\nthree\n"


writes = st.lists(
    st.tuples(
        st.sampled_from(["stdout", "stderr"]),
        st.binary(min_size=1, max_size=700),
        st.sampled_from([0, 0, 5, 40]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(writes=writes, segments=st.integers(1, 3), tail=st.integers(0, 50))
def test_what_is_kept_is_the_end_of_what_was_written(
    writes: list[tuple[str, bytes, int]], segments: int, tail: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        files = {s: StreamFiles(name, s, SEGMENT, segments) for s in ("stdout", "stderr")}
        written = {"stdout": b"", "stderr": b""}
        now_ms = 1
        for stream, data, passed_ms in writes:
            now_ms += passed_ms
            files[stream].write(data, now_ms)
            written[stream] += data
        for stream in files:
            files[stream].close()
            kept = joined(read(directory, stream=stream))
            assert written[stream].endswith(kept)
            if all(passed_ms == 0 for _, _, passed_ms in writes):  # else times may fill it up first
                assert len(kept) >= min(len(written[stream]), SEGMENT - 700)
            assert bool(kept) == bool(written[stream])
            lines = lines_of(kept)
            wanted = b"".join(lines[max(0, len(lines) - tail) :])
            assert joined(read(directory, stream=stream, tail=tail)) == wanted
        assert disk_bytes(directory) <= 2 * segments * (SEGMENT * 9 // 8 + 16)


def lines_of(text: bytes) -> list[bytes]:
    """By newline alone."""
    parts = text.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def test_what_was_overwritten_before_it_was_read_is_counted(tmp_path: Path) -> None:
    out = StreamFiles(str(tmp_path), "stdout", SEGMENT, 2)
    out.write(b"a" * 500, 1_000)
    reader = LogReader(tmp_path, ("stdout",), tail=None, since_ms=0)
    assert joined(reader.read(100)) == b"a" * 500
    for number in range(20):
        out.write(b"%03d" % number * 100, 2_000 + number * 100)
    chunks: list[LogChunk] = []
    while more := reader.read(500):
        chunks += more
    reader.close()
    seen = len(joined(chunks))
    lost = sum(chunk.dropped_bytes for chunk in chunks)
    assert 0 < seen <= 2 * SEGMENT
    # About: what a segment that went away unseen held is not known, only what they usually hold.
    assert abs(seen + lost - 20 * 300) <= 2 * SEGMENT
    assert chunks[0].dropped_bytes == lost > 2 * SEGMENT


def test_a_reader_that_keeps_up_misses_nothing(tmp_path: Path) -> None:
    out = StreamFiles(str(tmp_path), "stdout", SEGMENT, 2)
    reader = LogReader(tmp_path, ("stdout",), tail=None, since_ms=0)
    chunks: list[LogChunk] = []
    for number in range(50):
        out.write(b"%03d" % number * 100, number * 100)
        while more := reader.read(500):
            chunks += more
    reader.close()
    assert joined(chunks) == b"".join(b"%03d" % number * 100 for number in range(50))
    assert not any(chunk.dropped_bytes for chunk in chunks)


def test_a_reader_of_many_small_pieces_holds_few_of_them(tmp_path: Path) -> None:
    """A task that writes a line each 10 ms fills its index first."""
    for stream in ("stdout", "stderr"):
        lines = 10_000
        with open(tmp_path / f"{stream}.000001.log", "wb") as text:
            text.write(b"x\n" * lines)
        with open(tmp_path / f"{stream}.000001.idx", "wb") as index:
            for n in range(lines):
                index.write((2 * n).to_bytes(8, "big") + (1_000 + 10 * n).to_bytes(8, "big"))
    tracemalloc.start()
    try:
        reader = LogReader(tmp_path, ("stdout", "stderr"), tail=None, since_ms=0)
        count = 0
        while more := reader.read(500):
            count += len(joined(more))
        reader.close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 40_000
    assert peak < 1 << 20  # all of them at once would be three times as much
