"""Whole clusters in virtual time. Every assertion names a promise that others build on."""

from __future__ import annotations

import random
import statistics

import pytest

from cube.gossip.member import MemberState
from cube.gossip.settings import GossipSettings
from cube.model.ids import NodeId
from tests.gossip_world import World

ALIVE, SUSPECT, DEAD, LEFT = MemberState
MINUTE_MS = 60_000
LEADER_GRACE_MS = 5_000  # a node's death must be known before the leader asks (architecture.md)


def formed(seed: int, size: int, *, loss: float = 0.0) -> World:
    """A cluster that has been together for some random seconds."""
    world = World(seed, size, loss=loss)
    world.run_until(world.all_alive, MINUTE_MS)
    world.run(5_000 + world.dice.randrange(3_000))
    return world


def death_ms(world: World, victim: str) -> int:
    """Time from its death until every survivor knows."""
    world.kill(victim)
    return world.run_until(
        lambda: all(world.state(name, victim) is DEAD for name in world.nodes), MINUTE_MS
    )


@pytest.mark.parametrize(
    ("size", "loss", "seeds", "median_ms", "max_ms"),
    [
        (2, 0.0, 20, 3_200, 4_000),
        (3, 0.0, 40, 3_300, 4_000),
        (3, 0.05, 40, 3_300, LEADER_GRACE_MS),
        (10, 0.0, 20, 3_500, LEADER_GRACE_MS),
        (10, 0.05, 20, 3_500, 6_000),
        (100, 0.0, 1, 6_000, 6_000),
    ],
)
def test_all_know_of_a_death_in_time(
    size: int, loss: float, seeds: int, median_ms: int, max_ms: int
) -> None:
    times = [death_ms(formed(seed, size, loss=loss), f"n{size - 1:03}") for seed in range(seeds)]
    assert statistics.median(times) <= median_ms, times
    assert max(times) <= max_ms, times


def test_nobody_is_declared_dead_in_an_hour_of_five_percent_loss() -> None:
    world = formed(1, 10, loss=0.05)
    world.run(60 * MINUTE_MS)
    assert world.verdicts(DEAD) == []
    assert world.all_alive()


def test_nobody_is_declared_dead_in_ten_minutes_of_twenty_percent_loss() -> None:
    world = formed(2, 5, loss=0.20)
    world.run(10 * MINUTE_MS)
    assert world.verdicts(DEAD) == []


def test_a_network_without_udp_kills_nobody_and_still_shows_a_death() -> None:
    world = formed(2, 5)
    world.has_udp = False
    world.run(10 * MINUTE_MS)
    assert world.verdicts(DEAD) == []
    assert death_ms(world, "n004") < MINUTE_MS


def test_an_idle_cluster_is_quiet() -> None:
    world = formed(3, 3)
    world.run(MINUTE_MS)
    world.counts.clear()
    world.run(10 * MINUTE_MS)
    assert world.counts["packets"] <= 3 * 600 * 2  # a ping and an ack per member and second
    assert world.counts["exchanges"] <= 3 * 21


@pytest.mark.parametrize("duration_ms", [3_000, 30_000, 15 * MINUTE_MS])
@pytest.mark.parametrize("size", [3, 10])
def test_a_partition_heals(size: int, duration_ms: int) -> None:
    world = formed(4, size)
    for i, name in enumerate(world.nodes):
        world.islands[name] = int(i >= size // 2)
    world.run(duration_ms)
    if duration_ms >= 30_000:
        for name in world.nodes:
            for other in world.nodes:
                is_near = world.islands[name] == world.islands[other]
                assert world.state(name, other) is (ALIVE if is_near else DEAD)
    world.islands.clear()
    healed_ms = world.now_ms
    assert world.run_until(world.all_alive, MINUTE_MS) <= 20_000
    world.run(MINUTE_MS)
    assert world.all_alive()
    # Each side had the other's dead wrong; nobody has to die again to find that out.
    late = [v for v in world.verdicts(DEAD) if v[0] > healed_ms + 5_000]
    assert late == []


@pytest.mark.parametrize(("size", "loss"), [(3, 0.0), (10, 0.05), (100, 0.0)])
def test_statistics_reach_nearly_all_before_the_next(size: int, loss: float) -> None:
    world = formed(5, size, loss=loss)

    def publish(stats: bytes) -> None:
        for name in world.nodes:
            world.act(name, lambda swim: swim.set_stats(world.now_ms, stats))

    for stats in (b"first " * 15, b"second " * 15):
        publish(stats)
        world.run(5_000)
    last = b"second " * 15
    seen = [m.stats == last for swim in world.nodes.values() for m in swim.members()]
    assert seen.count(True) >= 0.97 * len(seen)


def test_meta_reaches_all_with_the_member() -> None:
    world = formed(6, 10, loss=0.05)
    world.act("n004", lambda swim: swim.set_meta(world.now_ms, b"new"))
    member = NodeId("n004")
    world.run_until(
        lambda: all(s.member(member).meta == b"new" for s in world.nodes.values()),  # type: ignore[union-attr] # all know it
        5_000,
    )


@pytest.mark.parametrize("down_ms", [200, 2_000, 10_000, 10 * MINUTE_MS])
@pytest.mark.parametrize("has_lost_its_incarnation", [False, True])
def test_a_restarted_node_is_back_with_the_same_id(
    down_ms: int, has_lost_its_incarnation: bool
) -> None:
    world = formed(7, 3)
    before = world.nodes["n002"].me.incarnation
    world.kill("n002")
    world.run(down_ms)
    world.boot("n002", incarnation=1 if has_lost_its_incarnation else None)
    world.join("n002", "n000")
    world.run_until(world.all_alive, 3_000)
    world.run(MINUTE_MS)
    assert world.all_alive()
    for swim in world.nodes.values():
        member = swim.member(NodeId("n002"))
        assert member is not None
        assert member.incarnation > before
        assert member.meta == b"meta of n002"


def test_a_node_that_restarts_without_seeds_is_found_by_the_others() -> None:
    world = formed(8, 3)
    world.kill("n000")
    world.run(20_000)
    world.boot("n000")
    world.run_until(world.all_alive, 15_000)


def test_a_seed_that_comes_late_is_still_joined() -> None:
    world = World(9, 1)
    world.boot("n001")
    world.join("n001", "n005")
    world.run(5 * MINUTE_MS)
    world.boot("n005")
    world.run_until(lambda: world.state("n005", "n001") is ALIVE, 10_000)


def test_a_goodbye_reaches_all_and_is_not_a_death() -> None:
    world = formed(10, 10, loss=0.05)
    world.act("n003", lambda swim: swim.leave(world.now_ms))
    world.run(1_000)
    world.kill("n003")
    world.run_until(lambda: all(world.state(name, "n003") is LEFT for name in world.nodes), 2_000)
    world.run(MINUTE_MS)
    assert world.verdicts(DEAD) == []


def test_a_stopped_process_is_dead_and_blames_nobody_when_it_wakes() -> None:
    world = formed(11, 5)
    world.stop("n004")
    world.run(15_000)
    assert all(world.state(name, "n004") is DEAD for name in ("n000", "n001", "n002", "n003"))
    woken_ms = world.now_ms
    world.resume("n004")
    world.run_until(world.all_alive, 15_000)
    world.run(MINUTE_MS)
    assert [v for v in world.verdicts(DEAD) if v[0] >= woken_ms] == []


def test_a_deaf_node_dies_alone() -> None:
    world = formed(12, 10)
    world.deaf.add("n009")
    world.run(MINUTE_MS)
    others = [name for name in world.nodes if name != "n009"]
    assert all(world.state(name, "n009") is DEAD for name in others)
    wrong = [v for v in world.verdicts(DEAD) if v[1] != "n009" and v[2].node_id != "n009"]
    assert wrong == []


def test_the_dead_are_forgotten_by_all_and_stay_forgotten() -> None:
    settings = GossipSettings(sync_ms=5_000, reap_ms=60_000, dead_gossip_ms=10_000)
    world = World(13, 5, settings=settings)
    world.run(10_000)
    world.kill("n004")
    world.run(90_000)
    assert all(world.state(name, "n004") is None for name in world.nodes)
    world.run(5 * MINUTE_MS)
    assert all(world.state(name, "n004") is None for name in world.nodes)


def test_half_of_the_cluster_dies_at_once() -> None:
    world = formed(14, 10)
    survivors = list(world.nodes)[:5]
    for name in list(world.nodes)[5:]:
        world.kill(name)
    expected = {
        name: ALIVE if name in survivors else DEAD for name in (f"n{i:03}" for i in range(10))
    }
    world.run_until(lambda: world.all_see(expected), 25_000)


def test_the_seed_tells_the_whole_story() -> None:
    stories = []
    for seed in (15, 15, 16):
        world = World(seed, 10, loss=0.1)
        world.run(MINUTE_MS)
        world.kill("n005")
        world.run(MINUTE_MS)
        stories.append(world.story(lines=1_000))
    assert stories[0] == stories[1]
    assert stories[0] != stories[2]


def test_random_faults_then_calm_and_all_is_well() -> None:
    """Kills, restarts, pauses, partitions and loss in random order; then peace."""
    for seed in range(8):
        world = formed(100 + seed, 7)
        dice = random.Random(f"faults/{seed}")
        for _ in range(12):
            name = f"n{dice.randrange(7):03}"
            match dice.randrange(5):
                case 0 if name in world.nodes and name not in world.stopped:
                    world.kill(name)
                case 1 if name not in world.nodes:
                    world.boot(name)
                    world.join(name, f"n{dice.randrange(7):03}")
                case 2 if name in world.nodes and name not in world.stopped:
                    world.stop(name)
                case 3:
                    world.islands[name] = dice.randrange(2)
                case _:
                    world.loss = dice.choice([0.0, 0.05, 0.3])
            world.run(dice.randrange(8_000))
        world.islands.clear()
        world.loss = 0.0
        for name in list(world.stopped):
            world.resume(name)
        for name in (f"n{i:03}" for i in range(7)):
            if name not in world.nodes:
                world.boot(name)
                world.join(name, "n000")
        world.run_until(world.all_alive, MINUTE_MS)
        calm_ms = world.now_ms + 10_000
        world.run(2 * MINUTE_MS)
        assert world.all_alive(), world.story()
        assert [v for v in world.verdicts(DEAD) if v[0] > calm_ms] == []
