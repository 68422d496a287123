from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.cluster import FaultCluster
from tests.faults.networks import Loopback
from tests.raft.disks import directory_for_disks


@pytest.fixture(scope="module")
def local() -> Iterator[FaultCluster]:
    """Three nodes on loopback, for the tests of a module in turn: each leaves it whole."""
    with directory_for_disks() as directory:
        cluster = FaultCluster(directory, Loopback())
        try:
            cluster.form(3)
            yield cluster
        finally:
            cluster.close()
