"""Tasks move to where they are better off: a few at a time, start-first, and then there is rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.resources import Resources
from cube.model.spec import (
    Affinity,
    JobSpec,
    JobType,
    MountSpec,
    MountType,
    Operator,
    Placement,
    PlacementPolicy,
    PortSpec,
    UpdatePolicy,
)
from cube.scheduler.rebalance import (
    AT_ONCE_MAX,
    COOLDOWN_MS,
    REASON,
    ROUND_MS,
    all_moves,
    next_moves,
)
from tests.builders import facts, group, job
from tests.scheduler_cluster import Cluster, one

SMALL = Resources(500, 1 << 20, 0)


def spec(name: str, count: int, **changes: Any) -> JobSpec:
    type_ = changes.pop("type", JobType.SERVICE)
    shape = {"resources": SMALL, "update": UpdatePolicy(min_healthy_ms=0)} | changes
    return job(name, one(count=count, **shape), type=type_)


def joined(*specs: JobSpec) -> Cluster:
    """These jobs run on a and b; c joins."""
    cluster = Cluster("a", "b")
    for each in specs:
        cluster.submit(each)
    calm(cluster)
    cluster.do(c.RegisterNode(facts("c")))
    calm(cluster)
    return cluster


def calm(cluster: Cluster) -> None:
    for _ in range(80):
        before = cluster.state.index
        cluster.plan()
        cluster.obey()
        cluster.now_ms += 1000
        if cluster.state.index == before:
            return
    raise AssertionError("no rest")


def counts(cluster: Cluster, name: str) -> list[int]:
    where = list(cluster.where(name).values())
    return [where.count(node) for node in ("a", "b", "c")]


def under_way(state: ClusterState) -> dict[tuple[str, str], int]:
    """Moves by group: slots with two live tasks."""
    slots: dict[tuple[str, str, int], int] = {}
    for task in state.tasks.values():
        if task.live:
            key = (task.job, task.group, task.slot)
            slots[key] = slots.get(key, 0) + 1
    found: dict[tuple[str, str], int] = {}
    for (name, group_name, _), count in slots.items():
        if count > 1:
            found[name, group_name] = found.get((name, group_name), 0) + 1
    return found


def test_nothing_moves_until_it_is_asked_for_and_then_all_is_even() -> None:
    cluster = joined(spec("web", 6))
    assert counts(cluster, "web") == [3, 3, 0]
    assert len(all_moves(cluster.state, cluster.now_ms)) == 2
    assert cluster.do(c.StartRebalance()).changed  # type: ignore[union-attr]
    calm(cluster)
    assert counts(cluster, "web") == [2, 2, 2]
    assert cluster.state.rebalance_since_ms == 0
    moved = [task for task in cluster.live("web").values() if task.placed_reason == REASON]
    assert len(moved) == 2
    assert all(task.node_id == cluster.node("c") for task in moved)
    gone = [task for task in cluster.state.tasks.values() if task.desired_reason == REASON]
    assert len(gone) == 2


def test_switched_on_a_node_that_joins_begins_it() -> None:
    cluster = Cluster("a", "b")
    cluster.do(c.ChangeSettings(rebalance=True))
    cluster.submit(spec("web", 6))
    calm(cluster)
    cluster.do(c.RegisterNode(facts("c")))
    calm(cluster)
    assert counts(cluster, "web") == [2, 2, 2]


def test_one_move_in_a_group_a_few_in_the_cluster_and_never_below_the_count() -> None:
    cluster = joined(
        *(spec(f"web-{number}", 4, resources=Resources(100, 1, 0)) for number in range(6))
    )
    cluster.do(c.StartRebalance())
    most = 0
    for _ in range(200):
        before = cluster.state.index
        cluster.plan()
        moving = under_way(cluster.state)
        assert all(count == 1 for count in moving.values())
        most = max(most, len(moving))
        for number in range(6):
            found = cluster.state.job_named(f"web-{number}")
            assert found is not None
            serving = {task.slot for task in cluster.state.tasks_of_job(found.id) if task.serving}
            assert len(serving) == 4
        cluster.obey()
        cluster.now_ms += 1000
        if cluster.state.index == before:
            break
    assert most == AT_ONCE_MAX
    assert all(sorted(counts(cluster, f"web-{number}")) == [1, 1, 2] for number in range(6))


def test_use_counts_when_no_group_is_crowded() -> None:
    cluster = joined(
        *(spec(f"one-{number}", 1, resources=Resources(1000, 1, 0)) for number in range(8))
    )
    assert len(all_moves(cluster.state, cluster.now_ms)) == 2
    cluster.do(c.StartRebalance())
    calm(cluster)
    where = [cluster.where(f"one-{number}")[0] for number in range(8)]
    assert sorted(where.count(node) for node in ("a", "b", "c")) == [2, 3, 3]


def test_what_gains_too_little_stays() -> None:
    cluster = joined(
        *(spec(f"one-{number}", 1, resources=Resources(100, 1, 0)) for number in range(8))
    )
    assert all_moves(cluster.state, cluster.now_ms) == []  # a tenth of a node is not worth it


@pytest.mark.parametrize(
    "changes",
    [
        {"type": JobType.BATCH},
        {"mounts": (MountSpec(MountType.VOLUME, "/d", "d"),)},
        {"ports": {"p": PortSpec(host=80)}, "count": 2},
        {"placement": Placement(policy=PlacementPolicy.BINPACK)},
        {"placement": Placement(policy=PlacementPolicy.GREEDY)},
    ],
)
def test_what_cannot_or_should_not_live_side_by_side_stays(changes: dict[str, Any]) -> None:
    cluster = joined(spec("web", changes.pop("count", 6), **changes))
    assert all_moves(cluster.state, cluster.now_ms) == []


def test_affinities_are_never_given_up() -> None:
    wish = Placement(affinities=(Affinity("node.name", Operator.IN, ("a", "b"), 50),))
    cluster = joined(spec("web", 6, placement=wish))
    assert all_moves(cluster.state, cluster.now_ms) == []


def test_what_was_moved_stays_for_a_while() -> None:
    cluster = joined(spec("web", 6))
    cluster.do(c.StartRebalance())
    calm(cluster)
    moved = {task.id for task in cluster.live("web").values() if task.placed_reason == REASON}
    for name in ("a", "b"):
        for task in list(cluster.live("web").values()):
            if task.node_id == cluster.node(name):
                cluster.do(c.SetEligibility(task.node_id, False))
                cluster.do(c.StopTask(task.id))
    calm(cluster)
    for name in ("a", "b"):
        cluster.do(c.SetEligibility(cluster.node(name), True))
    assert counts(cluster, "web") == [0, 0, 6]
    moves = all_moves(cluster.state, cluster.now_ms)
    assert moves
    assert not {move.task.id for move in moves} & moved
    assert len(all_moves(cluster.state, cluster.now_ms + COOLDOWN_MS)) >= len(moves)


shapes = st.builds(
    lambda count, cpu, over, policy: group(
        count=count,
        resources=Resources(cpu, 1 << 20, 0),
        update=UpdatePolicy(min_healthy_ms=0),
        placement=Placement(policy=policy, spread_over=over),
    ),
    st.integers(0, 5),
    st.sampled_from([0, 100, 700, 1500]),
    st.sampled_from([(), ("node.labels.zone",)]),
    st.sampled_from([None, PlacementPolicy.SPREAD, PlacementPolicy.BINPACK]),
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(shapes, min_size=1, max_size=4),
    st.lists(st.sampled_from("xyz"), min_size=2, max_size=4),
)
def test_it_comes_to_rest_and_no_task_goes_back_and_forth(
    groups: list[Any], zones: list[str]
) -> None:
    cluster = Cluster()
    cluster.do(c.RegisterNode(facts("n0", labels={"zone": zones[0]})))
    cluster.submit(job("web", {f"g{number}": each for number, each in enumerate(groups)}))
    calm(cluster)
    for number, zone in enumerate(zones[1:], 1):
        cluster.do(c.RegisterNode(facts(f"n{number}", labels={"zone": zone})))
    cluster.do(c.StartRebalance())
    for _ in range(3):  # and again when what was moved may be moved once more
        calm(cluster)
        cluster.now_ms += ROUND_MS  # a group that is not as wanted is waited for so long
        calm(cluster)
        assert cluster.state.rebalance_since_ms == 0
        cluster.do(c.StartRebalance())
    calm(cluster)
    cluster.now_ms += COOLDOWN_MS
    assert next_moves(cluster.state, cluster.now_ms) == []
