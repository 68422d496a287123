"""Agents on hosts of their own lose the network, the time, the disk or the power while clients use
jobs as registers: what clients were told is linearizable, and everybody agrees in the end."""

from __future__ import annotations

import pytest

from tests.faults.cluster import FaultCluster
from tests.faults.nemeses import CLOCKS, DISKS, NETWORK
from tests.faults.rounds import Round

pytestmark = [pytest.mark.e2e, pytest.mark.root]
# Longer than a leader stays in office unanswered, and shorter where that is not the matter.
LEADER_S, OTHER_S = 2.0, 1.0

NEMESES = [*NETWORK, *CLOCKS, *DISKS]
ON_FIVE = ["isolate the leader", "partial"]


@pytest.mark.parametrize("nemesis", NEMESES)
def test_registers_hold(three: FaultCluster, nemesis: str) -> None:
    seed = 2_000 + NEMESES.index(nemesis)
    fault_s = LEADER_S if "leader" in nemesis else OTHER_S
    result = Round(three, nemesis, seed, fault_s).run()
    assert not result.undecided


@pytest.mark.parametrize("nemesis", ON_FIVE)
def test_registers_hold_on_five(five: FaultCluster, nemesis: str) -> None:
    seed = 2_100 + ON_FIVE.index(nemesis)
    result = Round(five, nemesis, seed, LEADER_S).run()
    assert not result.undecided
