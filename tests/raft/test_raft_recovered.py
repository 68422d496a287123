"""A member that was recovered, beside those that were left behind."""

from __future__ import annotations

from pathlib import Path

from cube.adapters.raft.log import PySyncObjLog
from cube.adapters.raft.offline import Order, give_order, read_contents
from cube.ports.log import Role
from tests.raft_support import PROPOSE_MS, RealCluster, propose_surely, until


class Recovered(RealCluster):
    """`lineages` of members that start for the first time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.lineages: dict[int, str] = {}

    def make(self, number: int, members: tuple[str, ...], *, joining: bool) -> PySyncObjLog:
        made = super().make(number, members, joining=joining)
        made._lineage = self.lineages.get(number, "")
        return made


async def found_and_recover(cluster: Recovered) -> None:
    """Three members, ended; the first is to be the only voter of what goes on."""
    await cluster.found(3)
    for data in (b"a", b"b"):
        await cluster.logs[0].propose(data, PROPOSE_MS)
    for number in range(3):
        await cluster.stop(number)
    directory = cluster.directory / "0"
    term = read_contents(directory).term + 1_000
    order = Order(term=term, lineage="second", at_ms=9_000, commands=(b"c",))
    give_order(directory, order, cluster.directory / "copy")


async def test_it_leads_alone_with_all_that_its_log_held(tmp_path: Path) -> None:
    cluster = Recovered(tmp_path)
    await found_and_recover(cluster)
    log = await cluster.start(0)
    await until(lambda: log.status().ready and log.status().role is Role.LEADER)
    assert cluster.replicas[0].payloads == [b"a", b"b", b"c"]
    status = log.status()
    assert [voter.address for voter in status.voters] == [cluster.addresses[0]]
    assert (status.lineage, status.term > 1_000) == ("second", True)
    await log.propose(b"d", PROPOSE_MS)
    # Members of its own lineage join and vote; it is told to them with the grant.
    for number in (3, 4):
        cluster.lineages[number] = "second"
        joined = await cluster.start(number, (cluster.addresses[0],), joining=True)
        await log.add_voter(cluster.addresses[number], PROPOSE_MS)
        await until(lambda joined=joined: joined.status().role is Role.VOTER)  # type: ignore[misc]
    assert await cluster.agree() == [b"a", b"b", b"c", b"d"]
    # A restart forgets nothing of it.
    await cluster.stop(3)
    cluster.lineages.clear()
    again = await cluster.start(3)
    await until(lambda: again.status().leader is not None)
    assert again.status().lineage == "second"
    await cluster.close()


async def test_the_old_majority_is_a_stranger_to_it(tmp_path: Path) -> None:
    """They can lead a second cluster (nobody can keep them from it), but neither side is moved by
    the other: no vote, no term, no entry, though each dials the other all the while."""
    cluster = Recovered(tmp_path)
    await found_and_recover(cluster)
    new = await cluster.start(0)
    await until(lambda: new.status().ready and new.status().role is Role.LEADER)
    term = new.status().term
    olds = [await cluster.start(number) for number in (1, 2)]
    await until(lambda: any(log.status().role is Role.LEADER for log in olds))
    for number in range(20):
        await propose_surely(olds[0], b"old %d" % number)
        await propose_surely(new, b"new %d" % number)
    assert (new.status().term, new.status().role) == (term, Role.LEADER)
    assert all(log.status().term < 1_000 for log in olds)
    assert not any(data.startswith(b"old") for data in cluster.replicas[0].payloads)
    assert not any(data.startswith(b"new") for data in cluster.replicas[1].payloads)
    await cluster.close()
