"""What the kernel says of processes and cgroups, and how all of a task is killed.

Stdlib only: supervisors import it (see supervisor.py).
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # see supervisor.py
import errno
import os
import time

from cube.adapters.process.wire import READ_BYTES, ignoring, write_file

MARK_QUIET_LOOKS = 3  # while an exec maps the new program, its environment reads as empty
MARK_LOOK_S = 0.02  # together longer than an exec takes on a busy host, page faults and all
MARK_LOOKS = 200  # what survives 4 s of KILL hangs in the kernel


def read_text(path: str) -> str:
    """The file's text; empty when it cannot be read: in /proc, what one looks at may just end."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        parts = []
        while part := os.read(fd, READ_BYTES):
            parts.append(part)
        return b"".join(parts).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def stat_of(pid: int) -> tuple[str, int, int, int] | None:
    """State letter, parent, session and start time (ticks since boot); None when there is none."""
    fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    return fields[0], int(fields[1]), int(fields[3]), int(fields[19])


def start_time(pid: int) -> int:
    """With the pid and the boot id this names one process for ever. 0: there is none."""
    stat = stat_of(pid)
    return stat[3] if stat is not None else 0


def boot_id() -> str:
    return read_text("/proc/sys/kernel/random/boot_id").strip()


def all_stats() -> dict[int, tuple[str, int, int, int]]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = stat_of(int(name))
            if stat is not None:
                found[int(name)] = stat
    return found


def is_dead(state: str) -> bool:
    return state in "ZXx"


def cgroup_pids(directories: list[str]) -> set[int]:
    return {int(p) for d in directories for p in read_text(d + "/cgroup.procs").split()}


def task_pids(supervisor: int, session: int, directories: list[str]) -> set[int]:
    """Every living process of the task: in its cgroups, below its supervisor (which adopts what
    daemonises itself), or in the command's session (0: none). Never the supervisor."""
    stats = all_stats()
    found = {p for p in cgroup_pids(directories) if p in stats}
    found |= {p for p, stat in stats.items() if session and stat[2] == session}
    below = [supervisor]
    while below:
        parent = below.pop()
        children = [p for p, stat in stats.items() if parent and stat[1] == parent]
        found.update(children)
        below.extend(children)
    return {p for p in found if p != supervisor and not is_dead(stats[p][0])}


def marked_pids(task_id: str) -> set[int]:
    """Every living process that was started with this task's id in its environment: the only trace
    of what is neither in a cgroup of ours nor below a supervisor. One look may miss a process that
    forks or is on its way through an exec: who kills goes on until several looks found nothing."""
    mark = f"CUBE_TASK_ID={task_id}"
    found = set()
    for pid, stat in all_stats().items():
        if not is_dead(stat[0]) and mark in read_text(f"/proc/{pid}/environ").split("\0"):
            found.add(pid)
    return found - {os.getpid()}


def kill_marked(task_id: str) -> None:
    """KILL to all that bears the mark, until MARK_QUIET_LOOKS in a row found nothing."""
    quiet = 0
    for _ in range(MARK_LOOKS):
        found = marked_pids(task_id)
        kill_round(found, [])
        quiet = 0 if found else quiet + 1
        if quiet == MARK_QUIET_LOOKS:
            return
        time.sleep(MARK_LOOK_S)


def kill_round(pids: set[int], directories: list[str]) -> None:
    """KILL to all of them, and from now on nothing in the cgroups can fork. In this order: a command
    whose fork fails may end with a code of its own before the KILL arrives."""
    for pid in pids:
        with ignoring(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    for directory in directories:
        for name, value in (("pids.max", b"0"), ("cgroup.kill", b"1")):
            with ignoring(OSError):
                write_file(f"{directory}/{name}", value)


def oom_kills(directories: list[str]) -> int:
    """How many processes the kernel killed in these cgroups for want of memory."""
    for directory in directories:
        for name in ("memory.events", "memory.oom_control"):
            for line in read_text(f"{directory}/{name}").splitlines():
                word, _, count = line.partition(" ")
                if word == "oom_kill":
                    return int(count)
    return 0


def remove_cgroups(directories: list[str]) -> None:
    """Gone, unless something lives in them."""
    for directory in directories:
        for _ in range(20):  # the kernel may take a moment after the last process
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY or cgroup_pids([directory]):
                    break
                time.sleep(0.005)
            else:
                break
