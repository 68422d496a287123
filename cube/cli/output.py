"""Tables, colours and times for people; bodies of the API for programs."""

from __future__ import annotations

import contextlib
import datetime
import re
import sys
from collections.abc import Iterable, Sequence

import msgspec

from cube.cli.context import Settings
from cube.model.units import format_duration

COLORS = {
    "green": "32", "yellow": "33", "red": "31", "grey": "90", "bold": "1", "cyan": "36",
    "blue": "34", "magenta": "35", "light green": "92", "light yellow": "93", "light blue": "94",
    "light magenta": "95", "light cyan": "96",
}  # fmt: skip
# For telling things apart: no colour that means something, and neighbours that differ.
PALETTE = (
    "cyan", "yellow", "magenta", "green", "blue",
    "light cyan", "light yellow", "light magenta", "light green", "light blue",
)  # fmt: skip
STATE_COLORS = {
    "running": "green", "healthy": "green", "ready": "green", "completed": "grey", "alive": "green",
    "pending": "yellow", "scheduled": "yellow", "preparing": "yellow", "starting": "yellow",
    "stopping": "yellow", "suspect": "yellow", "degraded": "yellow", "unknown": "grey",
    "stopped": "grey", "failed": "red", "rejected": "red", "lost": "red", "down": "red",
    "unhealthy": "red", "dead": "red", "left": "grey",
}  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def out(text: str = "") -> None:
    """A line of data, at once: whoever follows a stream through a pipe waits for it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str = "") -> None:
    """A line of progress or advice: stderr, so that data can be piped. No failure when nobody can
    read it any more: a terminal that was closed must not stop what cleans up."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def clean(text: str) -> str:
    """Without control characters: what tasks and files say must not drive a terminal."""
    return _CONTROL.sub("?", text)


class Style:
    """Colours, or not."""

    def __init__(self, settings: Settings) -> None:
        self._on = settings.colored

    def paint(self, text: str, color: str) -> str:
        return f"\x1b[{COLORS[color]}m{text}\x1b[0m" if self._on and text else text

    def state(self, word: str) -> str:
        color = STATE_COLORS.get(word)
        return self.paint(word, color) if color else word


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, two spaces between, nothing at line ends."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(_plain(line[i])) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = [
            cell + " " * (width - len(_plain(cell)))
            for cell, width in zip(line, widths, strict=True)
        ]
        out("  ".join(cells).rstrip())


def _plain(cell: str) -> str:
    return _ANSI.sub("", cell)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)  # noqa: TID251 - a client shows its own user's time


def age(at: str | None, until: datetime.datetime | None = None) -> str:
    """`5m` since an RFC 3339 time; `–` for none."""
    if at is None:
        return "–"
    then = datetime.datetime.fromisoformat(at)
    seconds = max(0, int(((until or now()) - then).total_seconds()))
    return format_duration(seconds * 1000) if seconds else "0s"


def until(at: str, since: datetime.datetime | None = None) -> str:
    """`5m` from now to an RFC 3339 time; `0s` when it has passed."""
    left_s = (datetime.datetime.fromisoformat(at) - (since or now())).total_seconds()
    return format_duration(max(0, int(left_s)) * 1000) if left_s >= 1 else "0s"


def raw(body: bytes) -> None:
    """The API's answer, unmodified, with a line end."""
    sys.stdout.buffer.write(body)
    if not body.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.flush()


def answer(settings: Settings, value: msgspec.Struct) -> None:
    """With `-o json`, what the API answered to a write, on standard output."""
    if settings.output == "json":
        raw(msgspec.json.encode(value))


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
