"""Query parameters, and lists cut into pages. Pure; everything wrong is a Problem with status 400."""

from __future__ import annotations

import base64
import binascii
import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from cube.api.errors import Problem, did_you_mean

LIMIT_DEFAULT = 100
LIMIT_MAX = 1_000
WORDS_MAX = 16  # in one comma-separated parameter
INTEGER_MAX = (1 << 63) - 1
_NAME = msgspec.msgpack.Decoder(str)
_CURSOR_CHARS_MAX = 512  # names are short; what is longer is no cursor of ours

Item = TypeVar("Item")
Place = TypeVar("Place")  # where a page ends: what the list is ordered by


def integer(
    query: Mapping[str, str], name: str, default: int, low: int, high: int = INTEGER_MAX
) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and low <= int(text) <= high):
        accepted = f"between {low} and {high}" if high < INTEGER_MAX else f"{low} or more"
        raise Problem("bad_parameter", f"{name} must be a whole number, {accepted}")
    return int(text)


def flag(query: Mapping[str, str], name: str) -> bool:
    """1, true or nothing after the name: yes."""
    text = query.get(name)
    if text is None or text in ("0", "false"):
        return False
    if text in ("1", "true", ""):
        return True
    raise Problem("bad_parameter", f"{name} must be 1 or 0")


def words(query: Mapping[str, str], name: str, known: Sequence[str]) -> frozenset[str] | None:
    """A comma-separated list of some of `known`, or None when the parameter is not there."""
    text = query.get(name)
    if text is None:
        return None
    found = [word.strip() for word in text.split(",")]
    if len(found) > WORDS_MAX:
        raise Problem("bad_parameter", f"{name} has more than {WORDS_MAX} words")
    for word in found:
        if word not in known:
            hint = did_you_mean(word, known) or f"known are {', '.join(known)}"
            raise Problem("bad_parameter", f"{name}: {word[:64]!r} is not known", hint=hint)
    return frozenset(found)


def limit_of(query: Mapping[str, str]) -> int:
    return integer(query, "limit", LIMIT_DEFAULT, 1, LIMIT_MAX)


def cursor_of(query: Mapping[str, str], decoder: msgspec.msgpack.Decoder[Place]) -> Place | None:
    """Where the page before ended. Raises Problem for a cursor that this route did not give."""
    text = query.get("cursor")
    if text is None:
        return None
    try:
        if len(text) > _CURSOR_CHARS_MAX:
            raise ValueError
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return decoder.decode(data)
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise Problem(
            "bad_parameter", "cursor is none that this list gave", hint="leave it out to begin anew"
        ) from None


def cursor_text(place: object) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).rstrip(b"=").decode()


def page_by_name(
    items: Sequence[Item], name_of: Callable[[Item], str], query: Mapping[str, str]
) -> tuple[Sequence[Item], str | None]:
    """One page of `items`, which ascend by `name_of`, and the cursor of the next one."""
    limit = limit_of(query)
    after = cursor_of(query, _NAME)
    start = 0 if after is None else bisect.bisect_right(items, after, key=name_of)
    page = items[start : start + limit]
    more = start + limit < len(items)
    return page, cursor_text(name_of(page[-1])) if more else None
