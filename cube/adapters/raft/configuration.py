"""Who votes, as of every index the log still holds. A value: no I/O, no library.

Membership entries carry the whole set of voters, not a difference, so that one of them is enough to
know it exactly, whatever a joiner was told before. An entry counts from the moment it is in the log
(Raft §4.1), so taking it back on a conflict is dropping it from this list.
"""

from __future__ import annotations

import msgspec


class Configuration(msgspec.Struct, frozen=True):
    """`base` holds up to the first change. Invariant: `changes` is ordered by index."""

    base: frozenset[str]
    changes: tuple[tuple[int, frozenset[str]], ...] = ()

    @property
    def current(self) -> frozenset[str]:
        return self.changes[-1][1] if self.changes else self.base

    @property
    def last_index(self) -> int:
        """Index of the newest change; 0 when the base still holds."""
        return self.changes[-1][0] if self.changes else 0

    def at(self, index: int) -> frozenset[str]:
        """The voters once everything up to `index` is in the log."""
        members = self.base
        for changed_at, changed_to in self.changes:
            if changed_at > index:
                break
            members = changed_to
        return members

    def appended(self, index: int, members: frozenset[str]) -> Configuration:
        assert index > self.last_index
        return Configuration(self.base, (*self.changes, (index, members)))

    def cut_from(self, index: int) -> Configuration:
        """Without the changes at `index` and above."""
        return Configuration(self.base, tuple(c for c in self.changes if c[0] < index))

    def rebased(self, index: int) -> Configuration:
        """The same from `index` on, forgetting what was before."""
        return Configuration(self.at(index), tuple(c for c in self.changes if c[0] > index))
