from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.cluster import FaultCluster
from tests.faults.networks import Loopback, why_no_hosts
from tests.faults.rounds import on_hosts, why_no_hosts_with_everything
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


@pytest.fixture(scope="module")
def three() -> Iterator[FaultCluster]:
    """Three hosts with disks and clocks that can fail."""
    reason = why_no_hosts_with_everything()
    if reason:
        pytest.skip(reason)
    with on_hosts(3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def five() -> Iterator[FaultCluster]:
    """Five hosts."""
    reason = why_no_hosts()
    if reason:
        pytest.skip(reason)
    with on_hosts(5, is_bare=True) as cluster:
        yield cluster
