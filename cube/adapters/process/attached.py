"""Becoming a command that somebody talks to: beside a running task, with its own input.

Runs in the process that spawn() made, with the standard library alone (see supervisor.py). Its input
is descriptor 3; on a terminal, that is the terminal.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # see supervisor.py
import fcntl
import os
import termios

from cube.adapters.process.supervisor import PR_SET_PDEATHSIG, STDIN_FD, become, prctl
from cube.adapters.process.wire import Order, first, write_file

NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as every shell says it


def run_attached(order: Order) -> None:
    """Does not return."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if order.get("tty"):
        fcntl.ioctl(STDIN_FD, termios.TIOCSCTTY, 0)
    try:
        for directory in order.get("cgroup", []):
            write_file(os.fsdecode(directory) + "/cgroup.procs", b"0")
    except OSError:  # the task has ended meanwhile: beside it there is no place any more
        os._exit(NOT_EXECUTABLE)
    os.dup2(STDIN_FD, 0)
    os.close(STDIN_FD)
    code, message, _ = become(order)
    text = f"cube: {message}\n" if not first(order, "tty") else f"cube: {message}\r\n"
    os.write(2, text.encode("utf-8", "replace"))
    os._exit(NOT_FOUND if code == "command_not_found" else NOT_EXECUTABLE)
