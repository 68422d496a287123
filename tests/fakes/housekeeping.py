"""cube.ports.housekeeping.Housekeeping as a test wants it."""

from __future__ import annotations

from cube.model.housekeeping import Cleaned, Waste


class FakeHousekeeping:
    """`answers` are those of clean(), in order; afterwards there is nothing to do."""

    def __init__(self) -> None:
        self.found = Waste()
        self.answers: list[Cleaned] = []
        self.asked: list[str] = []  # by whom

    async def waste(self) -> Waste:
        return self.found

    async def clean(self, actor: str) -> Cleaned:
        self.asked.append(actor)
        return self.answers.pop(0) if self.answers else Cleaned()
