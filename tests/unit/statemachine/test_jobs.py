"""What users do to jobs: each command's answers, as tables."""

from __future__ import annotations

import pytest

from cube.model import commands as c
from cube.model.cluster import Job
from cube.model.ids import JobId, TaskId
from cube.model.lifecycle import Desired, NodeStatus, TaskState
from cube.model.outcome import (
    Done,
    JobAccepted,
    Outcome,
    PlanApplied,
    Rejected,
    RejectReason,
    TaskStopped,
)
from cube.model.spec import COUNT_MAX, VERSIONS_MAX, JobType
from cube.statemachine import jobs as jobs_module
from cube.statemachine.invariants import violations
from tests.builders import Machine, group, job


def named(machine: Machine, name: str) -> Job:
    found = machine.state.job_named(name)
    assert found is not None
    return found


def refusal(outcome: Outcome) -> RejectReason:
    assert isinstance(outcome, Rejected), outcome
    assert outcome.message
    return outcome.reason


def only_task(machine: Machine) -> TaskId:
    (task_id,) = machine.state.tasks
    return task_id


# submit


def test_a_new_job_begins_at_version_1_and_the_same_again_changes_nothing() -> None:
    machine = Machine()
    first = machine.submit(job("web"))
    assert isinstance(first, JobAccepted)
    assert (first.version, first.changed, first.created) == (1, True, True)
    before = machine.state
    again = machine.submit(job("web"))
    assert again == JobAccepted(first.job_id, "web", 1, changed=False, created=False)
    assert machine.state.jobs == before.jobs
    assert machine.steps[-1].events == ()


def test_another_spec_is_a_new_version_of_the_same_job() -> None:
    machine = Machine()
    first = machine.submit(job("web"))
    machine.now_ms += 5
    second = machine.submit(job("web", {"g": group(count=3)}))
    assert isinstance(first, JobAccepted)
    assert second == JobAccepted(first.job_id, "web", 2, changed=True, created=False)
    kept = named(machine, "web")
    assert [v.version for v in kept.versions] == [1, 2]
    assert (kept.modified_index, kept.modified_at_ms) == (machine.state.index, machine.now_ms)
    assert kept.versions[-1].actor == "test"


@pytest.mark.parametrize(
    ("exists", "expected", "accepted"),
    [
        (False, None, True),
        (False, 0, True),
        (False, 1, False),
        (True, None, True),
        (True, 0, False),
        (True, 1, True),
        (True, 2, False),
    ],
)
def test_submit_guards_the_version(exists: bool, expected: int | None, accepted: bool) -> None:
    machine = Machine()
    if exists:
        machine.submit(job("web"))
    spec = job("web", {"g": group(count=2)})
    outcome = machine.do(c.SubmitJob(spec, JobId("new"), expected))
    if accepted:
        assert isinstance(outcome, JobAccepted)
        assert outcome.created is not exists
    else:
        assert refusal(outcome) is RejectReason.CONFLICT


def test_a_guard_is_looked_at_before_whether_anything_changes() -> None:
    machine = Machine()
    machine.submit(job("web"))
    assert refusal(machine.do(c.SubmitJob(job("web"), JobId("x"), 0))) is RejectReason.CONFLICT


def test_a_job_does_not_change_its_type() -> None:
    machine = Machine()
    machine.submit(job("web"))
    outcome = machine.submit(job("web", type=JobType.BATCH))
    assert refusal(outcome) is RejectReason.REFUSED


def test_a_job_id_in_use_is_refused() -> None:
    machine = Machine()
    machine.do(c.SubmitJob(job("web"), JobId("same")))
    outcome = machine.do(c.SubmitJob(job("db"), JobId("same")))
    assert refusal(outcome) is RejectReason.INVALID


def test_the_number_of_jobs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "JOBS_MAX", 2)
    machine = Machine()
    machine.submit(job("a"))
    machine.submit(job("b"))
    assert refusal(machine.submit(job("c"))) is RejectReason.LIMIT
    assert isinstance(machine.submit(job("a", {"g": group(count=9)})), JobAccepted)


def test_submitting_a_stopped_job_starts_it_without_a_new_version() -> None:
    machine = Machine()
    machine.submit(job("web"))
    machine.do(c.StopJob("web"))
    outcome = machine.submit(job("web"))
    assert isinstance(outcome, JobAccepted)
    assert (outcome.version, outcome.changed) == (1, True)
    assert not named(machine, "web").stopped


def test_the_newest_versions_and_those_in_use_are_kept() -> None:
    machine = Machine("n1")
    machine.submit(job("web", {"g": group(count=1, env={"V": "1"})}))
    machine.place("web", "g", (0, "n1", ()))
    for number in range(2, VERSIONS_MAX + 6):
        machine.submit(job("web", {"g": group(count=1, env={"V": str(number)})}))
    newest = list(range(VERSIONS_MAX + 6 - VERSIONS_MAX, VERSIONS_MAX + 6))
    assert [v.version for v in named(machine, "web").versions] == [1, *newest]
    task_id = only_task(machine)
    assert machine.state.group_of(machine.state.tasks[task_id]) is not None
    machine.report(task_id, "running")
    machine.report(task_id, "completed", released=True)
    machine.submit(job("web", {"g": group(count=1, env={"V": "last"})}))
    versions = [v.version for v in named(machine, "web").versions]
    assert versions == list(range(newest[0] + 1, newest[-1] + 2))
    assert len(versions) == VERSIONS_MAX


# scale


@pytest.mark.parametrize(
    ("counts", "expected_version", "reason"),
    [
        ({"nope": 1}, None, RejectReason.NOT_FOUND),
        ({"g": -1}, None, RejectReason.INVALID),
        ({"g": COUNT_MAX + 1}, None, RejectReason.INVALID),
        ({"one": 2}, None, RejectReason.REFUSED),
        ({"g": 2}, 7, RejectReason.CONFLICT),
        ({"g": 2, "nope": 1}, None, RejectReason.NOT_FOUND),
    ],
)
def test_a_scale_that_cannot_be(
    counts: dict[str, int], expected_version: int | None, reason: RejectReason
) -> None:
    machine = Machine()
    machine.submit(job("web", {"g": group(), "one": group(at_most_one=True)}))
    before = machine.state
    assert refusal(machine.do(c.ScaleJob("web", counts, expected_version))) is reason
    assert machine.state.jobs == before.jobs


def test_scale_is_a_new_version_that_differs_in_counts_only() -> None:
    machine = Machine()
    machine.submit(job("web", {"g": group(count=1), "h": group(count=2)}))
    outcome = machine.do(c.ScaleJob("web", {"g": 0, "h": COUNT_MAX}, 1))
    assert isinstance(outcome, JobAccepted)
    assert (outcome.version, outcome.changed) == (2, True)
    spec = named(machine, "web").spec
    assert {name: g.count for name, g in spec.groups.items()} == {"g": 0, "h": COUNT_MAX}
    again = machine.do(c.ScaleJob("web", {"g": 0}))
    assert isinstance(again, JobAccepted)
    assert (again.version, again.changed) == (2, False)


def test_what_has_no_count_is_not_scaled() -> None:
    machine = Machine()
    machine.submit(job("all", type=JobType.SYSTEM))
    assert refusal(machine.do(c.ScaleJob("all", {"g": 2}))) is RejectReason.REFUSED


@pytest.mark.parametrize(
    "body", [c.ScaleJob("no", {"g": 1}), c.StopJob("no"), c.StartJob("no"), c.DeleteJob("no")]
)
def test_a_job_that_is_not_there(body: c.Body) -> None:
    assert refusal(Machine().do(body)) is RejectReason.NOT_FOUND


# stop and start


def test_stop_keeps_the_job_and_wants_its_tasks_no_more() -> None:
    machine = Machine("n1")
    machine.submit(job("web", {"g": group(count=2)}))
    machine.place("web", "g", (0, "n1", ()), (1, "n1", ()))
    assert machine.do(c.StopJob("web")) == Done(changed=True)
    assert named(machine, "web").stopped
    tasks = list(machine.state.tasks.values())
    assert {(t.desired, t.desired_reason) for t in tasks} == {(Desired.STOP, "job_stopped")}
    assert machine.do(c.StopJob("web")) == Done(changed=False)


def test_start_lets_new_tasks_into_the_slots_of_stopped_ones() -> None:
    machine = Machine("n1")
    machine.submit(job("web"))
    machine.place("web", "g", (0, "n1", ()))
    machine.do(c.StopJob("web"))
    assert machine.place("web", "g", (0, "n1", ())) == _refused_once(machine, "job_changed")
    assert machine.do(c.StartJob("web")) == Done(changed=True)
    assert machine.do(c.StartJob("web")) == Done(changed=False)
    assert machine.place("web", "g", (0, "n1", ())) == PlanApplied(1)
    assert sorted(t.desired for t in machine.state.tasks.values()) == [Desired.RUN, Desired.STOP]


def _refused_once(machine: Machine, code: str) -> PlanApplied:
    outcome = machine.steps[-1].outcome
    assert isinstance(outcome, PlanApplied)
    assert [r.code for r in outcome.refused] == [code]
    return PlanApplied(0, 1, outcome.refused)


# delete


def test_a_deleted_job_is_out_of_sight_at_once_and_gone_with_its_last_released_task() -> None:
    machine = Machine("n1")
    machine.submit(job("web", {"g": group(count=2)}))
    machine.place("web", "g", (0, "n1", ()), (1, "n1", ()))
    old = named(machine, "web").id
    first, second = (t.id for t in machine.state.tasks_of_job(old))
    machine.report(first, "running")
    machine.report(first, "failed", released=True)
    assert machine.do(c.DeleteJob("web")) == Done()
    assert machine.state.job_named("web") is None
    assert first not in machine.state.tasks  # it was over: nothing to wait for
    assert machine.state.tasks[second].desired is Desired.REMOVE
    assert machine.state.jobs[old].deleted
    assert refusal(machine.do(c.DeleteJob("web"))) is RejectReason.NOT_FOUND
    machine.report(second, "completed")
    assert old in machine.state.jobs
    machine.report(second, "completed", released=True)
    assert old not in machine.state.jobs
    assert not machine.state.tasks
    assert violations(machine.state) == []


def test_a_deleted_job_without_tasks_is_gone_at_once() -> None:
    machine = Machine()
    machine.submit(job("web"))
    machine.do(c.DeleteJob("web"))
    assert not machine.state.jobs


def test_the_name_of_a_deleted_job_may_be_used_again_at_once() -> None:
    machine = Machine("n1")
    machine.submit(job("web"))
    machine.place("web", "g", (0, "n1", ()))
    old = named(machine, "web").id
    machine.do(c.DeleteJob("web"))
    outcome = machine.submit(job("web"))
    assert isinstance(outcome, JobAccepted)
    assert (outcome.version, outcome.created) == (1, True)
    assert outcome.job_id != old
    machine.place("web", "g", (0, "n1", ()))
    task_id = machine.state.tasks_of_job(old)[0].id
    machine.report(task_id, "completed", released=True)
    assert named(machine, "web").id == outcome.job_id
    assert [t.job_id for t in machine.state.tasks.values()] == [outcome.job_id]
    assert violations(machine.state) == []


def test_a_deleted_jobs_task_on_a_node_that_is_down_waits_for_it() -> None:
    machine = Machine("n1")
    machine.submit(job("web"))
    machine.place("web", "g", (0, "n1", ()))
    machine.do(c.SetNodeStatus(1, machine.state.node_names["n1"], NodeStatus.DOWN, "silent"))
    machine.do(c.DeleteJob("web"))
    (task,) = machine.state.tasks.values()
    assert (task.state, task.desired) == (TaskState.LOST, Desired.REMOVE)
    machine.report(task.id, "completed", released=True)
    assert not machine.state.tasks
    assert not machine.state.jobs


# one task


def test_a_user_restarts_a_task_in_place() -> None:
    machine = Machine("n1")
    machine.submit(job("web"))
    machine.place("web", "g", (0, "n1", ()))
    task_id = only_task(machine)
    body = c.RestartTask(task_id)

    def asked() -> int:
        return machine.state.tasks[task_id].restart_after

    assert machine.do(body) == Done(changed=False)  # on its way: it starts anyway
    machine.report(task_id, "running")
    assert machine.do(body) == Done() and asked() == 1
    assert machine.do(body) == Done(changed=False)
    machine.report(task_id, "pending", 3)  # backing off: now, not later
    assert machine.do(body) == Done() and asked() == 2
    machine.report(task_id, "running", 3)
    machine.do(c.StopTask(task_id))
    assert refusal(machine.do(body)) is RejectReason.REFUSED
    assert refusal(machine.do(c.RestartTask(TaskId("no")))) is RejectReason.NOT_FOUND


def test_a_user_stops_a_task() -> None:
    machine = Machine("n1")
    machine.submit(job("web"))
    machine.place("web", "g", (0, "n1", ()))
    task_id = only_task(machine)
    body = c.StopTask(machine.state.tasks[task_id].id)
    assert machine.do(body) == TaskStopped(body.task_id, changed=True)
    assert machine.do(body) == TaskStopped(body.task_id, changed=False)
    assert machine.state.tasks[body.task_id].desired_reason == "task_stopped"
    assert machine.place("web", "g", (0, "n1", ())) == PlanApplied(1)
    assert refusal(machine.do(c.StopTask(TaskId("no")))) is RejectReason.NOT_FOUND
