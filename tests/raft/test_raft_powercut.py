"""The power goes, on one node or on all at once: nothing acknowledged is lost, no term or vote goes
back. One round of each kind here; scripts/powercut does as many as asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.raft.disks import Disk, directory_for_disks, why_unavailable
from tests.raft.powercut import KINDS, Round


@pytest.fixture
def directory() -> Iterator[Path]:
    with directory_for_disks() as made:
        reason = why_unavailable(made)
        if reason:
            pytest.skip(reason)
        yield made


def test_a_power_cut_loses_what_was_not_synced_and_nothing_else(directory: Path) -> None:
    """Else the rounds below would show nothing."""
    disk = Disk(directory / "disk", 8)
    try:
        with (disk.path / "synced").open("wb") as file:
            file.write(b"x" * 10_000)
            file.flush()
            os.fsync(file.fileno())
        (disk.path / "unsynced").write_bytes(b"x" * 10_000)
        disk.cut_power()
        disk.restore_power()
        assert (disk.path / "synced").read_bytes() == b"x" * 10_000
        assert not (disk.path / "unsynced").exists()
    finally:
        disk.remove()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_acknowledged_is_lost(directory: Path, kind: str, size: int) -> None:
    one = Round(directory, size, kind, seed=1)
    try:
        await one.run()
    finally:
        await one.close()
