"""What a leader decided, and another one's term commits, is refused: through a real log."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cube.adapters.entropy import new_id
from cube.adapters.raft import PySyncObjLog
from cube.adapters.system_clock import SystemClock
from cube.model.commands import InitCluster, RegisterNode, SetNodeStatus
from cube.model.ids import ClusterId, NodeId
from cube.model.lifecycle import NodeStatus
from cube.model.outcome import Done, Rejected, RejectReason
from cube.ports.log import Log
from cube.services.proposer import Proposer
from cube.services.state_feed import StateFeed
from tests.builders import facts
from tests.contract.test_raft_faults import Cut, node_of
from tests.raft_support import RealCluster, until

WRITE_MS = 15_000
OLD = 0  # the member that leads at first


class StateCluster(RealCluster):
    """Its members apply the cluster's commands."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.feeds: dict[int, StateFeed] = {}

    def make(self, number: int, members: tuple[str, ...], *, joining: bool) -> PySyncObjLog:
        log = super().make(number, members, joining=joining)
        self.feeds[number] = log._replica = StateFeed()
        return log


def proposer(log: Log) -> Proposer:
    made = Proposer(log, SystemClock(), WRITE_MS, new_id)
    log.watch(made.on_log_status)
    return made


@pytest.mark.parametrize("is_begun", [True, False])
async def test_a_deposed_leaders_command_is_refused_by_its_term(
    tmp_path: Path, is_begun: bool
) -> None:
    """Begun while it still believed to lead, and proposed again after; or only sent afterwards."""
    cluster = StateCluster(tmp_path)
    old = await cluster.found(3)
    term = old.status().term
    at_old = proposer(old)
    node = facts("n1")
    await at_old.propose(InitCluster(ClusterId("c"), "c"))
    await at_old.propose(RegisterNode(node))
    decided = SetNodeStatus(term, NodeId(node.id), NodeStatus.DOWN)
    cut = Cut(node_of(cluster, OLD))
    begun = asyncio.create_task(at_old.propose(decided)) if is_begun else None
    await until(lambda: any(number != OLD for number in cluster.leaders()))
    cut.heal()
    outcome = (await (begun or at_old.propose(decided))).outcome
    assert isinstance(outcome, Rejected)
    assert outcome.reason is RejectReason.STALE_TERM
    # The same by who leads now, in its own term, is done.
    await until(lambda: len(cluster.leaders()) == 1)
    leader = cluster.leader()
    now = SetNodeStatus(leader.status().term, NodeId(node.id), NodeStatus.SUSPECT)
    assert (await proposer(leader).propose(now)).outcome == Done(changed=True)
    index = leader.status().applied_index
    await until(lambda: all(feed.state.index >= index for feed in cluster.feeds.values()))
    for feed in cluster.feeds.values():
        assert feed.state.nodes[NodeId(node.id)].status is NodeStatus.SUSPECT
    await cluster.close()
