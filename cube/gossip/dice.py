"""The only randomness that the machine has: handed in, so that a seed tells the whole story."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Dice(Protocol):
    """What random.Random and random.SystemRandom can do."""

    def random(self) -> float: ...

    def randrange(self, start: int, /) -> int: ...

    def getrandbits(self, k: int, /) -> int: ...

    def sample(self, population: Sequence[T], k: int) -> list[T]: ...

    def shuffle(self, x: MutableSequence[T], /) -> None: ...
