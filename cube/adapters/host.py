"""What this machine has and how busy it is (psutil)."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from cube.model.housekeeping import DiskRoom
from cube.model.resources import Resources
from cube.ports.cluster import MemberStats

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def capacity(data_dir: Path) -> Resources:
    """All cores, all memory, and what is free on the data directory's file system now."""
    return Resources(
        cpu_milli=(psutil.cpu_count() or 1) * 1000,
        memory_bytes=psutil.virtual_memory().total,
        disk_bytes=psutil.disk_usage(str(data_dir)).free,
    )


def disk_free_bytes(path: str) -> int | None:
    """Free for users on the file system of this path; None: it is not on this machine, or does not say."""
    try:
        return psutil.disk_usage(path).free
    except OSError:
        return None


def disk_room(path: str) -> DiskRoom | None:
    """Of the file system of this path, as users may fill it; None as above."""
    try:
        usage = psutil.disk_usage(path)
    except OSError:
        return None
    return DiskRoom(total_bytes=usage.used + usage.free, free_bytes=usage.free)


def attributes() -> dict[str, str]:
    """NodeFacts.attributes, by the names that constraints use. Architectures are called what
    container images call them."""
    machine = platform.machine()
    return {
        "node.os": platform.system().lower(),
        "node.arch": _ARCHITECTURES.get(machine, machine),
        "node.kernel": platform.release(),
        "node.cores": str(psutil.cpu_count() or 1),
    }


def stats(data_dir: Path, applied_index: int) -> MemberStats:
    """Use of the whole host since the last call. Does not block."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(data_dir))
    return MemberStats(
        cpu_percent=psutil.cpu_percent(interval=None),
        cpu_cores=psutil.cpu_count() or 1,
        load_1m=round(os.getloadavg()[0], 2),
        memory_total_bytes=memory.total,
        memory_used_bytes=memory.total - memory.available,
        disk_total_bytes=disk.total,
        disk_used_bytes=disk.used,
        applied_index=applied_index,
    )


def boot_id() -> str:
    """Of this host since it was last booted; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
