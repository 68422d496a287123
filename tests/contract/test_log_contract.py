"""The contract of cube.ports.log.Log, kept by the fake and by Raft alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cube.adapters.raft import RaftSettings
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.ports.log import ENTRY_BYTES_MAX, Committed, LogStatus, Role
from tests.raft_support import (
    PROPOSE_MS,
    Cluster,
    FakeCluster,
    RealCluster,
    propose_surely,
    until,
)


@pytest.fixture(params=["fake", "raft", "raft-tls"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    made: Cluster
    if request.param == "fake":
        made = FakeCluster()
    else:
        has_tls = request.param == "raft-tls"
        made = RealCluster(tmp_path, RaftSettings(snapshot_tail=5), has_tls=has_tls)
    yield made
    await made.close()


async def test_one_member_leads_at_once_and_commits(cluster: Cluster) -> None:
    log = await cluster.found(1)
    committed = await log.propose(b"a", PROPOSE_MS)
    assert committed.result == ("replica-0", committed.index)
    assert cluster.replicas[0].entries == [(committed.index, committed.term, 1_000, b"a")]
    assert log.status().applied_index >= committed.index
    assert log.status().quorum


async def test_concurrent_proposals_from_all_members_have_one_order(cluster: Cluster) -> None:
    await cluster.found(3)

    async def propose_many(number: int) -> list[Committed]:
        log = cluster.logs[number]
        return [await log.propose(f"{number}-{i}".encode(), PROPOSE_MS) for i in range(40)]

    results = await asyncio.gather(*(propose_many(number) for number in range(3)))
    payloads = await cluster.agree()
    assert sorted(payloads) == sorted(f"{n}-{i}".encode() for n in range(3) for i in range(40))
    for number, committed in enumerate(results):
        # A proposer's own order is kept, and it gets what its own replica returned.
        mine = [p for p in payloads if p.startswith(f"{number}-".encode())]
        assert mine == [f"{number}-{i}".encode() for i in range(40)]
        assert [c.result for c in committed] == [(f"replica-{number}", c.index) for c in committed]


async def test_a_burst_is_committed_whole(cluster: Cluster) -> None:
    await cluster.found(3)
    log = cluster.logs[1]
    wanted = [b"%d" % i for i in range(500)]
    await asyncio.gather(*(log.propose(data, PROPOSE_MS) for data in wanted))
    assert sorted(await cluster.agree()) == sorted(wanted)


async def test_entries_carry_the_stamp_of_the_leader_that_appended_them(cluster: Cluster) -> None:
    await cluster.found(3)
    await cluster.logs[2].propose(b"forwarded", PROPOSE_MS)
    await cluster.leader().transfer_leadership(PROPOSE_MS)
    await until(lambda: bool(cluster.leaders()))
    new_leader = cluster.leader_number()
    assert new_leader != 0
    await propose_surely(cluster.logs[0], b"later")
    await cluster.agree()
    stamps = {data: at_ms for _, _, at_ms, data in cluster.replicas[1].entries}
    assert stamps == {b"forwarded": 1_000, b"later": 1_000 * (new_leader + 1)}


async def test_the_largest_entry_is_committed_and_a_larger_one_refused(cluster: Cluster) -> None:
    await cluster.found(2)
    largest = bytes(ENTRY_BYTES_MAX)
    await cluster.logs[1].propose(largest, PROPOSE_MS)
    await cluster.logs[0].propose(largest, PROPOSE_MS)
    with pytest.raises(Unavailable):
        await cluster.logs[0].propose(bytes(ENTRY_BYTES_MAX + 1), PROPOSE_MS)
    assert await cluster.agree() == [largest, largest]


async def test_the_others_go_on_when_the_leader_stops(cluster: Cluster) -> None:
    leader = await cluster.found(3)
    await leader.propose(b"before", PROPOSE_MS)
    await cluster.stop(0)
    await until(lambda: bool(cluster.leaders()))
    for number in (1, 2):
        await propose_surely(cluster.logs[number], b"after-%d" % number)
    returned = await cluster.start(0)
    await propose_surely(returned, b"back")
    assert set(await cluster.agree()) == {b"before", b"after-1", b"after-2", b"back"}


async def test_all_stopped_and_started_again_have_everything(cluster: Cluster) -> None:
    await cluster.found(3)
    wanted = [b"%d" % i for i in range(30)]
    for data in wanted:
        await cluster.logs[1].propose(data, PROPOSE_MS)
    voters = cluster.logs[0].status().voters
    for number in range(3):
        await cluster.stop(number)
    for number in range(3):
        await cluster.start(number)
    assert await cluster.agree() == wanted
    assert cluster.logs[2].status().voters == voters


async def test_voters_come_and_go(cluster: Cluster) -> None:
    leader = await cluster.found(1)
    await leader.propose(b"1", PROPOSE_MS)
    await cluster.join(1)
    await cluster.join(2)
    await cluster.logs[2].propose(b"2", PROPOSE_MS)
    await leader.add_voter(cluster.addresses[2], PROPOSE_MS)  # already there: success
    assert {v.address for v in leader.status().voters} == set(cluster.addresses.values())
    await leader.remove_voter(cluster.addresses[1], PROPOSE_MS)
    await cluster.stop(1)
    remaining = {cluster.addresses[0], cluster.addresses[2]}
    await until(
        lambda: {v.address for v in cluster.logs[2].status().voters} == remaining,
    )
    await cluster.logs[2].propose(b"3", PROPOSE_MS)
    assert await cluster.agree() == [b"1", b"2", b"3"]


async def test_changes_asked_for_at_once_are_made_one_after_the_other(cluster: Cluster) -> None:
    leader = await cluster.found(1)
    for number in (1, 2, 3):
        await cluster.start(number, (cluster.addresses[0],), joining=True)
    await asyncio.gather(*(leader.add_voter(cluster.addresses[n], PROPOSE_MS) for n in (1, 2, 3)))
    assert {v.address for v in leader.status().voters} == set(cluster.addresses.values())
    await cluster.logs[3].propose(b"x", PROPOSE_MS)
    await asyncio.gather(*(leader.remove_voter(cluster.addresses[n], PROPOSE_MS) for n in (1, 3)))
    assert {v.address for v in leader.status().voters} == {
        cluster.addresses[0],
        cluster.addresses[2],
    }
    await leader.propose(b"y", PROPOSE_MS)


async def test_only_the_leader_changes_voters_and_not_itself(cluster: Cluster) -> None:
    leader = await cluster.found(2)
    with pytest.raises(Unavailable):
        await cluster.logs[1].add_voter("127.0.0.1:9", 300)
    with pytest.raises(Unavailable):
        await cluster.logs[1].remove_voter(cluster.addresses[0], 300)
    with pytest.raises(Unavailable):
        await leader.remove_voter(cluster.addresses[0], 300)
    assert len(leader.status().voters) == 2


async def test_a_voter_that_is_not_up_is_not_added(cluster: Cluster) -> None:
    leader = await cluster.found(1)
    with pytest.raises(Unavailable):
        await leader.add_voter("127.0.0.1:9", 300)
    await leader.propose(b"still a quorum of one", PROPOSE_MS)
    assert len(leader.status().voters) == 1


async def test_without_a_quorum_nothing_is_promised(cluster: Cluster) -> None:
    await cluster.found(3)
    await cluster.stop(0)
    await until(lambda: bool(cluster.leaders()))  # or the last one might still be elected below
    await cluster.stop(1)
    log = cluster.logs[2]
    await until(lambda: log.status().leader is None)
    assert not log.status().quorum
    with pytest.raises(Unavailable):
        await log.propose(b"x", 300)
    with pytest.raises(Unavailable):
        await log.barrier(300)
    await cluster.start(1)
    await propose_surely(log, b"again")
    assert b"x" not in await cluster.agree()


async def test_every_proposal_is_settled_when_the_log_stops(cluster: Cluster) -> None:
    await cluster.found(3)
    log = cluster.logs[1]
    tasks = [asyncio.create_task(log.propose(b"%d" % i, PROPOSE_MS)) for i in range(200)]
    await asyncio.sleep(0)
    await cluster.stop(1)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert all(isinstance(r, Committed | Unavailable | OutcomeUnknown) for r in results)
    with pytest.raises(Unavailable):
        await log.propose(b"late", PROPOSE_MS)
    payloads = await cluster.agree()
    for number, result in enumerate(results):
        times = payloads.count(b"%d" % number)
        assert times <= 1
        if isinstance(result, Committed):
            assert times == 1
        if isinstance(result, Unavailable):
            assert times == 0


async def test_a_barrier_sees_what_was_committed_before_it(cluster: Cluster) -> None:
    await cluster.found(3)
    for i in range(20):
        committed = await cluster.logs[0].propose(b"%d" % i, PROPOSE_MS)
        indexes = await asyncio.gather(*(cluster.logs[2].barrier(PROPOSE_MS) for _ in range(3)))
        assert min(indexes) >= committed.index
        assert cluster.replicas[2].payloads[-1] == b"%d" % i


async def test_leadership_is_handed_over_on_request(cluster: Cluster) -> None:
    leader = await cluster.found(3)
    await leader.transfer_leadership(PROPOSE_MS)
    await until(lambda: bool(cluster.leaders()))
    assert cluster.leader_number() != 0
    with pytest.raises(Unavailable):
        await leader.transfer_leadership(300)
    await propose_surely(leader, b"x")
    assert await cluster.agree() == [b"x"]


async def test_leadership_is_handed_to_the_one_that_is_named(cluster: Cluster) -> None:
    await cluster.found(3)
    addresses = cluster.addresses
    for number in (2, 1, 0, 2):
        await cluster.leader().transfer_leadership(PROPOSE_MS, addresses[number])
        await until(lambda: bool(cluster.leaders()))
        assert cluster.leader_number() == number
    await cluster.leader().transfer_leadership(PROPOSE_MS, addresses[2])  # it leads already
    assert cluster.leader_number() == 2
    with pytest.raises(Unavailable):
        await cluster.leader().transfer_leadership(300, "127.0.0.1:9")
    await cluster.stop(1)
    with pytest.raises(Unavailable):
        await cluster.leader().transfer_leadership(300, addresses[1])
    assert cluster.leader_number() == 2


async def test_alone_there_is_nobody_to_hand_over_to(cluster: Cluster) -> None:
    leader = await cluster.found(1)
    with pytest.raises(Unavailable):
        await leader.transfer_leadership(300)
    await leader.propose(b"x", PROPOSE_MS)


async def test_watchers_hear_of_changes_on_their_own_loop(cluster: Cluster) -> None:
    leader = await cluster.found(2)
    loop = asyncio.get_running_loop()
    seen: list[LogStatus] = []

    def watcher(status: LogStatus) -> None:
        assert asyncio.get_running_loop() is loop
        seen.append(status)

    cluster.logs[1].watch(watcher)
    await leader.transfer_leadership(PROPOSE_MS)
    await until(lambda: any(status.role is Role.LEADER for status in seen))
    before = len(seen)
    await propose_surely(leader, b"no news")
    assert {status.term for status in seen[before:]} <= {cluster.leader().status().term}


async def test_a_joiner_is_a_learner_until_it_is_added(cluster: Cluster) -> None:
    leader = await cluster.found(1)
    await leader.propose(b"x", PROPOSE_MS)
    joiner = await cluster.start(1, (cluster.addresses[0],), joining=True)
    assert joiner.status().role is Role.LEARNER
    await cluster.stop(1)
    joiner = await cluster.start(1)  # restarted: still joining, whatever it is told
    assert joiner.status().role is Role.LEARNER
    await leader.add_voter(cluster.addresses[1], PROPOSE_MS)
    await until(lambda: joiner.status().role is Role.VOTER)
    assert await cluster.agree() == [b"x"]


async def follow(cluster: Cluster, *numbers: int) -> None:
    """These have heard of a leader from whomever they follow."""
    await until(lambda: all(cluster.logs[n].status().leader is not None for n in numbers))


async def test_a_learner_follows_applies_and_forwards_without_a_vote(cluster: Cluster) -> None:
    leader = await cluster.found(1)
    await leader.propose(b"before", PROPOSE_MS)
    learner = await cluster.start(1, (cluster.addresses[0],), joining=True)
    await follow(cluster, 1)
    await learner.barrier(PROPOSE_MS)  # until its connections are there
    committed = await learner.propose(b"through it", PROPOSE_MS)
    assert committed.result == ("replica-1", committed.index)
    assert await learner.barrier(PROPOSE_MS) >= committed.index
    status = learner.status()
    assert (status.role, status.quorum) == (Role.LEARNER, True)
    assert [v.address for v in status.voters] == [cluster.addresses[0]]
    # It is no part of the quorum: the leader commits without it.
    await cluster.stop(1)
    await leader.propose(b"alone", PROPOSE_MS)
    await cluster.start(1)
    await follow(cluster, 1)
    assert await cluster.agree() == [b"before", b"through it", b"alone"]


async def test_a_learner_goes_on_with_the_next_leader(cluster: Cluster) -> None:
    await cluster.found(3)
    learner = await cluster.start(3, tuple(cluster.addresses.values()), joining=True)
    await follow(cluster, 3)
    await propose_surely(learner, b"first")
    await cluster.stop(cluster.leader_number())
    await propose_surely(learner, b"second")
    await until(lambda: bool(cluster.leaders()))
    await cluster.leader().transfer_leadership(PROPOSE_MS)
    await propose_surely(learner, b"third")
    assert learner.status().role is Role.LEARNER
    assert set(await cluster.agree()) == {b"first", b"second", b"third"}


async def test_a_learner_becomes_a_voter_in_process_and_a_voter_a_learner(cluster: Cluster) -> None:
    leader = await cluster.found(3)
    learner = await cluster.start(3, tuple(cluster.addresses.values()), joining=True)
    await follow(cluster, 3)
    await propose_surely(learner, b"1")
    await leader.remove_voter(cluster.addresses[2], PROPOSE_MS)
    await leader.add_voter(cluster.addresses[3], PROPOSE_MS)
    await follow(cluster, 2)
    await until(lambda: learner.status().role is Role.VOTER)
    await until(lambda: cluster.logs[2].status().role is Role.LEARNER)
    await propose_surely(cluster.logs[2], b"2")
    await cluster.stop(1)  # the new voter's vote counts
    await propose_surely(cluster.logs[2], b"3")
    assert await cluster.agree() == [b"1", b"2", b"3"]


async def test_a_leader_sees_how_far_the_others_are(cluster: Cluster) -> None:
    leader = await cluster.found(3)
    committed = await leader.propose(b"x", PROPOSE_MS)

    def matched() -> dict[str, int]:
        return {p.address: p.match_index for p in leader.progress()}

    others = {cluster.addresses[1], cluster.addresses[2]}
    await until(lambda: set(matched()) == others and min(matched().values()) >= committed.index)
    assert cluster.logs[2].progress() == ()
    assert max(p.silent_ms for p in leader.progress()) < 2_000
    await cluster.stop(2)
    await until(
        lambda: {p.address: p.silent_ms for p in leader.progress()}[cluster.addresses[2]] > 500
    )
    await leader.remove_voter(cluster.addresses[2], PROPOSE_MS)
    await until(lambda: set(matched()) == {cluster.addresses[1]})


async def test_a_snapshot_replaces_the_log_behind_it(cluster: Cluster) -> None:
    leader = await cluster.found(3)
    await cluster.stop(2)
    wanted = [b"%d" % i for i in range(60)]
    for data in wanted:
        await leader.propose(data, PROPOSE_MS)
    for number in (0, 1):
        await cluster.logs[number].compact()
    for i in range(10):
        wanted.append(b"after-%d" % i)
        await cluster.logs[1].propose(wanted[-1], PROPOSE_MS)
    await cluster.start(2)
    assert await cluster.agree() == wanted
    for number in range(3):
        await cluster.stop(number)
    for number in range(3):
        await cluster.start(number)
    assert await cluster.agree() == wanted
    assert cluster.replicas[0].loads == 1
