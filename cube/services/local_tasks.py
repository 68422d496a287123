"""What can be asked of this node's own tasks, over its drivers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping

from cube.model.cluster import Task
from cube.model.errors import DriverFailed
from cube.model.launch import LogChunk, TaskStats
from cube.model.sessions import ExecCaller, ExecOrder
from cube.ports.clock import Clock
from cube.ports.driver import Driver
from cube.ports.session import Session
from cube.ports.volumes import VolumeStore

log = logging.getLogger(__name__)

SESSIONS_MAX = 32  # commands beside tasks at once: each is a process, a connection and some buffers
ARGV_CHARS_MAX = 500  # of a command, in the node's log


class DriverTasks:
    """ports.cluster.LocalTasks over this node's drivers."""

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        clock: Clock,
        on_exec: Callable[[Task, ExecOrder, ExecCaller], None] = lambda *_: None,
    ) -> None:
        self._drivers = drivers
        self._clock = clock
        self._on_exec = on_exec
        self._sessions = 0  # that have not ended
        self._closing: set[asyncio.Task[None]] = set()
        self._session_number = 0

    def logs(
        self, task: Task, *, streams: tuple[str, ...], tail: int | None, since_ms: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        return self._driver(task).logs(
            task.id, streams=streams, tail=tail, since_ms=since_ms, follow=follow
        )

    async def stats(self, task: Task) -> TaskStats:
        return await self._driver(task).stats(task.id, task.attempt)

    async def signal(self, task: Task, name: str, actor: str) -> None:
        await self._driver(task).signal(task.id, task.attempt, name)
        log.info(
            "signal_sent actor=%s task=%s task_id=%s signal=%s", actor, task.name, task.id, name
        )

    @contextlib.asynccontextmanager
    async def exec(
        self, task: Task, order: ExecOrder, caller: ExecCaller
    ) -> AsyncIterator[Session]:
        """Who ran what beside which task is in the node's log, and so in no one's reach who could
        change the cluster's state; `on_exec` may tell others. What it read and wrote is nowhere."""
        if self._sessions >= SESSIONS_MAX:
            raise DriverFailed(
                "too_many_sessions",
                f"{SESSIONS_MAX} commands run beside tasks of this node already",
                transient=True,
            )
        self._sessions += 1
        try:
            session = await self._driver(task).open_exec(task.id, task.attempt, order)
        except BaseException as error:
            self._sessions -= 1
            if not isinstance(
                error, DriverFailed
            ):  # the caller went while it began: it may have run
                self._on_exec(task, order, caller)
            raise
        self._on_exec(task, order, caller)
        self._session_number += 1
        number, begun_ms = self._session_number, self._clock.monotonic_ms()
        log.info(
            "exec_started session=%d actor=%s task=%s task_id=%s tty=%s argv=%r files=%r",
            number, caller.actor, task.name, task.id, order.tty, " ".join(order.argv)[:ARGV_CHARS_MAX],
            "" if order.files is None else f"{order.files.action} {order.files.path}",
        )  # fmt: skip
        try:
            yield session
        finally:
            # A task of its own: whoever waits here may be told to hurry, and the command has its place
            # until it has ended.
            closing = asyncio.create_task(self._end(session, number, caller.actor, begun_ms))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)

    async def _end(self, session: Session, number: int, actor: str, begun_ms: int) -> None:
        try:
            await session.close()
        finally:
            self._sessions -= 1
            lasted_ms = self._clock.monotonic_ms() - begun_ms
            log.info("exec_ended session=%d actor=%s lasted_ms=%d", number, actor, lasted_ms)

    async def volume_names(self) -> list[str]:
        found: set[str] = set()
        for store in self._stores():
            found.update(await store.volume_names())
        return sorted(found)

    async def remove_volume(self, name: str) -> bool:
        is_gone = False
        for store in self._stores():
            is_gone = await store.remove_volume(name) or is_gone
        if is_gone:
            log.info("volume_removed name=%s", name)
        return is_gone

    def _stores(self) -> list[VolumeStore]:
        drivers = (self._drivers[name] for name in sorted(self._drivers))
        return [driver for driver in drivers if isinstance(driver, VolumeStore)]

    def _driver(self, task: Task) -> Driver:
        driver = self._drivers.get(task.driver)
        if driver is None:
            raise DriverFailed(
                "no_driver", f"this node has no {task.driver} driver", transient=False
            )
        return driver
