from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from cube.model.errors import Unavailable

FILE_BYTES_MAX = 16 << 20  # small files only; a larger one is damage, not ours


class FileDisk:
    """ports.disk.Disk in one directory (mode 0700), held by one process at a time."""

    def __init__(self, directory: Path) -> None:
        """The directory exists and is ours. Raises Unavailable when another agent holds it."""
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"cannot use data directory {directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise Unavailable(f"another agent runs with data directory {directory}") from None

    def close(self) -> None:
        os.close(self._lock)

    def _path(self, name: str) -> Path:
        assert not name.startswith("/"), name
        assert ".." not in Path(name).parts, name
        return self._directory / name

    def read(self, name: str) -> bytes | None:
        try:
            with open(self._path(name), "rb") as file:
                return file.read(FILE_BYTES_MAX)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"cannot read {self._path(name)}: {error.strerror}") from error

    def replace(self, name: str, data: bytes) -> None:
        path = self._path(name)
        new = path.with_name(path.name + ".new")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
            self._sync_directory(path.parent)
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error.strerror}") from error

    def delete(self, name: str) -> None:
        path = self._path(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            self._sync_directory(path.parent)

    @staticmethod
    def _sync_directory(directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
