from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from cube.model.cluster import Task
from cube.model.errors import DriverFailed
from cube.model.launch import LogChunk
from cube.ports.driver import Driver


class TaskLogs:
    """ports.cluster.LocalTasks over this node's drivers."""

    def __init__(self, drivers: Mapping[str, Driver]) -> None:
        self._drivers = drivers

    def logs(
        self, task: Task, *, streams: tuple[str, ...], tail: int | None, since_ms: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        driver = self._drivers.get(task.driver)
        if driver is None:
            raise DriverFailed(
                "no_driver", f"this node has no {task.driver} driver", transient=False
            )
        return driver.logs(task.id, streams=streams, tail=tail, since_ms=since_ms, follow=follow)
