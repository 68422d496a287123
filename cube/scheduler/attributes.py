"""What constraints and affinities see of a node, and how they compare it. Source: interface.md."""

from __future__ import annotations

import functools
import re
from typing import TypeVar

from cube.model.cluster import Node
from cube.model.spec import Affinity, Constraint, Operator

PATTERN_CHARS_MAX = 256  # a longer `matches` pattern never matches: it would only slow every scan
VALUE_CHARS_MAX = 1024  # of an attribute, as given to a pattern

_Ordered = TypeVar("_Ordered", float, str, tuple[int, ...])
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_VERSION = re.compile(r"v?(\d+(?:\.\d+)+)(?:[-+~.].*)?|v(\d+)")


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
    """-1, 0, 1: as numbers when both are numbers, else as versions when both are, else as text."""
    if have == want:
        return 0
    left, right = _comparable(have), _comparable(want)
    if left is not None and right is not None:
        if left[0] == right[0] == "number":
            return _sign(float(left[1]), float(right[1]))
        a, b = _parts(left[1]), _parts(right[1])
        length = max(len(a), len(b))
        order = _sign(a + (0,) * (length - len(a)), b + (0,) * (length - len(b)))
        # 2.0-rc1 and 2.0 have equal numbers: what has a suffix is then a text of its own
        return order if order or left[0] == "number" or right[0] == "number" else _sign(have, want)
    return _sign(have, want)


@functools.lru_cache(maxsize=4096)
def _comparable(text: str) -> tuple[str, str] | None:
    """("number", digits) or ("version", dotted digits). A number may stand for a short version."""
    if _NUMBER.fullmatch(text):
        return "number", text
    found = _VERSION.fullmatch(text)
    return None if found is None else ("version", found[1] or found[2])


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
