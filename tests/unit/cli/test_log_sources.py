"""What `cube logs` reads of one task: each line once, also those of one millisecond, also when the stream
broke off in the middle of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from cube.cli import log_streams
from cube.cli.log_streams import Query, Sources
from cube.client.client import Client
from cube.client.errors import StreamBroken
from cube.model.views import TaskView


class Stream(contextlib.AbstractContextManager["Stream"]):
    """Answers one request for logs: its lines (`T1 a` is a, printed in second 1), then perhaps a
    break."""

    def __init__(self, lines: list[str], breaks: bool) -> None:
        self._lines, self._breaks = lines, breaks

    def __exit__(self, *_: object) -> None:
        pass

    def logs(self, _task: str, **_query: Any) -> Iterator[bytes]:
        for one in self._lines:
            yield f"2026-01-02T03:04:0{one.removeprefix('T').replace(' ', '.000Z ', 1)}\n".encode()
        if self._breaks:
            raise StreamBroken("gone")


def printed(*answers: Stream, follow: bool = True) -> list[str]:
    """The texts of the lines, in order."""
    waiting = list(answers)
    new_client = cast("Callable[[], Client]", lambda: waiting.pop(0))
    sources = Sources(new_client, Query((), None, "", follow))
    task = cast("TaskView", type("Task", (), {"id": "t", "name": "a.b.0", "node_name": "n"})())
    sources.add(task)
    return [item[1].text.decode() for item in sources.lines(lambda: True) if item is not None]


@pytest.mark.parametrize("follow", [False, True])
def test_lines_of_one_millisecond_are_all_printed(follow: bool) -> None:
    lines = ["T1 a", "T1 b", "T1 c", "T2 d", "T2 e"]
    assert printed(Stream(lines, breaks=False), follow=follow) == ["a", "b", "c", "d", "e"]


def test_after_a_break_none_is_missing_and_none_comes_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_streams, "TRY_DELAY_S", 0.0)
    first = Stream(["T1 a", "T2 b", "T2 c"], breaks=True)
    second = Stream(["T2 b", "T2 c", "T2 d"], breaks=True)  # since T2: what was there, and more
    third = Stream(["T2 b", "T2 c", "T2 d", "T2 e", "T3 f"], breaks=False)
    assert printed(first, second, third) == ["a", "b", "c", "d", "e", "f"]
