"""Plans are re-checked: each reason for which a placement is refused, and what is done of a plan."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cube.model import commands as c
from cube.model.ids import JobId, NodeId, TaskId
from cube.model.lifecycle import Desired, Health, NodeStatus, TaskState
from cube.model.outcome import REFUSED_MAX, PlanApplied, Rejected, RejectReason
from cube.model.resources import Resources
from cube.model.spec import CheckSpec, CheckType, GroupSpec, PortSpec, Protocol
from cube.statemachine.invariants import violations
from tests.builders import GIB, Machine, facts, group, job

N1 = NodeId("id-n1")


def with_web(spec: GroupSpec | None = None, *nodes: str) -> Machine:
    machine = Machine(*(nodes or ("n1",)))
    machine.submit(job("web", {"g": spec or group(count=5)}))
    return machine


def plan(machine: Machine, **changes: object) -> PlanApplied | Rejected:
    """A plan that places slot 0 on n1, but for the changes."""
    found = machine.state.job_named("web")
    assert found is not None
    values: dict[str, object] = {
        "job_id": found.id,
        "version": found.version,
        "group": "g",
        "slots": (0,),
        "node_at": (0,),
    }
    term = changes.pop("term", machine.term)
    seed = changes.pop("seed", f"seed-{machine.state.index}")
    nodes = changes.pop("nodes", (N1,))
    placement = c.GroupPlacement(**(values | changes))  # type: ignore[arg-type]
    outcome = machine.do(
        c.ApplyPlan(term, seed, nodes=nodes, placements=(placement,))  # type: ignore[arg-type]
    )
    assert isinstance(outcome, PlanApplied | Rejected)
    assert violations(machine.state) == []
    return outcome


def code(outcome: PlanApplied | Rejected) -> str:
    assert isinstance(outcome, PlanApplied), outcome
    assert (outcome.placed, outcome.refused_count) == (0, 1)
    return outcome.refused[0].code


def down(machine: Machine) -> None:
    machine.do(c.SetNodeStatus(machine.term, N1, NodeStatus.DOWN, "silent"))


def suspect(machine: Machine) -> None:
    machine.do(c.SetNodeStatus(machine.term, N1, NodeStatus.SUSPECT, "silent"))


def cordon(machine: Machine) -> None:
    machine.do(c.SetEligibility(N1, False))


def drain(machine: Machine) -> None:
    machine.do(c.SetDrain(N1, 1000))


def full(machine: Machine) -> None:
    machine.do(c.RegisterNode(facts("n1", capacity=Resources(99, GIB, 0))))


def no_memory(machine: Machine) -> None:
    machine.do(c.RegisterNode(facts("n1", capacity=Resources(1000, 1, 0))))


def updated(machine: Machine) -> None:
    machine.submit(job("web", {"g": group(count=5, env={"A": "b"})}))


def stopped(machine: Machine) -> None:
    machine.do(c.StopJob("web"))


@pytest.mark.parametrize(
    ("happens", "refused_for"),
    [
        (down, "not_ready"),
        (suspect, "not_ready"),
        (cordon, "not_ready"),
        (drain, "not_ready"),
        (full, "capacity"),
        (no_memory, "capacity"),
        (stopped, "job_changed"),
    ],
)
def test_what_has_happened_since_the_plan_was_made(
    happens: Callable[[Machine], None], refused_for: str
) -> None:
    machine = with_web()
    happens(machine)
    assert code(plan(machine)) == refused_for
    assert not machine.state.tasks


@pytest.mark.parametrize(
    ("changes", "refused_for"),
    [
        ({"nodes": (NodeId("nobody"),)}, "not_found"),
        ({"job_id": JobId("nobody")}, "job_changed"),
        ({"group": "nope"}, "job_changed"),
        ({"version": 2}, "job_changed"),
        ({"ports": ((20000,),)}, "port"),  # the group has none
    ],
)
def test_what_never_was(changes: dict[str, object], refused_for: str) -> None:
    assert code(plan(with_web(), **changes)) == refused_for


def test_a_plan_for_an_older_version_is_refused() -> None:
    machine = with_web()
    updated(machine)
    assert code(plan(machine, version=1)) == "job_changed"
    assert plan(machine, version=2) == PlanApplied(1)


def test_a_deleted_jobs_group_is_not_placed() -> None:
    machine = with_web()
    assert plan(machine) == PlanApplied(1)
    found = machine.state.job_named("web")
    assert found is not None
    machine.do(c.DeleteJob("web"))
    machine.submit(job("web"))
    assert code(plan(machine, job_id=found.id)) == "job_changed"


def test_each_task_of_a_slot_has_a_greater_fence_than_the_one_before() -> None:
    machine = with_web()
    fences = []
    for _ in range(3):
        assert plan(machine) == PlanApplied(1)
        [task] = [task for task in machine.state.tasks.values() if not task.ended]
        assert task.fence == machine.state.index
        fences.append(task.fence)
        machine.report(task.id, "failed", released=True)
    assert fences == sorted(set(fences))


def test_a_slot_has_one_live_task() -> None:
    machine = with_web()
    assert plan(machine) == PlanApplied(1)
    assert code(plan(machine)) == "slot_taken"
    outcome = plan(machine, slots=(1, 1), node_at=(0, 0))
    assert isinstance(outcome, PlanApplied)
    assert (outcome.placed, [r.code for r in outcome.refused]) == (1, ["slot_taken"])


def test_room_is_used_up_within_one_plan() -> None:
    machine = with_web(group(count=3, resources=Resources(2000, 0, 0)))
    outcome = plan(machine, slots=(0, 1, 2), node_at=(0, 0, 0))
    assert isinstance(outcome, PlanApplied)
    assert (outcome.placed, [r.code for r in outcome.refused]) == (2, ["capacity"])
    assert [r.slot for r in outcome.refused] == [2]


def test_what_is_not_asked_for_is_not_looked_at() -> None:
    machine = with_web(group(resources=Resources(0, 1, 0)))
    machine.do(c.RegisterNode(facts("n1", capacity=Resources(0, 10, 0))))
    assert plan(machine) == PlanApplied(1)


@pytest.mark.parametrize(
    ("port", "host", "is_given"),
    [
        (PortSpec(), 20000, True),
        (PortSpec(), 29999, True),
        (PortSpec(), 19999, False),
        (PortSpec(), 30000, False),
        (PortSpec(host=80), 80, True),
        (PortSpec(host=80), 81, False),
        (PortSpec(host=80), 20000, False),
    ],
)
def test_ports_are_the_static_one_or_in_the_nodes_range(
    port: PortSpec, host: int, is_given: bool
) -> None:
    machine = with_web(group(ports={"http": port}))
    outcome = plan(machine, ports=((host,),))
    if is_given:
        assert outcome == PlanApplied(1)
        (task,) = machine.state.tasks.values()
        assert [(p.name, p.host, p.target) for p in task.ports] == [("http", host, host)]
    else:
        assert code(outcome) == "port"


def test_a_port_is_given_once_per_advertised_address_and_protocol() -> None:
    machine = Machine()
    for name, host in (("n1", "10.0.0.1"), ("n2", "10.0.0.1"), ("n3", "10.0.0.2")):
        machine.do(c.RegisterNode(facts(name, advertise=host)))
    tcp = group(count=9, ports={"a": PortSpec(host=53)})
    udp = group(count=9, ports={"a": PortSpec(host=53, protocol=Protocol.UDP)})
    machine.submit(job("web", {"tcp": tcp, "udp": udp}))
    nodes = tuple(NodeId(f"id-{name}") for name in ("n1", "n2", "n3"))
    fifty_three = ((53,), (53,), (53,))
    outcome = plan(
        machine, group="tcp", nodes=nodes, slots=(0, 1, 2), node_at=(0, 1, 2), ports=fifty_three
    )
    assert isinstance(outcome, PlanApplied)
    assert (outcome.placed, [(r.slot, r.code) for r in outcome.refused]) == (2, [(1, "port")])
    assert plan(machine, group="udp", ports=((53,),)) == PlanApplied(1)


def test_a_port_named_twice_in_one_task_is_refused() -> None:
    machine = with_web(group(ports={"a": PortSpec(), "b": PortSpec()}))
    assert code(plan(machine, ports=((20000, 20000),))) == "port"
    assert plan(machine, ports=((20001, 20000),)) == PlanApplied(1)
    (task,) = machine.state.tasks.values()
    assert [(p.name, p.host) for p in task.ports] == [("a", 20001), ("b", 20000)]


def test_a_port_is_free_only_once_its_task_is_released() -> None:
    machine = with_web(group(count=2, ports={"a": PortSpec(host=80)}))
    assert plan(machine, ports=((80,),)) == PlanApplied(1)
    (task,) = machine.state.tasks.values()
    machine.report(task.id, "running")
    machine.report(task.id, "failed")
    assert code(plan(machine, ports=((80,),))) == "port"
    machine.report(task.id, "failed", released=True)
    assert plan(machine, ports=((80,),)) == PlanApplied(1)


def test_a_start_first_replacement_takes_the_slot_beside_the_old_task() -> None:
    machine = with_web()
    plan(machine)
    (old,) = machine.state.tasks
    updated(machine)
    assert code(plan(machine, replaces=("",))) == "slot_taken"
    assert code(plan(machine, replaces=("another",))) == "slot_taken"
    assert plan(machine, replaces=(old,)) == PlanApplied(1)
    live = [t for t in machine.state.tasks.values() if t.live]
    assert len(live) == 2
    assert {t.desired for t in live} == {Desired.RUN}  # the rollout stops the old one later
    assert code(plan(machine, replaces=(old,))) == "slot_taken"  # never three


def test_a_replaced_task_that_has_ended_meanwhile_is_no_obstacle() -> None:
    machine = with_web()
    plan(machine)
    (old,) = machine.state.tasks
    machine.report(old, "failed")
    assert plan(machine, replaces=(old,)) == PlanApplied(1)


def test_the_same_seed_twice_does_not_make_the_same_task_twice() -> None:
    machine = with_web()
    assert plan(machine, seed="s") == PlanApplied(1)
    assert code(plan(machine, seed="s", slots=(1,))) == "id_taken"


@pytest.mark.parametrize(
    "changes",
    [
        {"node_at": ()},
        {"node_at": (1,)},
        {"node_at": (-1,)},
        {"ports": ((), ())},
        {"replaces": ("", "")},
        {"slots": (-1,)},
    ],
)
def test_a_plan_that_is_not_well_formed_is_refused_whole(changes: dict[str, object]) -> None:
    outcome = plan(with_web(), **changes)
    assert isinstance(outcome, Rejected)
    assert outcome.reason is RejectReason.INVALID


def test_a_plan_that_is_too_large_is_refused_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "PLACEMENTS_MAX", 2)
    outcome = plan(with_web(), slots=(0, 1, 2), node_at=(0, 0, 0))
    assert isinstance(outcome, Rejected)
    assert outcome.reason is RejectReason.INVALID


def test_a_plan_of_another_term_is_refused_whole() -> None:
    machine = with_web()
    machine.term = 2
    outcome = plan(machine, term=1)
    assert isinstance(outcome, Rejected)
    assert outcome.reason is RejectReason.STALE_TERM
    assert not machine.state.tasks


def test_refusals_are_counted_and_some_of_them_listed() -> None:
    machine = with_web()
    count = REFUSED_MAX + 5
    outcome = plan(machine, nodes=(NodeId("no"),), slots=tuple(range(count)), node_at=(0,) * count)
    assert isinstance(outcome, PlanApplied)
    assert (outcome.refused_count, len(outcome.refused)) == (count, REFUSED_MAX)


def test_a_placed_task_is_what_its_group_says() -> None:
    check = CheckSpec(name="c", type=CheckType.EXEC, command=("true",))
    machine = with_web(group(checks=(check,), resources=Resources(7, 8, 9)))
    plan(machine, reason="spread")
    (task,) = machine.state.tasks.values()
    assert (task.state, task.attempt, task.health) == (TaskState.SCHEDULED, 1, Health.UNKNOWN)
    assert (task.resources, task.address, task.driver) == (
        Resources(7, 8, 9),
        "host-n1",
        "process",
    )
    assert (task.placed_reason, task.created_at_ms) == ("spread", machine.now_ms)
    assert machine.state.reserved[N1] == Resources(7, 8, 9)


# the plan's other parts


def test_reschedules_count_failures_in_a_row() -> None:
    machine = with_web(group(count=1))
    seen: list[int] = []
    for ending in ("failed", "failed", "rejected", "failed"):
        machine.now_ms += 1
        assert plan(machine) == PlanApplied(1)
        newest = max(machine.state.tasks.values(), key=lambda t: t.created_at_ms)
        seen.append(newest.reschedules)
        machine.report(newest.id, ending, released=True)
    machine.now_ms += 1
    plan(machine)
    newest = max(machine.state.tasks.values(), key=lambda t: t.created_at_ms)
    assert [*seen, newest.reschedules] == [0, 1, 2, 0, 1]


def test_stops_and_reaps_are_done_as_far_as_they_still_make_sense() -> None:
    machine = with_web()
    plan(machine, slots=(0, 1), node_at=(0, 0))
    first, second = sorted(machine.state.tasks)
    machine.report(first, "failed", released=True)
    machine.report(second, "failed")
    outcome = machine.do(
        c.ApplyPlan(
            1,
            "s",
            stops=(c.PlannedStop(first, "x"), c.PlannedStop(TaskId("no"), "x"),
                   c.PlannedStop(second, "scale_down")),
            reaps=(first, second, TaskId("no")),
        )
    )  # fmt: skip
    assert outcome == PlanApplied(0)
    assert list(machine.state.tasks) == [second]
    kept = machine.state.tasks[second]
    assert (kept.desired, kept.desired_reason) == (Desired.STOP, "scale_down")


def test_in_place_updates_happen_where_the_container_is_the_same() -> None:
    check = CheckSpec(name="c", type=CheckType.EXEC, command=("true",))
    machine = with_web()
    plan(machine)
    (task_id,) = machine.state.tasks

    def update(version: int) -> tuple[int, Health]:
        machine.do(c.ApplyPlan(1, "s", updates=((task_id, version),)))
        task = machine.state.tasks[task_id]
        return task.version, task.health

    assert update(2) == (1, Health.NONE)  # there is no such version
    machine.submit(job("web", {"g": group(count=5, checks=(check,))}))
    assert update(2) == (2, Health.UNKNOWN)
    machine.submit(job("web", {"g": group(count=5, command=("other",))}))
    assert update(3) == (2, Health.UNKNOWN)
    machine.submit(job("web", {"g": group(count=5)}))
    assert update(4) == (4, Health.NONE)
    machine.do(c.StopJob("web"))
    assert update(1) == (4, Health.NONE)  # it is not meant to run any more
