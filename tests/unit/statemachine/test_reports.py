"""What nodes report of their tasks: which moves are taken, and what a lost task may still do."""

from __future__ import annotations

import pytest

from cube.model import commands as c
from cube.model.cluster import HISTORY_MAX, MESSAGE_CHARS_MAX, Task
from cube.model.ids import NodeId, TaskId
from cube.model.lifecycle import Desired, Health, NodeStatus, TaskState
from cube.model.outcome import Done, PlanApplied
from cube.model.spec import CheckSpec, CheckType
from cube.statemachine.invariants import violations
from tests.builders import Machine, group, job

N1, N2 = NodeId("id-n1"), NodeId("id-n2")
CHECKED = group(checks=(CheckSpec(name="c", type=CheckType.EXEC, command=("true",)),))


def running(*, checked: bool = False) -> Machine:
    """A task of `web.g.0` that runs on n1, and a node n2."""
    machine = Machine("n1", "n2")
    machine.submit(job("web", {"g": CHECKED if checked else group()}))
    machine.place("web", "g", (0, "n1", ()))
    machine.now_ms += 10
    machine.report(the_task(machine).id, "running", handle="h1")
    return machine


def the_task(machine: Machine) -> Task:
    return min(machine.state.tasks.values(), key=lambda t: (t.created_at_ms, t.id))


def node_is(machine: Machine, status: NodeStatus, node_id: NodeId = N1) -> None:
    machine.do(c.SetNodeStatus(machine.term, node_id, status, "because"))
    assert violations(machine.state) == []


def replaced() -> Machine:
    """The task was lost with its node, and another one runs in its slot."""
    machine = running()
    node_is(machine, NodeStatus.DOWN)
    machine.now_ms += 10
    assert machine.place("web", "g", (0, "n2", ())) == PlanApplied(1)
    return machine


def test_times_are_the_leaders_and_each_state_is_in_the_history() -> None:
    machine = running()
    task = the_task(machine)
    assert (task.started_at_ms, task.finished_at_ms) == (machine.now_ms, 0)
    machine.now_ms += 10
    machine.report(task.id, "failed", exit_code=3, reason="exited", message="exited with code 3")
    task = the_task(machine)
    assert (task.exit_code, task.finished_at_ms, task.state_at_ms) == (
        3,
        machine.now_ms,
        machine.now_ms,
    )
    assert [(h.state, h.reason) for h in task.history] == [
        (TaskState.SCHEDULED, ""),
        (TaskState.RUNNING, ""),
        (TaskState.FAILED, "exited"),
    ]


def test_a_restart_in_place_is_a_new_attempt_of_the_same_task() -> None:
    machine = running()
    task_id = the_task(machine).id
    machine.report(task_id, "pending", attempt=2, reason="exited", exit_code=1)
    task = the_task(machine)
    assert (task.id, task.attempt, task.restarts, task.started_at_ms) == (task_id, 2, 1, 0)
    machine.report(task_id, "running", attempt=1)  # of the past
    assert the_task(machine).state is TaskState.PENDING
    machine.now_ms += 10
    machine.report(task_id, "running", attempt=2)
    assert the_task(machine).started_at_ms == machine.now_ms


def test_reports_of_others_and_of_what_is_not_there_are_skipped() -> None:
    machine = running()
    task = the_task(machine)
    before = machine.state.tasks
    item = c.TaskReport(task.id, 1, TaskState.FAILED)
    assert machine.do(c.ReportTasks(N2, (item,))) == Done(changed=False)
    nobody = c.TaskReport(TaskId("nobody"), 1, TaskState.FAILED)
    assert machine.do(c.ReportTasks(N1, (nobody,))) == Done(changed=False)
    assert machine.state.tasks == before


@pytest.mark.parametrize("state", [TaskState.SCHEDULED, TaskState.PREPARING, TaskState.REJECTED])
def test_a_move_that_the_table_does_not_have_is_skipped(state: TaskState) -> None:
    machine = running()
    before = machine.state.tasks
    assert machine.report(the_task(machine).id, state, released=True) == Done(changed=False)
    assert machine.state.tasks == before


def test_a_node_cannot_declare_its_own_task_lost() -> None:
    machine = running()
    assert machine.report(the_task(machine).id, "lost", released=True) == Done(changed=False)
    assert the_task(machine).state is TaskState.RUNNING


def test_what_has_ended_stays_as_it_ended_but_for_its_release() -> None:
    machine = running()
    task_id = the_task(machine).id
    machine.report(task_id, "failed", exit_code=3, reason="exited")
    machine.report(task_id, "failed", exit_code=4, reason="other", handle="x", released=True)
    task = the_task(machine)
    assert (task.exit_code, task.reason, task.handle, task.released) == (3, "exited", "", True)
    assert machine.report(task_id, "completed") == Done(changed=False)


def test_a_task_that_has_not_ended_cannot_be_released() -> None:
    machine = running()
    machine.report(the_task(machine).id, "stopping", released=True)
    assert not the_task(machine).released


def test_words_and_history_are_bounded() -> None:
    machine = running()
    task_id = the_task(machine).id
    for attempt in range(2, HISTORY_MAX + 10):
        long = "x" * (MESSAGE_CHARS_MAX + 9)
        machine.report(task_id, "pending", attempt=attempt, message=long, reason=long)
    task = the_task(machine)
    assert len(task.history) == HISTORY_MAX
    assert len(task.message) == len(task.reason) == MESSAGE_CHARS_MAX


def test_health_counts_only_for_groups_with_checks() -> None:
    machine = running()
    machine.report(the_task(machine).id, "running", health=Health.UNHEALTHY)
    assert the_task(machine).health is Health.NONE
    machine = running(checked=True)
    machine.report(the_task(machine).id, "running", health=Health.HEALTHY)
    assert the_task(machine).health is Health.HEALTHY
    assert the_task(machine).serving


def test_a_report_from_before_the_checks_were_added_does_not_take_them_away() -> None:
    machine = running()
    task = the_task(machine)
    machine.submit(job("web", {"g": CHECKED}))
    machine.do(c.ApplyPlan(1, "s", updates=((task.id, 2),)))
    machine.report(task.id, "running", health=Health.NONE, message="said before it knew")
    assert the_task(machine).health is Health.UNKNOWN
    machine.report(task.id, "running", health=Health.HEALTHY)
    assert the_task(machine).health is Health.HEALTHY


# lost


def test_a_node_that_is_down_loses_its_tasks_and_keeps_their_room() -> None:
    machine = running()
    reserved = machine.state.reserved[N1]
    node_is(machine, NodeStatus.DOWN)
    task = the_task(machine)
    assert (task.state, task.reason, task.released) == (TaskState.LOST, "node_down", False)
    assert machine.state.reserved[N1] == reserved
    node_is(machine, NodeStatus.READY)
    machine.report(task.id, "completed", released=True)
    assert N1 not in machine.state.reserved


@pytest.mark.parametrize("status", [NodeStatus.READY, NodeStatus.SUSPECT])
def test_a_suspect_loses_nothing(status: NodeStatus) -> None:
    machine = running()
    node_is(machine, status)
    assert the_task(machine).state is TaskState.RUNNING


def test_what_was_not_replaced_goes_on_as_its_node_says() -> None:
    machine = running()
    node_is(machine, NodeStatus.DOWN)
    node_is(machine, NodeStatus.READY)
    machine.report(the_task(machine).id, "running", handle="h1")
    task = the_task(machine)
    assert (task.state, task.handle, task.live) == (TaskState.RUNNING, "h1", True)
    assert task.started_at_ms < machine.now_ms or task.started_at_ms == machine.now_ms


def test_a_down_node_whose_task_runs_is_no_longer_down() -> None:
    """Else it could die again before the leader said so, and its task would look alive for ever:
    nobody declares down what is down."""
    machine = running()
    node_is(machine, NodeStatus.DOWN)
    machine.report(the_task(machine).id, "running")
    assert machine.state.nodes[N1].status is NodeStatus.SUSPECT
    assert violations(machine.state) == []
    node_is(machine, NodeStatus.DOWN)
    assert the_task(machine).state is TaskState.LOST


def test_a_down_nodes_endings_do_not_bring_it_back() -> None:
    machine = running()
    node_is(machine, NodeStatus.DOWN)
    machine.report(the_task(machine).id, "failed", released=True)
    assert the_task(machine).state is TaskState.FAILED
    assert machine.state.nodes[N1].status is NodeStatus.DOWN


@pytest.mark.parametrize(
    ("state", "attempt"),
    [
        ("running", 1),
        ("pending", 1),
        ("stopping", 1),
        ("pending", 2),
        ("preparing", 2),
        ("starting", 2),
        ("running", 2),
        ("stopping", 2),
    ],
)
def test_what_was_replaced_may_only_end(state: str, attempt: int) -> None:
    machine = replaced()
    old = the_task(machine)
    assert (old.state, old.desired, old.desired_reason) == (
        TaskState.LOST,
        Desired.STOP,
        "replaced",
    )
    assert machine.report(old.id, state, attempt=attempt) == Done(changed=False)
    assert the_task(machine).state is TaskState.LOST


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_what_was_replaced_says_so_at_its_end(state: str) -> None:
    machine = replaced()
    old = the_task(machine)
    # What the node says is what it read in the state.
    machine.report(old.id, state, reason=old.reason, message=old.message, released=True)
    ended = the_task(machine)
    assert (ended.state, ended.released) == (state, True)
    assert ended.reason == "replaced"
    assert "replaced" in ended.message
    assert ended.history[-1].reason == "replaced"


def test_an_ending_with_a_reason_of_its_own_keeps_it() -> None:
    machine = replaced()
    machine.report(the_task(machine).id, "failed", reason="oom_killed", message="out of memory")
    assert the_task(machine).reason == "oom_killed"


def test_a_lost_task_of_a_stopped_job_says_that_at_its_end() -> None:
    machine = running()
    node_is(machine, NodeStatus.DOWN)
    machine.do(c.StopJob("web"))
    old = the_task(machine)
    machine.report(old.id, "completed", reason=old.reason, message=old.message)
    assert the_task(machine).reason == "job_stopped"
