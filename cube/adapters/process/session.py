"""cube.ports.session.Session for plain processes: pipes, or a terminal of its own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import AsyncIterator

from cube.adapters.process.host import start_time
from cube.adapters.process.orders import beside_order
from cube.adapters.process.processes import Watch, signal_session
from cube.adapters.process.spawning import spawn
from cube.adapters.process.wire import Order
from cube.model.sessions import ExecOrder, ExecOutput
from cube.ports.session import CLOSE_GRACE_MS

READ_BYTES = 32 * 1024  # of output at a time
PIPE_BYTES = 256 * 1024  # then the command waits: on a busy host, fewer turns of four processes
END_OF_TRANSMISSION = b"\x04"  # ^D: on a terminal, the end of input


def open_session(task_order: Order, order: ExecOrder, label: str) -> ProcessSession:
    """The command runs beside the task whose order this is. Raises OSError."""
    more = [("env", os.fsencode(f"TERM={order.term}"))] if order.tty and order.term else []
    if order.tty:
        more.append(("tty", b"1"))
    packed = beside_order(task_order, order.argv, "attached", more)
    if order.tty:
        return _on_terminal(packed, task_order, order, label)
    return _on_pipes(packed, label)


def _on_terminal(packed: bytes, task_order: Order, order: ExecOrder, label: str) -> ProcessSession:
    master, slave = os.openpty()
    try:
        _set_size(slave, order.rows, order.columns)
        if task_order.get("uid"):
            os.fchown(slave, int(task_order["uid"][0]), -1)
        pid = spawn(packed, slave, slave, label, slave)
    except OSError:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return ProcessSession(pid, master, {master: "stdout"}, is_terminal=True)


def _on_pipes(packed: bytes, label: str) -> ProcessSession:
    ins, outs, errs = os.pipe(), os.pipe(), os.pipe()
    for pipe in (ins, outs):
        with contextlib.suppress(OSError):  # a user may have as many as the host allows
            fcntl.fcntl(pipe[0], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
        pid = spawn(packed, outs[1], errs[1], label, ins[0])
    except OSError:
        for fd in (ins[1], outs[0], errs[0]):
            os.close(fd)
        raise
    finally:
        for fd in (ins[0], outs[1], errs[1]):
            os.close(fd)
    streams = {outs[0]: "stdout", errs[0]: "stderr"}
    return ProcessSession(pid, ins[1], streams, is_terminal=False)


def _set_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class ProcessSession:
    """Owns the descriptors and the watch over its child, which leads a session of its own."""

    def __init__(self, pid: int, stdin: int, outs: dict[int, str], *, is_terminal: bool) -> None:
        self._pid, self._started = pid, start_time(pid)
        self._stdin, self._outs, self._is_terminal = stdin, dict(outs), is_terminal
        self._open = {stdin, *outs}
        self._loop = asyncio.get_running_loop()
        self._stirred = asyncio.Event()  # output(): something may be there to read
        self._room = asyncio.Event()  # write(): something may fit
        for fd in self._open:
            os.set_blocking(fd, False)
        self._watch = Watch(os.pidfd_open(pid), self._ended)

    def _ended(self) -> None:
        self._stirred.set()
        self._room.set()

    async def output(self) -> AsyncIterator[ExecOutput]:
        while True:
            is_over = self._watch.over.is_set()  # before the look: what it wrote is there by now
            found = False
            for fd, stream in list(self._outs.items()):
                data = self._read(fd)
                if data:
                    found = True
                    yield ExecOutput(stream, data)
            if not found and is_over:
                return
            if not found:
                await self._something()

    def _read(self, fd: int) -> bytes:
        """Empty: nothing now; at its end the descriptor is not looked at any more."""
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:  # a terminal that nobody has open any more
            data = b""
        if not data:
            del self._outs[fd]
        return data

    async def _something(self) -> None:
        """There may be output, or the end. Descriptors are watched no longer than this: what is not
        taken must not wake anybody."""
        self._stirred.clear()
        if self._watch.over.is_set():
            return
        watched = list(self._outs)
        for fd in watched:
            self._loop.add_reader(fd, self._stirred.set)
        try:
            await self._stirred.wait()
        finally:
            for fd in watched:
                self._loop.remove_reader(fd)

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._stdin in self._open and not self._watch.over.is_set():
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                await self._until_room()
            except OSError:  # it has closed its input
                return

    async def _until_room(self) -> None:
        self._room.clear()
        self._loop.add_writer(self._stdin, self._room.set)
        try:
            await self._room.wait()
        finally:
            self._loop.remove_writer(self._stdin)

    async def end_input(self) -> None:
        if self._is_terminal:
            await self.write(END_OF_TRANSMISSION)
        else:
            self._close_fd(self._stdin)

    async def resize(self, rows: int, columns: int) -> None:
        if self._is_terminal and self._stdin in self._open:
            with contextlib.suppress(OSError):
                _set_size(self._stdin, rows, columns)

    async def exit_code(self) -> int | None:
        await self._watch.over.wait()
        return self._watch.exit_code

    async def close(self) -> None:
        for fd in list(self._open):
            self._close_fd(fd)  # of a terminal: whoever is on it is hung up
        if not self._watch.over.is_set():
            await asyncio.to_thread(signal_session, self._pid, self._started, signal.SIGHUP)
            if not await self._watch.within(CLOSE_GRACE_MS):
                await asyncio.to_thread(signal_session, self._pid, self._started, signal.SIGKILL)
                await self._watch.over.wait()

    @property
    def is_over(self) -> bool:
        return self._watch.over.is_set()

    def kill(self) -> None:
        """All of it, now: the task beside which it was has ended."""
        if not self.is_over:
            signal_session(self._pid, self._started, signal.SIGKILL)

    def _close_fd(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            self._outs.pop(fd, None)
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            os.close(fd)
            self._stirred.set()
            self._room.set()
