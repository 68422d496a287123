"""Agents are killed and stopped while clients use jobs as registers: what clients were told is
linearizable, and everybody agrees in the end. scripts/faults does as many rounds as asked."""

from __future__ import annotations

import pytest

from tests.faults.cluster import FaultCluster
from tests.faults.nemeses import PROCESSES
from tests.faults.rounds import Round

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("nemesis", PROCESSES)
def test_registers_hold(local: FaultCluster, nemesis: str) -> None:
    result = Round(local, nemesis, seed=1_000 + list(PROCESSES).index(nemesis)).run()
    assert not result.undecided
