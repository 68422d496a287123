"""How a node makes a task real. One implementation per kind of workload."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from cube.model.ids import TaskId
from cube.model.launch import (
    DriverInfo,
    ExecResult,
    Launch,
    LogChunk,
    Observation,
    TaskStats,
)
from cube.model.sessions import ExecOrder
from cube.ports.session import Session


class Driver(Protocol):
    """Runs attempts of tasks. The identity of everything it makes is (task_id, attempt).

    Contract, for every method: idempotent by identity; bounded in time (an engine that hangs makes
    it raise DriverFailed("engine_down", …, transient=True), never wait for ever); touches only
    what carries this cluster's and this node's mark; survives the agent: what it started goes on
    when the agent dies, and recover() finds it again. Only DriverFailed is raised.
    """

    name: str

    async def open(self, on_change: Callable[[Observation], None]) -> None:
        """Ready. From now on `on_change` is called on this event loop, soon after anything it made
        exits or vanishes. A hint that may be lost or doubled: inspect() is the truth."""
        ...

    async def close(self) -> None:
        """Resources of this agent freed; tasks go on."""
        ...

    async def fingerprint(self) -> DriverInfo:
        """Whether tasks can be run here now, and facts for constraints. Never raises."""
        ...

    async def recover(self) -> list[Observation]:
        """Everything on this host with this cluster's and node's mark, running or ended, that was
        not removed."""
        ...

    async def prepare(self, launch: Launch) -> str:
        """All that start() needs is there (image pulled, directories made). May take minutes; is
        cancelled by cancelling the call. Returns the digest of the image that start() would run:
        `launch.image_digest` where that is given; empty when it has none."""
        ...

    async def start(self, launch: Launch) -> Observation:
        """The attempt runs (or already ran: then what it is now). At most one start per identity
        takes effect, across agent restarts too. An earlier attempt of the task that has ended is
        cleaned up, its output kept."""
        ...

    async def inspect(self, task_id: TaskId, attempt: int) -> Observation:
        """What is true now. GONE when nothing has this identity."""
        ...

    async def stop(
        self, task_id: TaskId, attempt: int, stop_signal: str, timeout_ms: int
    ) -> Observation:
        """It has ended: by the signal, or by KILL of everything it started after `timeout_ms`
        (0: kill at once). Returns what inspect() would. Ended or gone already: the same answer."""
        ...

    async def signal(self, task_id: TaskId, attempt: int, name: str) -> None:
        """It was given this signal ("SIGHUP", "HUP" or "1"), as stop() gives its own. Refused
        (DriverFailed): "not_running", "bad_signal"."""
        ...

    async def remove(self, task_id: TaskId, *, keep_logs: bool) -> None:
        """Nothing of any attempt is left on this host but, when asked, its output, which logs()
        still finds. Refused (DriverFailed "still_running") while an attempt runs."""
        ...

    def logs(
        self,
        task_id: TaskId,
        *,
        streams: tuple[str, ...],
        tail: int | None,
        since_ms: int,
        follow: bool,
    ) -> AsyncIterator[LogChunk]:
        """The task's output over its attempts, oldest first: the last `tail` lines (None: all that
        is kept), then, when following, what comes, until the task has ended or the caller stops.
        Unknown task: nothing."""
        ...

    async def execute(
        self, task_id: TaskId, attempt: int, argv: tuple[str, ...], timeout_ms: int
    ) -> ExecResult:
        """Run a command where the task is (in its container; or with its environment, directory,
        user and limits), wait for it, kill it at the deadline."""
        ...

    async def stats(self, task_id: TaskId, attempt: int) -> TaskStats:
        """What it uses. Refused (DriverFailed "not_running") when it does not run."""
        ...

    async def open_exec(self, task_id: TaskId, attempt: int, order: ExecOrder) -> Session:
        """As execute(), with somebody at its other end. It ends with the attempt at the latest, and
        with this agent. Refused (DriverFailed "not_running") beside what does not run."""
        ...
