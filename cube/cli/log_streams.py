"""Lines of many tasks as one stream, by time; the reading half of `cube logs`.

Merge decides the order and knows no thread. Sources reads each task on a thread of its own and makes
it wait when its lines are not printed: nothing is dropped here, and nothing piles up.
"""

from __future__ import annotations

import heapq
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from cube.cli.output import clean, note
from cube.client.client import Client
from cube.client.errors import ApiProblem, ClientError
from cube.model.views import TaskView

PATIENCE_MS = 300  # how long a line waits for an earlier one of another task, when following
WAITING_LINES_MAX = 500  # of a task; then it is not read
WAITING_BYTES_MAX = 256 * 1024
LINE_BYTES_MAX = 64 * 1024  # a longer line is printed in pieces
STAMP = re.compile(rb"-|[0-9T:.Z+-]{10,32}")  # what a task says in its place is a part of its line
TRIES_MAX = 5  # to go on with a stream that broke off
TRY_DELAY_S = 1.0


class Line(msgspec.Struct, frozen=True):
    """`at`: RFC 3339, which sorts as text; "" when nobody knows."""

    at: str
    text: bytes


class _Waiting:
    def __init__(self) -> None:
        self.lines: deque[tuple[Line, int]] = deque()  # with the time it came
        self.bytes = 0
        self.is_open = True
        self.latest = ""  # a line never sorts before one of its own task that came earlier


class Merge:
    """Of sources that are each in order. `patience_ms` None: a line waits until no earlier one can
    come any more."""

    def __init__(self, patience_ms: int | None) -> None:
        self._patience_ms = patience_ms
        self._sources: dict[str, _Waiting] = {}
        self._heads: list[tuple[str, int, str]] = []  # at, number, source
        self._number = 0
        self._silent: set[str] = set()  # open, and nothing of theirs waits

    def open(self, source: str) -> None:
        self._sources[source] = _Waiting()
        self._silent.add(source)

    def close(self, source: str) -> None:
        """Nothing more comes of it."""
        self._sources[source].is_open = False
        self._silent.discard(source)

    @property
    def is_over(self) -> bool:
        return not self._heads and not any(one.is_open for one in self._sources.values())

    def is_full(self, source: str) -> bool:
        waiting = self._sources[source]
        return len(waiting.lines) >= WAITING_LINES_MAX or waiting.bytes >= WAITING_BYTES_MAX

    def push(self, source: str, line: Line, now_ms: int) -> None:
        waiting = self._sources[source]
        waiting.latest = max(waiting.latest, line.at)
        waiting.lines.append((msgspec.structs.replace(line, at=waiting.latest), now_ms))
        waiting.bytes += len(line.text)
        if len(waiting.lines) == 1:
            self._silent.discard(source)
            self._show_head(source)

    def _show_head(self, source: str) -> None:
        self._number += 1
        at = self._sources[source].lines[0][0].at
        heapq.heappush(self._heads, (at, self._number, source))

    def wait_ms(self, now_ms: int) -> int | None:
        """Until the next line may be printed: 0 now, None when something must come first."""
        if not self._heads:
            return None
        if not self._silent:
            return 0
        if self._patience_ms is None:
            return None
        oldest = min(self._sources[source].lines[0][1] for _, _, source in self._heads)
        return max(0, oldest + self._patience_ms - now_ms)

    def pop(self) -> tuple[str, Line]:
        """The earliest that waits, and whose it is."""
        _, _, source = heapq.heappop(self._heads)
        waiting = self._sources[source]
        line, _ = waiting.lines.popleft()
        waiting.bytes -= len(line.text)
        if waiting.lines:
            self._show_head(source)
        elif waiting.is_open:
            self._silent.add(source)
        return source, line


class Query(msgspec.Struct, frozen=True):
    streams: tuple[str, ...]
    tail: int | None
    since: str
    follow: bool


class Sources:
    """Reads tasks; `lines()` gives what they print, in order of time."""

    def __init__(self, new_client: Callable[[], Client], query: Query) -> None:
        self._new_client = new_client
        self._query = query
        self._merge = Merge(PATIENCE_MS if query.follow else None)
        self._changed = threading.Condition()
        self._refusal: ApiProblem | None = None
        self.tasks: dict[str, TaskView] = {}

    def add(self, task: TaskView, *, is_new: bool = False) -> None:
        """It is read from now on; `is_new`: from its beginning."""
        query = msgspec.structs.replace(self._query, tail=None, since="") if is_new else self._query
        with self._changed:
            self.tasks[task.id] = task
            self._merge.open(task.id)
        threading.Thread(target=self._read, args=(task, query), daemon=True).start()

    def lines(self, may_end: Callable[[], bool]) -> Iterator[tuple[TaskView, Line] | None]:
        """None: nothing waits now. Ends when nothing can come any more and `may_end` says so. Raises
        ApiProblem for who may not read them, or not any more."""
        while True:
            with self._changed:
                wait_ms = self._merge.wait_ms(_now_ms())
                found = self._merge.pop() if wait_ms == 0 else None
                if found is not None:
                    self._changed.notify_all()
            if found is not None:
                yield self.tasks[found[0]], found[1]
                continue
            yield None
            with self._changed:
                is_over = self._merge.is_over
                if not is_over and self._merge.wait_ms(_now_ms()) != 0:
                    self._changed.wait(1.0 if wait_ms is None else wait_ms / 1000)
            if self._refusal is not None:  # after is_over: whoever ends has said so before
                raise self._refusal
            if is_over:
                if may_end():
                    return
                time.sleep(PATIENCE_MS / 1000)

    def _read(self, task: TaskView, query: Query) -> None:
        try:
            self._read_to_the_end(task, query)
        finally:
            with self._changed:
                self._merge.close(task.id)
                self._changed.notify_all()

    def _read_to_the_end(self, task: TaskView, query: Query) -> None:
        """A stream that broke off is gone on with where it was: the lines of the last millisecond that
        were there before are not said again."""
        latest, repeated, failures = "", 0, 0
        while True:
            resumed, to_skip = latest, repeated  # at first: nothing, and none
            try:
                with self._new_client() as client:
                    for line in _stamped(client, task, query):
                        if to_skip and line.at == resumed:
                            to_skip -= 1
                            continue
                        repeated = repeated + 1 if line.at == latest else 1
                        latest, failures = line.at, 0
                        self._push(task.id, line)
                return
            except ApiProblem as problem:
                if problem.code == "not_found" and latest:
                    return  # forgotten meanwhile
                if problem.status in (401, 403):
                    self._refusal = problem  # of one is of all: the token has gone
                    return
                error: ClientError = problem
            except ClientError as broken:
                error = broken
            failures += 1
            if failures >= TRIES_MAX or not query.follow:
                note(f"cube: {task.name}@{task.node_name}: {clean(str(error))}")
                return
            time.sleep(TRY_DELAY_S)
            if latest:
                query = msgspec.structs.replace(query, tail=None, since=latest)

    def _push(self, source: str, line: Line) -> None:
        with self._changed:
            while self._merge.is_full(source):
                self._changed.wait()
            self._merge.push(source, line, _now_ms())
            self._changed.notify_all()


def _stamped(client: Client, task: TaskView, query: Query) -> Iterator[Line]:
    pieces = client.logs(
        task.id, streams=query.streams, tail=query.tail, since=query.since, follow=query.follow,
        timestamps=True,
    )  # fmt: skip
    for line in whole_lines(pieces):
        stamp, separator, text = line.partition(b" ")
        if not separator or not STAMP.fullmatch(stamp):
            yield Line("", line)  # the rest of a line that was too long, or between other lines
        else:
            yield Line("" if stamp == b"-" else stamp.decode(), text)


def whole_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Without their ends. A line that is too long comes in pieces."""
    rest = b""
    for piece in pieces:
        rest += piece
        *whole, rest = rest.split(b"\n")
        yield from whole
        while len(rest) > LINE_BYTES_MAX:
            yield rest[:LINE_BYTES_MAX]
            rest = rest[LINE_BYTES_MAX:]
    if rest:
        yield rest


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
