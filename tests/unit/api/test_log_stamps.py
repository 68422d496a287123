"""Times before the lines of a task's output."""

from __future__ import annotations

import pytest

from cube.api.logs import Stamps
from cube.model.launch import LogChunk

AT = "1970-01-01T00:00:0{}.000Z"


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ([("stdout", b"a\nb\n", 1)], "1 a\n1 b\n"),
        ([("stdout", b"a", 1), ("stdout", b"b\nc\n", 2)], "1 ab\n2 c\n"),
        ([("stdout", b"a", 1), ("stdout", b"", 2), ("stdout", b"\n\n", 3)], "1 a\n3 \n"),
        ([("stdout", b"a", 1), ("stderr", b"x\n", 2), ("stdout", b"b\n", 3)], "1 a\n2 x\n3 b\n"),
        ([("stdout", b"a", 1), ("stderr", b"x", 2), ("stdout", b"b", 3)], "1 a\n2 x\n3 b"),
    ],
)
def test_each_line_begins_with_a_time(chunks: list[tuple[str, bytes, int]], said: str) -> None:
    """Whatever the other stream does meanwhile: a task must not write into the place of the time."""
    stamps = Stamps()
    out = b"".join(stamps.of(LogChunk(stream, data, at * 1000)) for stream, data, at in chunks)
    for number in range(1, 4):
        said = said.replace(f"{number} ", f"{AT.format(number)} ")
    assert out.decode() == said
