"""Output of tasks that the cluster has forgotten is removed: the worker does so when it sees a task go,
and this for those that went while no agent was here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from cube.model.cluster import ClusterState
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.ports.driver import Driver
from cube.ports.kept import OutputKeeper

FIRST_S = (
    120.0  # after the start: drivers have been opened, and the worker has looked at what is there
)
LOOK_S = 3600.0  # what is missed costs disk, and nothing else
REMOVED_AT_ONCE_MAX = 100  # then others have a turn at the driver

_log = logging.getLogger(__name__)


class Forgotten:
    """A task's id is never used twice, so what no task of a caught-up state has belongs to nobody."""

    def __init__(
        self,
        state: Callable[[], ClusterState],
        is_caught_up: Callable[[], bool],
        drivers: Mapping[str, Driver],
    ) -> None:
        self._state = state
        self._is_caught_up = is_caught_up
        self._drivers = drivers

    async def run(self) -> None:
        """For ever."""
        await asyncio.sleep(FIRST_S)
        while True:
            if self._is_caught_up():
                await self.sweep()
            await asyncio.sleep(LOOK_S)

    async def sweep(self) -> int:
        """How many tasks' output went."""
        count = 0
        for name in self.drivers:
            try:
                for task_id in (await self.left(name))[:REMOVED_AT_ONCE_MAX]:
                    count += await self.remove(name, task_id)
            except DriverFailed as failed:
                _log.info("output_left driver=%s code=%s", name, failed.code)
        if count:
            _log.info("forgotten_output_removed tasks=%d", count)
        return count

    @property
    def drivers(self) -> list[str]:
        """Those that say what output they keep."""
        return [
            name for name in sorted(self._drivers) if isinstance(self._drivers[name], OutputKeeper)
        ]

    async def kept(self, driver: str) -> list[TaskId]:
        """See OutputKeeper. Raises DriverFailed."""
        keeper = self._drivers[driver]
        assert isinstance(keeper, OutputKeeper)
        return await keeper.kept()

    async def left(self, driver: str) -> list[TaskId]:
        """Of these, those that the cluster has forgotten. Raises DriverFailed."""
        kept = await self.kept(driver)
        # Read after the driver was: a task that is placed meanwhile is in it.
        known = self._state().tasks
        return [task_id for task_id in kept if task_id not in known]

    async def remove(self, driver: str, task_id: TaskId) -> bool:
        """Nothing of the task is on this node any more. False: the cluster has it. Raises DriverFailed."""
        if not self._is_caught_up() or task_id in self._state().tasks:
            return False
        await self._drivers[driver].remove(task_id, keep_logs=False)
        return True
