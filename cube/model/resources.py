"""What a task takes from a node and a node has to give. Integers only, so that sums are exact."""

from __future__ import annotations

import msgspec


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Millicores and bytes. Also used for differences, so members may be negative."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.cpu_milli + other.cpu_milli,
            self.memory_bytes + other.memory_bytes,
            self.disk_bytes + other.disk_bytes,
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            self.cpu_milli - other.cpu_milli,
            self.memory_bytes - other.memory_bytes,
            self.disk_bytes - other.disk_bytes,
        )

    def fits_in(self, free: Resources) -> bool:
        """True when every quantity asked for is there. What is not asked for is not looked at."""
        return (
            (self.cpu_milli <= free.cpu_milli or self.cpu_milli == 0)
            and (self.memory_bytes <= free.memory_bytes or self.memory_bytes == 0)
            and (self.disk_bytes <= free.disk_bytes or self.disk_bytes == 0)
        )


NOTHING = Resources()
