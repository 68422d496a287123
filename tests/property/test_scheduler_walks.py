"""Long seeded walks through larger clusters: what small generated examples do not reach."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cube.model import commands as c
from cube.model.ids import JobId
from cube.model.launch import DriverInfo
from cube.model.lifecycle import NodeStatus
from cube.model.resources import Resources
from cube.model.spec import (
    Affinity,
    Constraint,
    JobSpec,
    JobType,
    Operator,
    Placement,
    PlacementPolicy,
    PortSpec,
)
from cube.scheduler import score
from cube.scheduler.plan import Scheduler
from cube.scheduler.vector import Ask, policy_cost, power, share
from cube.statemachine.invariants import violations
from tests.builders import Machine, facts, group, job
from tests.property.test_scheduler_properties import check_choices, happen

MIB = 1 << 20
PORTS: list[dict[str, PortSpec]] = [
    {},
    {},
    {},
    {"p": PortSpec()},
    {"p": PortSpec(host=80)},
    {"b": PortSpec(), "a": PortSpec(host=20001)},
    {"a": PortSpec(host=80), "b": PortSpec(host=81)},
    {"b": PortSpec(host=81)},
]


def some_node(dice: random.Random, number: int, hosts: int) -> c.RegisterNode:
    return c.RegisterNode(
        facts(
            f"n{number:02}",
            advertise=f"host-{number % hosts}",
            capacity=Resources(
                dice.choice((2000, 8000, 30_000)), dice.choice((1000, 8000, 60_000)) * MIB, 1 << 33
            ),
            labels={"zone": dice.choice("abc"), "rack": dice.choice("12"), "id": str(number)},
            drivers={"process": DriverInfo("process", dice.random() > 0.05)},
            port_first=20000,
            port_last=dice.choice((20003, 20050)),
        )
    )


def some_job(dice: random.Random) -> c.SubmitJob:
    zone, rack, own = ("node.labels.zone",), ("node.labels.rack",), ("node.labels.id",)
    spread = dice.choice([(), (), (), zone, zone + rack, own])
    constraints = (Constraint("node.labels.zone", Operator.NE, dice.choice("abc")),)
    weight = dice.choice((-100, -50, 30, 50, 100))
    affinities = (Affinity("node.labels.rack", Operator.EQ, "1", weight),)
    shape = group(
        count=dice.choice((0, 1, 1, 2, 3, 5, 9, 20, 40, 90)),
        ports=dice.choice(PORTS),
        resources=Resources(
            dice.choice((0, 1, 10, 100, 333, 1500)), dice.choice((1, 8, 64, 300)) * MIB, 0
        ),
        command=(dice.choice(("one", "two")),),
        placement=Placement(
            policy=dice.choice([None, *PlacementPolicy]),
            spread_over=spread,
            max_per_node=dice.choice((0, 0, 0, 1, 2, 5)),
            constraints=dice.choice(((), constraints)),
            affinities=dice.choice(((), affinities)),
        ),
    )
    name = f"job-{dice.randrange(12)}"
    kind = dice.choice([JobType.SERVICE] * 4 + [JobType.BATCH, JobType.SYSTEM])
    spec: JobSpec = job(name, {"g": shape}, type=kind, priority=dice.choice((10, 50)))
    return c.SubmitJob(spec, JobId(name))


def some_step(dice: random.Random, machine: Machine, nodes: int, hosts: int) -> c.Body | str:
    node_id = dice.choice(sorted(machine.state.nodes))
    kind = dice.randrange(20)
    if kind < 9:
        return some_job(dice)
    if kind == 9:
        return c.DeleteJob(f"job-{dice.randrange(12)}")
    if kind < 14:
        return dice.choice(("run", "run", "fail", "reject", "complete", "end", "wait"))
    if kind < 16:
        status = dice.choice((NodeStatus.READY, NodeStatus.DOWN, NodeStatus.SUSPECT))
        return c.SetNodeStatus(1, node_id, status)
    if kind == 16:
        return c.SetDrain(node_id, dice.choice((None, None, 0, 60_000)))
    if kind == 17:
        return c.SetEligibility(node_id, dice.random() > 0.3)
    if kind == 18:
        return c.SetLabels(node_id, {"zone": dice.choice("abc")})
    return some_node(dice, dice.randrange(nodes + 3), hosts)


@pytest.mark.parametrize("seed", range(30))
def test_a_long_walk(seed: int) -> None:
    """At each step: exact choices; caches, with and without notes, change nothing; nothing refused
    or given twice."""
    dice = random.Random(seed)
    machine = Machine()
    nodes = dice.choice((3, 12, 40))
    hosts = dice.choice((nodes, nodes, nodes // 2 + 1))
    for number in range(nodes):
        machine.do(some_node(dice, number, hosts))
    used, noted = Scheduler(), Scheduler()
    before, seen = machine.state, len(machine.steps)
    for number in range(40):
        happen(machine, some_step(dice, machine, nodes, hosts))
        for step in machine.steps[seen:]:
            noted.note(before, step.state, step.events)
            before = step.state
        seen = len(machine.steps)
        plans = [
            scheduler.plan(machine.state, machine.now_ms, 1, f"seed-{number}")
            for scheduler in (used, noted, Scheduler())
        ]
        assert plans[0] == plans[1] == plans[2]
        check_choices(machine.state, machine.now_ms, plans[0])
        if plans[0].command is not None and dice.random() > 0.2:
            outcome = machine.do(plans[0].command)
            assert getattr(outcome, "refused_count", None) == 0, outcome
        assert violations(machine.state) == []


@pytest.mark.parametrize(
    "policy", [p for p in PlacementPolicy if p is not PlacementPolicy.ROUNDROBIN]
)
def test_columns_and_single_numbers_agree_to_the_last_bit(policy: PlacementPolicy) -> None:
    dice = random.Random(7)
    capacity = [
        Resources(dice.randrange(0, 64_000), dice.randrange(0, 1 << 40)) for _ in range(999)
    ]
    used = [
        Resources(
            dice.randrange(0, max(1, one.cpu_milli * 2)),
            dice.randrange(0, max(1, one.memory_bytes)),
        )
        for one in capacity
    ]
    need = Resources(dice.randrange(1, 2000), dice.randrange(1, 1 << 32))

    def columns(values: list[Resources]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        return np.array(
            [[one.cpu_milli for one in values], [one.memory_bytes for one in values]],
            dtype=np.int64,
        )

    used_, capacity_, need_ = columns(used), columns(capacity), columns([need] * 999)
    grown = (power(share(need_[0], capacity_[0])), power(share(need_[1], capacity_[1])))
    powers = (power(share(used_[0], capacity_[0])), power(share(used_[1], capacity_[1])))
    assert powers[0].tolist() == [
        score.power(score.share(u.cpu_milli, k.cpu_milli))
        for u, k in zip(used, capacity, strict=True)
    ]
    assert abs(score.power(0.777) / score.BASE**0.777 - 1) < 1e-10
    unit = score.marginal_unit(list(zip(grown[0].tolist(), grown[1].tolist(), strict=True)))
    many = policy_cost(Ask("", (), (), need, policy), unit, used_, capacity_, powers, grown)
    assert many.tolist() == [
        score.cost(policy, u, k, need, unit, 0) for u, k in zip(used, capacity, strict=True)
    ]
    assert int(many.min()) >= 0
    assert int(many.max()) <= score.COST_MAX
