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
            self._make(directory)
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
                data = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"cannot read {self._path(name)}: {error.strerror}") from error
        if len(data) > FILE_BYTES_MAX:
            raise Unavailable(f"{self._path(name)} is larger than {FILE_BYTES_MAX} bytes")
        return data

    def replace(self, name: str, data: bytes) -> None:
        path = self._path(name)
        new = path.with_name(path.name + ".new")
        if len(data) > FILE_BYTES_MAX:
            raise Unavailable(f"{len(data)} bytes for {path} are larger than {FILE_BYTES_MAX}")
        try:
            self._make(path.parent)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                os.fchmod(fd, 0o600)  # what a crash left behind may have another mode
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
            self._sync_directory(path.parent)
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error.strerror}") from error

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            os.unlink(path)
            self._sync_directory(path.parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Unavailable(f"cannot delete {path}: {error.strerror}") from error

    def _make(self, directory: Path, mode: int = 0o700) -> None:
        """The directory and those above it are there, and durable."""
        if not directory.is_dir():
            self._make(directory.parent, 0o777)
            directory.mkdir(mode=mode, exist_ok=True)
            with contextlib.suppress(PermissionError):  # may be written to, and not be opened
                self._sync_directory(directory.parent)

    @staticmethod
    def _sync_directory(directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
