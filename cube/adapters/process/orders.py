"""From a Launch to the order a supervisor gets: everything looked up, nothing left to decide."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cube.adapters.process.failures import lasting
from cube.adapters.process.records import SAFE_ID, TaskPaths
from cube.adapters.process.wire import pack
from cube.model.launch import Launch

INHERITED = ("PATH", "HOME", "LANG")  # of the agent's environment; nothing else
Fields = list[tuple[str, bytes]]


class User(msgspec.Struct, frozen=True):
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str  # empty: unknown


def check(launch: Launch) -> None:
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
    user_of(launch)
    if launch.working_dir and not Path(_absolute(launch.working_dir)).is_dir():
        raise lasting(
            "working_dir_missing", f"working_dir {launch.working_dir} is not a directory here"
        )


def user_of(launch: Launch) -> User | None:
    """Who the task runs as; None: as the agent. `name`, `uid`, `name:group` or `uid:gid`."""
    if not launch.user:
        return None
    name, _, group = launch.user.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        if not name.isdigit():
            raise lasting("user_unknown", f"no user {name!r} on this host") from None
        uid, gid, home = int(name), int(name), "/"
        groups: tuple[int, ...] = (gid,)
    else:
        uid, gid, home = entry.pw_uid, entry.pw_gid, entry.pw_dir
        groups = tuple(os.getgrouplist(entry.pw_name, gid))
    if group:
        try:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise lasting("user_unknown", f"no group {group!r} on this host") from None
        groups = (gid,)
    if uid == os.geteuid() and not group:
        return None
    if os.geteuid() != 0:
        raise lasting(
            "user_not_allowed",
            f"only an agent that runs as root can start a task as {launch.user!r}",
        )
    return User(uid, gid, groups, home)


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
    segment_bytes: int,
    segments: int,
    lease_file: Path,
    stop_signal: int,
) -> Fields:
    """What the supervisor is told. `become_fields` of it serve execute() again."""
    user = user_of(launch)
    fields: Fields = [
        ("mode", b"supervise"),
        ("cluster_id", launch.cluster_id.encode()),
        ("node_id", launch.node_id.encode()),
        ("task_id", launch.task_id.encode()),
        ("attempt", str(launch.attempt).encode()),
        ("dir", os.fsencode(paths.attempt(launch.attempt))),
        ("logs", os.fsencode(paths.logs)),
        ("segment_bytes", str(segment_bytes).encode()),
        ("segments", str(segments).encode()),
        ("cwd", os.fsencode(_absolute(launch.working_dir) or paths.work)),
    ]
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
    if user is not None:
        fields += [("uid", str(user.uid).encode()), ("gid", str(user.gid).encode())]
        fields += [("group", str(group).encode()) for group in user.groups]
    return fields


def beside_order(order: dict[str, list[bytes]], argv: tuple[str, ...]) -> bytes:
    """The order to become `argv` where the task of `order` is."""
    kept = [
        (key, value)
        for key in ("cwd", "env", "cgroup", "uid", "gid", "group")
        for value in order.get(key, [])
    ]
    words = [("argv", os.fsencode(word)) for word in argv]
    return pack([("mode", b"beside"), *kept, *words])


def _absolute(working_dir: str) -> str:
    """Relative ones are below the root, as in a container."""
    return os.path.join("/", working_dir) if working_dir else ""
