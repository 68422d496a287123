"""What constraints and affinities see of a node, and how they compare it. Source: interface.md."""

from __future__ import annotations

import functools
import re
from typing import TypeVar

from cube.model.cluster import Node
from cube.model.spec import Affinity, Constraint, Operator

PATTERN_CHARS_MAX = 256  # a longer `matches` pattern never matches: it would only slow every scan
VERSION_CHARS_MAX = 128  # longer is text: numbers of thousands of digits are no numbers
VALUE_CHARS_MAX = 1024  # of an attribute, as given to a pattern

_Ordered = TypeVar("_Ordered", float, str, tuple[int, ...])
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_VERSION = re.compile(r"v?(?P<dotted>\d+(?:\.\d+)+)(?P<suffix>[-+~.].*)?|v(?P<major>\d+)")


def attribute(node: Node, name: str) -> str | None:
    """The attribute's value on this node, or None when the node has no such thing."""
    if name.startswith("node.labels."):
        return node.label(name[len("node.labels.") :])
    if name == "node.id":
        return node.id
    if name == "node.name":
        return node.name
    if name.startswith("driver."):
        driver, _, key = name[len("driver.") :].partition(".")
        info = node.facts.drivers.get(driver)
        if info is None:
            return None
        if key in ("", "healthy"):
            return "true" if info.healthy else "false"
        return info.attributes.get(key)
    return node.facts.attributes.get(name)


def matches(have: str | None, operator: Operator, value: str | tuple[str, ...]) -> bool:
    """Whether the attribute passes. A missing attribute passes `!=`, `not_in`, `not_exists` only."""
    match operator:
        case Operator.EXISTS:
            return have is not None
        case Operator.NOT_EXISTS:
            return have is None
        case Operator.IN:
            return have is not None and any(_compare(have, one) == 0 for one in _several(value))
        case Operator.NOT_IN:
            return have is None or all(_compare(have, one) != 0 for one in _several(value))
        case Operator.EQ:
            return have is not None and _compare(have, _one(value)) == 0
        case Operator.NE:
            return have is None or _compare(have, _one(value)) != 0
        case Operator.MATCHES:
            pattern = _pattern(_one(value))
            return (
                have is not None
                and pattern is not None
                and pattern.search(have[:VALUE_CHARS_MAX]) is not None
            )
        case Operator.LT:
            return have is not None and _compare(have, _one(value)) < 0
        case Operator.LE:
            return have is not None and _compare(have, _one(value)) <= 0
        case Operator.GT:
            return have is not None and _compare(have, _one(value)) > 0
        case Operator.GE:
            return have is not None and _compare(have, _one(value)) >= 0


def satisfies(node: Node, wish: Constraint | Affinity) -> bool:
    return matches(attribute(node, wish.attribute), wish.operator, wish.value)


def wording(wish: Constraint | Affinity) -> str:
    """`node.labels.disk == ssd`, for people."""
    value = wish.value if isinstance(wish.value, str) else "[" + ", ".join(wish.value) + "]"
    return f"{wish.attribute} {wish.operator.value} {value}".rstrip()


def _one(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def _several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _compare(have: str, want: str) -> int:
    """-1, 0, 1: as numbers when both are numbers, as versions when both are versions or numbers,
    else as text. Of versions with equal numbers, suffixes are compared only when both have one:
    `20.10.24+dfsg1` is 20.10.24."""
    if have == want:
        return 0
    left, right = _comparable(have), _comparable(want)
    if left is None or right is None:
        return _sign(have, want)
    if left[0] == right[0] == "number":
        return _sign(float(left[1]), float(right[1]))
    a, b = _parts(left[1]), _parts(right[1])
    length = max(len(a), len(b))
    order = _sign(a + (0,) * (length - len(a)), b + (0,) * (length - len(b)))
    if order == 0 and left[2] and right[2]:
        return _sign(left[2], right[2])
    return order


@functools.lru_cache(maxsize=4096)
def _comparable(text: str) -> tuple[str, str, str] | None:
    """(number | version, dotted digits, suffix). A number may stand for a short version."""
    if len(text) > VERSION_CHARS_MAX:
        return None
    if _NUMBER.fullmatch(text):
        return "number", text, ""
    found = _VERSION.fullmatch(text)
    if found is None:
        return None
    return "version", found["dotted"] or found["major"], found["suffix"] or ""


def _parts(dotted: str) -> tuple[int, ...]:
    return tuple(int(part) for part in dotted.lstrip("+-").split("."))


def _sign(a: _Ordered, b: _Ordered) -> int:
    return int(a > b) - int(a < b)


@functools.lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str] | None:
    if len(text) > PATTERN_CHARS_MAX:
        return None
    try:
        return re.compile(text)
    except re.error:
        return None
