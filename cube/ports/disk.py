from __future__ import annotations

from typing import Protocol


class Disk(Protocol):
    """Small files in the node's data directory, replaced as a whole. Names are relative, no `..`."""

    def read(self, name: str) -> bytes | None:
        """The last content that replace() finished with, or None. Raises Unavailable on I/O errors."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Atomic and durable: after a crash the file holds the old or the new content, whole; after
        the return, the new (written, fsynced, renamed, directory fsynced). Mode 0600."""
        ...

    def delete(self, name: str) -> None:
        """It is not there."""
        ...
