"""How far this node trusts its own senses.

Source: Lifeguard §III-A (local health multiplier, LHM); memberlist awareness.go.
"""

from __future__ import annotations


class LocalHealth:
    """0 is well. Each point stretches the node's own probe period and timeout by one more."""

    def __init__(self, score_max: int) -> None:
        self._score_max = score_max
        self.score = 0

    def worsen(self, points: int = 1) -> None:
        self.score = min(self._score_max, self.score + points)

    def improve(self) -> None:
        self.score = max(0, self.score - 1)

    def stretch(self, duration_ms: int) -> int:
        return duration_ms * (self.score + 1)
