"""What follows from one part of the state, worked out once for as long as that part is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class Derived(Generic[S, T]):
    """`of(source)` is make(source). Sources are immutable, and compared by identity; the newest is
    remembered."""

    def __init__(self, make: Callable[[S], T]) -> None:
        self._make = make
        self._known: tuple[S, T] | None = None

    def of(self, source: S) -> T:
        known = self._known
        if known is None or known[0] is not source:
            known = self._known = (source, self._make(source))
        return known[1]
