"""A command run beside a task: a check, or what somebody types."""

from __future__ import annotations

import asyncio
import os
import signal

from cube.adapters.process.processes import Watch, drain_pipe, read_pipe
from cube.adapters.process.spawning import spawn
from cube.model.launch import ExecResult

OUTPUT_BYTES = 4096  # kept, of both streams together


async def run_beside(order: bytes, timeout_ms: int, label: str) -> ExecResult:
    """The command of this order has ended, or was killed at its deadline. What it leaves behind in
    the background is not waited for: it ends with the task."""
    read_fd, write_fd = os.pipe()
    try:
        pid = spawn(order, write_fd, write_fd, label)
        watch = Watch(os.pidfd_open(pid), lambda: None)
    except OSError:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    output = bytearray()
    reading = asyncio.create_task(read_pipe(read_fd, output, OUTPUT_BYTES))
    is_in_time = False
    try:
        is_in_time = await watch.within(timeout_ms)
    finally:
        if not watch.over.is_set():
            os.killpg(pid, signal.SIGKILL)  # not buried yet: it is still this one
            await asyncio.shield(watch.over.wait())
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        drain_pipe(read_fd, output, OUTPUT_BYTES)
        os.close(read_fd)
    return ExecResult(watch.exit_code if is_in_time else None, bytes(output))
