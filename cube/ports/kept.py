"""Output that outlived its task."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from cube.model.ids import TaskId


@runtime_checkable
class OutputKeeper(Protocol):
    """What a driver can say beside cube.ports.driver.Driver."""

    async def kept(self) -> list[TaskId]:
        """This node's tasks of which no attempt is left on this host, but output is; sorted.
        Raises DriverFailed."""
        ...
