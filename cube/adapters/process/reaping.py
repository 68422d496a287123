"""The end of processes whose node was removed from the cluster. Nobody knows that node's data directory:
what it left is found by its supervisors, each of which has its order in its memory, and by its groups.

An order is believed only of a process of our own user in our own pid namespace: another could make one up
to have things killed.
Nothing of what it says is followed but the names, and those only to groups of the node they name.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import time
from collections.abc import Iterator, Set
from pathlib import Path

import msgspec

from cube.adapters.process.attempts import group_name
from cube.adapters.process.cgroups import Cgroups
from cube.adapters.process.host import (
    all_stats,
    cgroup_pids,
    is_dead,
    kill_marked,
    kill_round,
    remove_cgroups,
    task_pids,
)
from cube.adapters.process.processes import is_process, send_signal
from cube.adapters.process.records import SAFE_ID
from cube.adapters.process.wire import Order, first, read_all, unpack
from cube.model.ids import ClusterId, NodeId, TaskId

LOG = logging.getLogger(__name__)

ORDER_LINK = "/memfd:cube-order"  # what a supervisor's descriptor 0 is called in /proc
ORDER_BYTES_MAX = 8 << 20  # more than a kernel takes as words and environment of a command
ROUNDS = 250  # × 20 ms: what survives 5 s of KILL hangs in the kernel
ROUND_S = 0.02


class Left(msgspec.Struct, frozen=True):
    """An attempt with a living supervisor."""

    node_id: NodeId
    task_id: TaskId
    attempt: int
    supervisor_pid: int
    supervisor_start_time: int


def reap(cluster_id: ClusterId, removed: Set[NodeId], groups: Cgroups) -> int:
    """Nothing of these nodes of this cluster runs, and their groups are gone. How many attempts did."""
    ended = 0
    for left in _supervised(cluster_id, removed):
        LOG.warning("process_reaped node=%s task=%s attempt=%d", *_names(left))
        _end(left, groups)
        ended += 1
    for node_id in removed:
        ended += _end_groups(groups.homes_of(node_id))
    return ended


def _names(left: Left) -> tuple[str, str, int]:
    return left.node_id, left.task_id, left.attempt


def _supervised(cluster_id: ClusterId, removed: Set[NodeId]) -> Iterator[Left]:
    for pid, seen in all_stats().items():
        order = None if is_dead(seen[0]) else _order_of(pid)
        if order is None:
            continue
        task_id, attempt = first(order, "task_id"), first(order, "attempt")
        if first(order, "mode") != "supervise" or first(order, "cluster_id") != cluster_id:
            continue
        node_id = NodeId(first(order, "node_id"))
        if node_id in removed and SAFE_ID.fullmatch(task_id) and attempt.isdecimal():
            yield Left(node_id, TaskId(task_id), int(attempt), pid, seen[3])


def _order_of(pid: int) -> Order | None:
    """None: it is no supervisor's, or a container's, whose root is our own user where we are root."""
    link = f"/proc/{pid}/fd/0"
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return None
        if os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid"):
            return None
        if not os.readlink(link).startswith(ORDER_LINK):
            return None
        # By now it may be anything, such as a pipe that nobody writes to.
        fd = os.open(link, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > ORDER_BYTES_MAX:
            return None
        return unpack(read_all(fd))
    except (OSError, UnicodeDecodeError):
        return None
    finally:
        os.close(fd)


def _end(left: Left, groups: Cgroups) -> None:
    """The command and all below it are dead; their supervisor has seen that and ended, or was killed.
    It is killed last: while it lives it takes in what daemonises itself."""
    name = group_name((left.task_id, left.attempt))
    directories = [str(home / name) for home in groups.homes_of(left.node_id)]
    supervisor = left.supervisor_pid, left.supervisor_start_time
    _ = send_signal(*supervisor, signal.SIGCONT)  # should anybody have stopped it
    for _ in range(ROUNDS):
        if not is_process(*supervisor):
            break
        kill_round(task_pids(left.supervisor_pid, 0, directories), directories)
        time.sleep(ROUND_S)
    else:
        LOG.error("process_supervisor_stuck task=%s attempt=%d", left.task_id, left.attempt)
        _ = send_signal(*supervisor, signal.SIGKILL)
    if not directories:
        kill_marked(left.task_id)


def _end_groups(homes: list[Path]) -> int:
    """What has lost its supervisor is in groups that are called as attempts are."""
    ended = 0
    for home in homes:
        try:
            names = [entry.name for entry in os.scandir(home) if entry.is_dir()]
        except OSError:
            continue
        for name in names:
            task_id, _, number = name.rpartition(".")
            if not SAFE_ID.fullmatch(task_id) or not number.isdecimal():
                continue
            directory = str(home / name)
            for turn in range(ROUNDS):
                pids = cgroup_pids([directory])
                if not pids:
                    break
                ended += turn == 0
                kill_round(pids, [directory])
                time.sleep(ROUND_S)
            remove_cgroups([directory])
        remove_cgroups([str(home)])
    return ended
