"""Limits by control group, version 1 or 2, where this host lets us write them.

A task's groups are `<hierarchy>/<parent>/<node id>/<task id>.<attempt>`: the name says whose it is,
so what is left over after a crash is found and is ours. Joining, killing and removing are in host.py,
which the supervisors use; this is the agent's half: which hierarchies there are, and the limits.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cube.adapters.process.host import cgroup_pids, remove_cgroups
from cube.adapters.process.records import SAFE_ID
from cube.model.errors import DriverFailed
from cube.model.launch import Launch

CONTROLLERS = ("cpu", "memory", "pids")
PERIOD_US = 100_000  # the kernel's default for both versions
QUOTA_MIN_US = 1000  # the kernel refuses less
SHARES_MIN, SHARES_MAX = 2, 262_144


class Limits(msgspec.Struct, frozen=True):
    """0: none."""

    cpu_milli: int = 0
    cpu_max_milli: int = 0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    pids: int = 0


def limits_of(launch: Launch) -> Limits:
    return Limits(
        cpu_milli=launch.cpu_milli,
        cpu_max_milli=launch.cpu_max_milli,
        memory_bytes=launch.memory_bytes,
        memory_limit_bytes=launch.memory_limit_bytes,
        pids=launch.pids_limit,
    )


class Cgroups:
    """Where this node's tasks get their groups. Version "none": they get none, and `reason` says why.

    Invariant: `homes` are existing directories that we may write; on version 2 there is one, on
    version 1 one for each controller in `controllers`.
    """

    def __init__(
        self, version: str, homes: dict[str, Path], controllers: tuple[str, ...], reason: str
    ) -> None:
        self.version = version
        self.homes = homes
        self.controllers = controllers
        self.reason = reason

    def homes_of(self, node_id: str) -> list[Path]:
        """Where another node of this host has its groups, if it has any."""
        assert SAFE_ID.fullmatch(node_id), node_id
        return [home.parent / node_id for home in self.homes.values()]

    def directories(self, name: str) -> list[str]:
        """Where the group of this name is, or would be."""
        return [str(home / name) for home in self.homes.values()]

    def create(self, name: str, limits: Limits) -> list[str]:
        """The group exists with these limits; its directories. Raises DriverFailed when the kernel
        refuses one: then nothing may be started without it, and no group is left."""
        try:
            return self._create(name, limits)
        except OSError as error:
            self.remove(name)
            text = f"cannot set {error.filename}: {error.strerror}"
            may_pass = error.errno not in (errno.EINVAL, errno.ERANGE)
            raise DriverFailed("limits_not_set", text, transient=may_pass) from error

    def _create(self, name: str, limits: Limits) -> list[str]:
        made = []
        for controller, home in self.homes.items():
            directory = home / name
            directory.mkdir(parents=True, exist_ok=True)
            made.append(str(directory))
            wanted = _settings_v1(limits) if controller else _settings_v2(limits)
            for file, value, is_optional in wanted:
                if file.partition(".")[0] not in (
                    (controller,) if controller else self.controllers
                ):
                    continue
                _write(directory / file, value, is_optional=is_optional)
        return made

    def leftovers(self) -> Iterator[str]:
        """Names of all groups of this node."""
        names: set[str] = set()
        for home in self.homes.values():
            if home.is_dir():
                names.update(entry.name for entry in os.scandir(home) if entry.is_dir())
        yield from sorted(names)

    def remove(self, name: str) -> None:
        """Gone, unless something lives in it."""
        remove_cgroups(self.directories(name))

    def remove_homes(self) -> None:
        """The node's own directories are gone, unless a group is left in them."""
        remove_cgroups([str(home) for home in self.homes.values()])

    def pids(self, name: str) -> set[int]:
        return cgroup_pids(self.directories(name))


def none(reason: str) -> Cgroups:
    """No limits here, and why."""
    return Cgroups("none", {}, (), reason)


def detect(root: Path, parent: str, node_id: str) -> Cgroups:
    """What this host offers. Makes the node's own directories; never raises."""
    if (root / "cgroup.controllers").exists():
        return _detect_v2(root, parent, node_id)
    homes, refused = {}, ""
    for controller in CONTROLLERS:
        if not (root / controller).is_dir():
            refused = refused or f"{root / controller} is not mounted"
            continue
        home = root / controller / parent / node_id
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            refused = f"cannot make {home}: {error.strerror}"
        else:
            if os.access(home, os.W_OK):
                homes[controller] = home
    if not homes:
        return none(refused or f"{root} is not writable")
    return Cgroups("1", homes, tuple(homes), refused)


def _detect_v2(root: Path, parent: str, node_id: str) -> Cgroups:
    offered = (root / "cgroup.controllers").read_text().split()
    usable = tuple(c for c in CONTROLLERS if c in offered)
    home = root / parent / node_id
    try:
        home.mkdir(parents=True, exist_ok=True)
        # A controller reaches a group only when every group above it passes it on.
        for above in (root, root / parent, home):
            for controller in usable:
                _write(above / "cgroup.subtree_control", f"+{controller}", is_optional=False)
    except OSError as error:
        return none(f"cannot use {home}: {error.strerror}")
    return Cgroups("2", {"": home}, usable, "")


def _settings_v1(limits: Limits) -> list[tuple[str, str, bool]]:
    """File, value, and whether a kernel may lack it (accounting of swap is optional)."""
    wanted = []
    if limits.cpu_milli:
        wanted.append(("cpu.shares", str(shares(limits.cpu_milli)), False))
    if limits.cpu_max_milli:
        wanted.append(("cpu.cfs_period_us", str(PERIOD_US), False))
        wanted.append(("cpu.cfs_quota_us", str(quota_us(limits.cpu_max_milli)), False))
    if limits.memory_bytes:
        wanted.append(("memory.soft_limit_in_bytes", str(limits.memory_bytes), True))
    if limits.memory_limit_bytes:
        wanted.append(("memory.limit_in_bytes", str(limits.memory_limit_bytes), False))
        wanted.append(("memory.memsw.limit_in_bytes", str(limits.memory_limit_bytes), True))
    if limits.pids:
        wanted.append(("pids.max", str(limits.pids), False))
    return wanted


def _settings_v2(limits: Limits) -> list[tuple[str, str, bool]]:
    wanted = []
    if limits.cpu_milli:
        wanted.append(("cpu.weight", str(weight(limits.cpu_milli)), False))
    if limits.cpu_max_milli:
        wanted.append(("cpu.max", f"{quota_us(limits.cpu_max_milli)} {PERIOD_US}", False))
    if limits.memory_bytes:
        wanted.append(("memory.low", str(limits.memory_bytes), True))
    if limits.memory_limit_bytes:
        wanted.append(("memory.max", str(limits.memory_limit_bytes), False))
        wanted.append(("memory.swap.max", "0", True))
    if limits.pids:
        wanted.append(("pids.max", str(limits.pids), False))
    return wanted


def shares(cpu_milli: int) -> int:
    """Version 1: 1024 a core, as Docker counts them."""
    return min(max(cpu_milli * 1024 // 1000, SHARES_MIN), SHARES_MAX)


def weight(cpu_milli: int) -> int:
    """Version 2: the same share on its scale of 1 to 10,000 (the conversion runc uses)."""
    return 1 + (shares(cpu_milli) - SHARES_MIN) * 9999 // (SHARES_MAX - SHARES_MIN)


def quota_us(cpu_max_milli: int) -> int:
    return max(cpu_max_milli * PERIOD_US // 1000, QUOTA_MIN_US)


def _write(path: Path, value: str, *, is_optional: bool) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        if not is_optional:  # an error in write() does not name its file
            raise OSError(error.errno, error.strerror, f"{path} to {value!r}") from error
