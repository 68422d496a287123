"""A disk in memory that survives its users."""

from __future__ import annotations

from cube.model.errors import Unavailable


class FakeDisk:
    """cube.ports.disk.Disk. `is_broken`: every write fails, as when it is full."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.is_broken = False

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def replace(self, name: str, data: bytes) -> None:
        if self.is_broken:
            raise Unavailable("no space left on device")
        self.files[name] = data

    def delete(self, name: str) -> None:
        self.files.pop(name, None)
