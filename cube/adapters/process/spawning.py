"""Starting supervisors, and commands beside tasks. No process is ever started by a shell."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import cube
from cube.adapters.process.supervisor import BOOTSTRAP, STDIN_FD

# Found once: an upgrade of the files must not change what a running agent starts.
PACKAGE_ROOT = str(Path(cube.__file__).parent.parent)
# What the agent ignores, its tasks need not: a shell's `cube agent &` ignores SIGINT and SIGQUIT.
RESET = tuple(sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))


def spawn(order: bytes, out: int, err: int, label: str, stdin: int | None = None) -> int:
    """The pid of a new supervisor in a session of its own: a child of ours, to be buried by a Watch.
    It has the order as its descriptor 0, and nothing else of ours but `out` and `err`, and `stdin`
    as its descriptor 3. `label` shows in the host's process list."""
    order_fd = os.memfd_create("cube-order")
    given = [] if stdin is None else [(os.POSIX_SPAWN_DUP2, stdin, STDIN_FD)]
    try:
        _write_all(order_fd, order)
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", BOOTSTRAP, PACKAGE_ROOT, label],
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, order_fd, 0),
                (os.POSIX_SPAWN_DUP2, out, 1),
                (os.POSIX_SPAWN_DUP2, err, 2),
                *given,  # last: the number may be that of one before
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=RESET,
        )
    finally:
        os.close(order_fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
