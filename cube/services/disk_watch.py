"""A node whose disk is nearly full takes no new tasks: said by its drivers, before anything fails."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from cube.model.launch import DISK_FACT, DISK_SHORT, ROOT_FACT, DriverInfo
from cube.model.units import format_size
from cube.worker.disk import DiskFloor

_log = logging.getLogger(__name__)


class DiskWatch:
    """`data_dir` holds the log and what processes print and write; a driver's `root` what its tasks do.
    `free_bytes` says how much is free at a path, None where that path is not (an engine elsewhere)."""

    def __init__(
        self, data_dir: str, free_min_bytes: int, free_bytes: Callable[[str], int | None]
    ) -> None:
        self._data_dir = data_dir
        self._free_min_bytes = free_min_bytes
        self._free_bytes = free_bytes
        self._floors: dict[str, DiskFloor] = {}

    def judge(self, info: DriverInfo) -> DriverInfo:
        """What the driver says of itself, unless a disk that it needs is short."""
        paths = (self._data_dir, info.attributes.get(ROOT_FACT, ""))
        short = [path for path in dict.fromkeys(paths) if path and self._is_short(path)]
        if not short or not info.healthy:
            return info
        least = format_size(self._free_min_bytes)
        return msgspec.structs.replace(
            info,
            healthy=False,
            reason=f"less than {least} is free on {short[0]} ([gc] disk_free_min)",
            attributes={**info.attributes, DISK_FACT: DISK_SHORT},
        )

    def _is_short(self, path: str) -> bool:
        free_bytes = self._free_bytes(path)
        if free_bytes is None:
            return False
        floor = self._floors.setdefault(path, DiskFloor(self._free_min_bytes))
        return floor.step(free_bytes)
