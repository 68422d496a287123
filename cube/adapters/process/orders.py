"""From a Launch to the order a supervisor gets: everything looked up, nothing left to decide."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

from cube.adapters.process.failures import lasting
from cube.adapters.process.records import SAFE_ID, TaskPaths
from cube.adapters.process.settings import ProcessSettings
from cube.adapters.process.users import User, user_of
from cube.adapters.process.wire import pack
from cube.model.launch import Launch
from cube.model.spec import Ulimit

INHERITED = ("PATH", "HOME", "LANG")  # of the agent's environment; nothing else
Fields = list[tuple[str, bytes]]


def check(launch: Launch, settings: ProcessSettings) -> None:
    """Raises DriverFailed for what a process can never be given."""
    if not SAFE_ID.fullmatch(launch.task_id) or launch.attempt < 1:
        raise lasting("bad_id", f"not a task's identity: {launch.task_id!r}.{launch.attempt}")
    argv = launch.entrypoint + launch.command
    if not argv or not argv[0]:
        raise lasting("command_missing", 'a process needs a command: set command = ["…"]')
    texts = (*argv, *launch.env, *launch.env.values(), launch.working_dir)
    if any("\0" in text for text in texts) or any("=" in name or not name for name in launch.env):
        raise lasting("bad_launch", "a NUL in the command, or = in an environment variable's name")
    if launch.mounts:
        raise lasting(
            "mounts_not_supported", "a process sees the host's own files: leave mounts to docker"
        )
    for limit in launch.ulimits:
        if not hasattr(resource, rlimit_name(limit.name)):
            raise lasting("ulimit_unknown", f"this host knows no limit {limit.name!r}")
    user_of(launch, settings)
    if launch.working_dir and not Path(_absolute(launch.working_dir)).is_dir():
        raise lasting(
            "working_dir_missing", f"working_dir {launch.working_dir} is not a directory here"
        )


def environment(launch: Launch, user: User | None) -> dict[str, str]:
    """The launch's own, and of the agent's PATH, HOME and LANG; another user has another HOME."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    if user is not None:
        inherited["HOME"] = user.home
    return inherited | launch.env


def order_fields(
    launch: Launch,
    paths: TaskPaths,
    cgroup: Sequence[str],
    settings: ProcessSettings,
    lease_file: Path,
    stop_signal: int,
) -> Fields:
    """What the supervisor is told. Some of it serves execute() again (beside_order)."""
    user = user_of(launch, settings)
    fields: Fields = [
        ("mode", b"supervise"),
        ("cluster_id", launch.cluster_id.encode()),
        ("node_id", launch.node_id.encode()),
        ("task_id", launch.task_id.encode()),
        ("attempt", str(launch.attempt).encode()),
        ("dir", os.fsencode(paths.attempt(launch.attempt))),
        ("logs", os.fsencode(paths.logs)),
        ("segment_bytes", str(settings.log_segment_bytes).encode()),
        ("segments", str(settings.log_segments).encode()),
        ("cwd", os.fsencode(_absolute(launch.working_dir) or paths.work)),
    ]
    if launch.memory_limit_bytes:
        fields.append(("memory_limit_bytes", str(launch.memory_limit_bytes).encode()))
    if launch.lease is not None:
        fields += [
            ("lease_file", os.fsencode(lease_file)),
            ("leased_from_ms", str(launch.lease.from_ms).encode()),
            ("lost_after_ms", str(launch.lease.lost_after_ms).encode()),
            ("stop_signal", str(stop_signal).encode()),
            ("stop_timeout_ms", str(launch.stop_timeout_ms).encode()),
        ]
    fields += [("argv", os.fsencode(word)) for word in launch.entrypoint + launch.command]
    env = environment(launch, user)
    fields += [("env", os.fsencode(f"{name}={value}")) for name, value in env.items()]
    fields += [("cgroup", os.fsencode(directory)) for directory in cgroup]
    if launch.disk_bytes:
        fields.append(("disk_bytes", str(launch.disk_bytes).encode()))
    fields += [("rlimit", rlimit(limit)) for limit in launch.ulimits]
    if user is not None:
        fields += [("uid", str(user.uid).encode()), ("gid", str(user.gid).encode())]
        fields += [("group", str(group).encode()) for group in user.groups]
    return fields


def rlimit_name(name: str) -> str:
    return f"RLIMIT_{name.upper()}"


def rlimit(limit: Ulimit) -> bytes:
    """The kernel's number of it, soft, hard, and its name, which is for people."""
    number = getattr(resource, rlimit_name(limit.name))
    return f"{number} {limit.soft} {limit.hard} {limit.name}".encode()


def beside_order(
    order: dict[str, list[bytes]],
    argv: tuple[str, ...],
    mode: str = "beside",
    more: Sequence[tuple[str, bytes]] = (),
) -> bytes:
    """The order to become `argv` where the task of `order` is. Of `more`, an environment variable
    replaces the task's."""
    kept = [
        (key, value)
        for key in ("cwd", "env", "cgroup", "rlimit", "uid", "gid", "group")
        for value in order.get(key, [])
    ]
    words = [("argv", os.fsencode(word)) for word in argv]
    return pack([("mode", mode.encode()), *kept, *more, *words])


def _absolute(working_dir: str) -> str:
    """Relative ones are below the root, as in a container."""
    return os.path.join("/", working_dir) if working_dir else ""
