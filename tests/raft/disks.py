"""Disks that can lose power: small ext4 file systems on loop devices. Root only.

A power cut is ext4's own shutdown: nothing more reaches the disk, and what was written and not
synced is gone, data and metadata alike.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2  # what is in the file system's journal and not yet on disk is gone, too
# Nothing is written back by itself within a test: only what was synced survives.
_MOUNT_OPTIONS = "loop,commit=600"


class Disk:
    def __init__(self, path: Path, megabytes: int = 64) -> None:
        """Mounted at `path`."""
        self.path = path
        self._image = path.with_suffix(".img")
        path.mkdir(parents=True)
        with self._image.open("wb") as file:
            file.truncate(megabytes << 20)
        _run("mkfs.ext4", "-q", str(self._image))
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-o", _MOUNT_OPTIONS, str(self._image), str(self.path))

    def cut_power(self) -> None:
        """From now on every write fails, and what was not synced is lost."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def restore_power(self) -> None:
        """Mounted again, with what was on the disk. Nobody may have a file open on it."""
        _run("umount", str(self.path))
        # As a file of its own: a container that was started meanwhile, by whomever, may hold on to the
        # mount, and then the kernel would give back the file system that was shut down.
        copy = self._image.with_suffix(".copy")
        _run("cp", "--sparse=always", str(self._image), str(copy))
        copy.rename(self._image)
        self._mount()

    def remove(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)
        self._image.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


def why_unavailable(directory: Path) -> str:
    """Why this machine cannot do it; empty when it can."""
    if os.geteuid() != 0:
        return "needs root, to mount disks that can lose power"
    for command in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(command) is None:
            return f"needs {command}"
    disk: Disk | None = None
    try:
        disk = Disk(directory / "probe", 8)
        disk.cut_power()
        disk.restore_power()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"loop disks or ext4's shutdown do not work here: {error}"
    finally:
        if disk is not None:
            disk.remove()
    return ""


@contextlib.contextmanager
def directory_for_disks() -> Iterator[Path]:
    """Not the test's own: its cleaner would trip over a disk that is still mounted."""
    path = Path(tempfile.mkdtemp(prefix="cube-disks-"))
    try:
        yield path
    finally:
        for mounted in reversed(sorted(path.glob("**/*"))):
            if mounted.is_mount():
                subprocess.run(["umount", "-l", str(mounted)], check=False, capture_output=True)
        shutil.rmtree(path, ignore_errors=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
