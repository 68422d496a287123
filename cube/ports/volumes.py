"""Named volumes on a node's disk: what a driver that has them can say and do."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class VolumeStore(Protocol):
    """Beside cube.ports.driver.Driver, for drivers whose tasks mount named volumes. Only DriverFailed
    is raised; every call is bounded in time."""

    async def volume_names(self) -> list[str]:
        """The volumes on this node that tasks of this cluster made, sorted. What was there before, and
        is only used, is not among them."""
        ...

    async def remove_volume(self, name: str) -> bool:
        """It is gone, with its data. False: there is none of this name that this cluster made.
        Raises DriverFailed "volume_in_use" while any container has it, also one that has ended."""
        ...
