"""Processes by identity: a pid alone may mean another process by the time it is used."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from cube.adapters.process.host import all_stats, is_dead, marked_pids, start_time, stat_of
from cube.model.ids import TaskId


def open_pidfd(pid: int, started: int) -> int | None:
    """A handle on this very process; None when it is not there, or only its zombie."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return None
    stat = stat_of(pid)  # read after the handle was taken: now the pid cannot change its meaning
    if stat is None or stat[3] != started or is_dead(stat[0]):
        _reap(pid, stat[1] if stat is not None else 0)
        os.close(fd)
        return None
    return fd


def _reap(pid: int, parent: int) -> None:
    """Bury a zombie that is ours: a supervisor of ours that ended while nobody watched it."""
    if parent == os.getpid():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def is_process(pid: int, started: int) -> bool:
    fd = open_pidfd(pid, started)
    if fd is None:
        return False
    os.close(fd)
    return True


def send_signal(pid: int, started: int, number: int) -> bool:
    """This very process got the signal. False: it has ended."""
    fd = open_pidfd(pid, started)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def signal_session(pid: int, started: int, number: int, *, wake: bool = True) -> None:
    """Every process group of the session that this process leads gets the signal, and is woken."""
    if not is_process(pid, started):
        return
    groups = {pid}
    for member, (_, _, session, _) in all_stats().items():
        if session == pid:
            with contextlib.suppress(ProcessLookupError):
                groups.add(os.getpgid(member))
    for each in (number, signal.SIGCONT) if wake else (number,):
        for group in groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, each)


def orphans(pid: int, started: int, task_id: TaskId) -> set[int]:
    """What lives on of a command whose supervisor is dead, found without cgroups: its session while
    its leader lives (a session's id may be given again after that), and whatever has CUBE_TASK_ID
    of this task in the environment it was started with."""
    found = marked_pids(task_id)
    if pid != 0 and start_time(pid) == started:
        found |= {p for p, stat in all_stats().items() if stat[2] == pid and not is_dead(stat[0])}
    return found - {os.getpid()}


class Watch:
    """`over` is set, and `on_end` called, once the watched process has ended. Buries our children."""

    def __init__(self, pidfd: int, on_end: Callable[[], None]) -> None:
        self.over = asyncio.Event()
        self.exit_code: int | None = None  # of our own child, once it is over
        self._pidfd = pidfd
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._ended)

    def _ended(self) -> None:
        with contextlib.suppress(ChildProcessError):
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            if result is not None:
                is_exit = result.si_code == os.CLD_EXITED
                self.exit_code = result.si_status if is_exit else 128 + result.si_status
        self.close()
        self.over.set()
        self._on_end()

    async def within(self, timeout_ms: int) -> bool:
        """Whether it is over, as soon as it is, or after this time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                await self.over.wait()
        return self.over.is_set()

    def kill(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def resume(self) -> None:
        """It goes on, should anybody have stopped it."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)

    def close(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


async def read_pipe(fd: int, kept: bytearray, bytes_max: int) -> None:
    """All that is written until the last writer closes is in `kept`; of more than `bytes_max` the
    beginning. The caller closes `fd`."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    os.set_blocking(fd, False)
    loop.add_reader(fd, ready.set)
    try:
        while True:
            await ready.wait()
            ready.clear()
            if not drain_pipe(fd, kept, bytes_max):
                return
    finally:
        loop.remove_reader(fd)


def drain_pipe(fd: int, kept: bytearray, bytes_max: int) -> bool:
    """What is in the pipe now is in `kept`. False: the last writer has closed."""
    for _ in range(64):  # then others get a turn: a writer may be faster than we are
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        kept += data[: max(0, bytes_max - len(kept))]
    return True
