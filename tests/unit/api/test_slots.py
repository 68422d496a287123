"""What became of a job's slots: counts that add up, and one word for the job."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cube.api.slots import JobSlots, SlotsOfJobs, Unplaced, slots_of_job
from cube.model import commands as c
from cube.model.cluster import Task
from cube.model.lifecycle import Health, NodeStatus, TaskState
from cube.model.spec import JobSpec
from cube.model.views import GroupCounts
from tests.fakes.cluster import TERM, World, job_spec, node_facts

CHECKED: dict[str, object] = {"checks": [{"type": "tcp", "port": "http"}]}


def service(count: int = 2, /, **group: object) -> JobSpec:
    return job_spec(web={"count": count, **group})


def batch(count: int = 2, /, **group: object) -> JobSpec:
    return job_spec(type_="batch", web={"count": count, "ports": {}, **group})


def seen(world: World) -> tuple[str, GroupCounts]:
    slots = _slots(world)
    counts = slots.groups["web"]
    job = world.state.job_named("shop")
    assert job is not None
    if not job.stopped:
        running = counts.count - counts.pending - counts.failed - counts.completed
        assert running >= 0
    return slots.status.value, counts


def _slots(world: World) -> JobSlots:
    job = world.state.job_named("shop")
    assert job is not None
    return slots_of_job(world.state, job)


def unplaced(world: World) -> list[str]:
    return [row.name for _, row in _slots(world).rows if isinstance(row, Unplaced)]


def _place(world: World, *states: TaskState, health: Health = Health.HEALTHY) -> list[Task]:
    tasks = world.place("shop", "web", range(len(states)))
    return [
        task if state is TaskState.SCHEDULED else world.report(task, state, health)
        for task, state in zip(tasks, states, strict=True)
    ]


RUN, FAIL, DONE, SCHEDULED = (
    TaskState.RUNNING, TaskState.FAILED, TaskState.COMPLETED, TaskState.SCHEDULED,
)  # fmt: skip


def nothing(world: World) -> None: ...


def one_placed(world: World) -> None:
    _place(world, SCHEDULED)


def all_running(world: World) -> None:
    _place(world, RUN, RUN)


def all_running_unchecked_yet(world: World) -> None:
    _place(world, RUN, RUN, health=Health.UNKNOWN)


def one_unhealthy(world: World) -> None:
    first, _ = _place(world, RUN, RUN)
    world.report(first, RUN, Health.UNHEALTHY)


def one_running(world: World) -> None:
    _place(world, RUN)


def one_failed(world: World) -> None:
    _place(world, RUN, FAIL)


def all_failed(world: World) -> None:
    _place(world, FAIL, FAIL)


def node_died(world: World) -> None:
    _place(world, RUN, RUN)
    world.apply(c.SetNodeStatus(TERM, world.state.node_names["n1"], NodeStatus.DOWN))


def node_died_and_one_replaced(world: World) -> None:
    node_died(world)
    [task] = world.place("shop", "web", [0], "n2")
    world.report(task, RUN, Health.HEALTHY)


def stopping(world: World) -> None:
    _place(world, RUN, RUN)
    world.apply(c.StopJob("shop"))


def stopped(world: World) -> None:
    tasks = _place(world, RUN, RUN)
    world.apply(c.StopJob("shop"))
    for task in tasks:
        world.report(task, DONE, released=True)


def started_again(world: World) -> None:
    stopped(world)
    world.apply(c.StartJob("shop"))


def scaled_to_zero(world: World) -> None:
    world.apply(c.ScaleJob("shop", {"web": 0}))


def scaled_down(world: World) -> None:
    _place(world, RUN, RUN)
    world.apply(c.ScaleJob("shop", {"web": 1}))


def one_done(world: World) -> None:
    _place(world, RUN, DONE)


def all_done(world: World) -> None:
    _place(world, DONE, DONE)


def backing_off(world: World) -> None:
    for task in _place(world, RUN, RUN):
        world.report(task, TaskState.PENDING, attempt=2)


def given_up(world: World) -> None:
    """attempts = 1: the first failure is tried again, the second is the last."""
    for task in _place(world, FAIL, FAIL):
        world.report(task, FAIL, released=True)
    all_failed(world)


Case = tuple[JobSpec, Callable[[World], None], str, tuple[int, ...], list[str]]
BOTH = ["shop.web.0", "shop.web.1"]
CASES: list[Case] = [
    # count, running, healthy, pending, failed, completed
    (service(), nothing, "pending", (2, 0, 0, 2, 0, 0), BOTH),
    (service(), one_placed, "pending", (2, 0, 0, 2, 0, 0), BOTH[1:]),
    (service(), all_running, "running", (2, 2, 2, 0, 0, 0), []),
    (service(**CHECKED), all_running_unchecked_yet, "pending", (2, 2, 0, 0, 0, 0), []),
    (service(**CHECKED), one_unhealthy, "degraded", (2, 2, 1, 0, 0, 0), []),
    (service(), one_running, "degraded", (2, 1, 1, 1, 0, 0), BOTH[1:]),
    (service(), one_failed, "degraded", (2, 1, 1, 0, 1, 0), []),
    (service(), all_failed, "degraded", (2, 0, 0, 0, 2, 0), []),
    (service(reschedule={"attempts": 1}), given_up, "failed", (2, 0, 0, 0, 2, 0), []),
    (service(), backing_off, "degraded", (2, 0, 0, 2, 0, 0), []),
    (service(), node_died, "degraded", (2, 0, 0, 2, 0, 0), BOTH),
    (service(), node_died_and_one_replaced, "degraded", (2, 1, 1, 1, 0, 0), BOTH[1:]),
    (service(), stopping, "stopping", (2, 2, 0, 0, 0, 0), []),
    (service(), stopped, "stopped", (2, 0, 0, 0, 0, 0), []),
    (service(), started_again, "pending", (2, 0, 0, 2, 0, 0), BOTH),
    (service(), scaled_to_zero, "running", (0, 0, 0, 0, 0, 0), []),
    (service(), scaled_down, "running", (1, 2, 1, 0, 0, 0), []),
    (batch(), nothing, "pending", (2, 0, 0, 2, 0, 0), BOTH),
    (batch(), all_running, "running", (2, 2, 2, 0, 0, 0), []),
    (batch(), one_done, "running", (2, 1, 1, 0, 0, 1), []),
    (batch(), all_done, "completed", (2, 0, 0, 0, 0, 2), []),
    (batch(), all_failed, "pending", (2, 0, 0, 0, 2, 0), []),
    (batch(), given_up, "failed", (2, 0, 0, 0, 2, 0), []),
    (batch(), started_again, "pending", (2, 0, 0, 2, 0, 0), BOTH),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "history", "status", "counts", "waiting"),
    CASES,
    ids=[f"{case[0].type}-{case[1].__name__}" for case in CASES],
)
async def test_slots(
    spec: JobSpec,
    history: Callable[[World], None],
    status: str,
    counts: tuple[int, ...],
    waiting: list[str],
) -> None:
    world = World()
    world.run(spec)
    history(world)
    assert seen(world) == (status, GroupCounts(*counts))
    assert unplaced(world) == waiting


async def test_a_system_job_wants_one_task_on_each_node_of_the_right_kind() -> None:
    world = World(
        *(node_facts(f"n{n}", n, labels={"disk": "ssd" if n < 3 else "hdd"}) for n in (1, 2, 3))
    )
    constraint = {"attribute": "node.labels.disk", "operator": "==", "value": "ssd"}
    world.run(job_spec(type_="system", web={"placement": {"constraints": [constraint]}}))
    assert seen(world) == ("pending", GroupCounts(2, pending=2))
    for slot, node in enumerate(("n1", "n2")):
        [task] = world.place("shop", "web", [slot], node)
        world.report(task, RUN, Health.HEALTHY)
    assert seen(world) == ("running", GroupCounts(2, running=2, healthy=2))
    world.apply(c.SetNodeStatus(TERM, world.state.node_names["n2"], NodeStatus.DOWN))
    assert seen(world) == ("running", GroupCounts(1, running=1, healthy=1))


async def test_what_is_known_of_a_job_is_good_until_one_of_its_tasks_changes() -> None:
    world = World()
    world.run(service(**CHECKED))
    _place(world, RUN, RUN)
    other = job_spec("other", web={"count": 1})
    world.run(other)
    remembered = SlotsOfJobs()
    shop = world.state.job_named("shop")
    assert shop is not None
    standing, slots = remembered.standing(world.state, shop), remembered.of(world.state, shop)
    world.place("other", "web", [0])
    assert remembered.standing(world.state, shop) is standing
    assert remembered.of(world.state, shop) is slots
    [task, _] = world.state.tasks_of_job(shop.id)
    world.report(task, RUN, Health.UNHEALTHY)
    assert remembered.standing(world.state, shop).groups["web"].healthy == 1
    assert remembered.of(world.state, shop).groups["web"].healthy == 1


async def test_a_command_beside_a_task_is_in_its_row_at_once() -> None:
    world = World()
    world.run(service())
    [task, _] = _place(world, RUN, RUN)
    remembered = SlotsOfJobs()
    shop = world.state.job_named("shop")
    assert shop is not None
    assert remembered.of(world.state, shop).rows
    note = c.NoteExec(
        task_id=task.id, task=task.name, job="shop", node_id=task.node_id, attempt=1, program="id"
    )
    world.apply(note)
    assert world.state.job_named("shop") is shop
    rows = [row for _, row in remembered.of(world.state, shop).rows]
    assert rows == world.state.tasks_of_job(shop.id)
