"""What a task uses: from its control groups where it has some, else from its processes."""

from __future__ import annotations

import os
from collections.abc import Iterable

from cube.adapters.process.host import read_text
from cube.model.launch import TaskStats

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def usage(directories: list[str], pids: Iterable[int], limit_bytes: int, at_ms: int) -> TaskStats:
    """`pids`: all its processes. Bytes of input and output are those of the processes that live: the
    host's groups do not all count them. A process has the host's network, so nobody counts that."""
    alive = list(pids)
    read, written = _io_of(alive)
    cpu_ms = _first(_cpu_ms_of(directory) for directory in directories)
    memory = _first(_memory_of(directory) for directory in directories)
    return TaskStats(
        at_ms=at_ms,
        cpu_ms=sum(map(_cpu_ms_of_process, alive)) if cpu_ms is None else cpu_ms,
        memory_bytes=sum(map(_memory_of_process, alive)) if memory is None else memory,
        memory_limit_bytes=limit_bytes or None,
        pids=len(alive),
        read_bytes=read,
        written_bytes=written,
    )


def _first(found: Iterable[int | None]) -> int | None:
    return next((value for value in found if value is not None), None)


def _cpu_ms_of(directory: str) -> int | None:
    nanoseconds = read_text(f"{directory}/cpuacct.usage").strip()
    if nanoseconds.isdigit():
        return int(nanoseconds) // 1_000_000
    microseconds = _field(f"{directory}/cpu.stat", "usage_usec")
    return None if microseconds is None else microseconds // 1000


def _memory_of(directory: str) -> int | None:
    """Without what the kernel gives back when somebody else wants it, as everybody counts it."""
    for name, cache in (
        ("memory.current", "inactive_file"),
        ("memory.usage_in_bytes", "total_inactive_file"),
    ):
        used = read_text(f"{directory}/{name}").strip()
        if used.isdigit():
            return max(0, int(used) - (_field(f"{directory}/memory.stat", cache) or 0))
    return None


def _field(path: str, name: str) -> int | None:
    for line in read_text(path).splitlines():
        word, _, value = line.partition(" ")
        if word == name and value.isdigit():
            return int(value)
    return None


def _cpu_ms_of_process(pid: int) -> int:
    fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * 1000 // TICKS_PER_S  # its own, and of children it buried


def _memory_of_process(pid: int) -> int:
    fields = read_text(f"/proc/{pid}/statm").split()
    return int(fields[1]) * PAGE_BYTES if len(fields) > 1 else 0


def _io_of(pids: Iterable[int]) -> tuple[int | None, int | None]:
    """None, None: the kernel tells nobody, or not us."""
    read = written = 0
    is_told = False
    for pid in pids:
        lines = dict(
            line.split(": ", 1)
            for line in read_text(f"/proc/{pid}/io").splitlines()
            if ": " in line
        )
        if "read_bytes" in lines:
            is_told = True
            read += int(lines["read_bytes"])
            written += int(lines["write_bytes"])
    return (read, written) if is_told else (None, None)
