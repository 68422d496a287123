"""Inputs in, instructions out: the machine's answers, list by list."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from cube.model.cluster import Task, TaskPort
from cube.model.commands import TaskReport
from cube.model.ids import ClusterId, JobId, NodeId, TaskId
from cube.model.launch import Observation, RunState
from cube.model.lifecycle import Desired, TaskState
from cube.model.spec import CheckSpec, CheckType, GroupSpec, JobType, Protocol
from cube.worker import inputs as i
from cube.worker import instructions as do
from cube.worker.machine import Worker
from cube.worker.settings import WorkerSettings
from tests import builders

S = TaskState
ID = TaskId("task-1")


def make_task(state: TaskState = S.SCHEDULED, **changes: Any) -> Task:
    values: dict[str, Any] = {
        "id": ID,
        "job_id": JobId("job"),
        "job": "web",
        "group": "g",
        "slot": 0,
        "version": 1,
        "node_id": NodeId("a"),
        "driver": "fake",
        "resources": builders.group().resources,
        "state": state,
        "started_at_ms": 1 if state is S.RUNNING else 0,
    }
    return Task(**(values | changes))


def seen(state: RunState, attempt: int = 1, **changes: Any) -> Observation:
    return Observation(task_id=ID, attempt=attempt, state=state, handle=f"h{attempt}", **changes)


class Bench:
    """A worker, its tasks as the state has them, and what it asked for, by kind."""

    def __init__(self, *tasks: Task, found: tuple[Observation, ...] = (), **group: Any) -> None:
        self.worker = Worker(WorkerSettings(), ClusterId("c"), NodeId("a"), "10.0.0.1", ["fake"])
        self.group: GroupSpec = builders.group(**group)
        self.now_ms = 1000
        self.index = 0
        [recover] = self.want(*tasks)
        assert recover == do.Recover(recover.token, "fake")
        self.first = self.step(i.Recovered(recover.token, found))

    def step(self, *inputs: i.Input, after_ms: int = 0) -> list[Any]:
        """All instructions but the alarm."""
        self.now_ms += after_ms
        given = self.worker.step(inputs, self.now_ms)
        return [item for item in given if not isinstance(item, do.WakeAt)]

    def want(self, *tasks: Task, complete: bool = True) -> list[Any]:
        self.index += 1
        wanted = tuple(i.WantedTask(task, self.group, JobType.SERVICE) for task in tasks)
        return self.step(
            i.Wanted(
                tasks=wanted,
                index=self.index,
                leader_now_ms=0,
                complete=complete,
                node_name="node-a",
            )
        )

    def done(self, instruction: Any, observation: Observation | None = None) -> list[Any]:
        return self.step(i.InstructionDone(instruction.token, observation))

    def failed(self, instruction: Any, code: str = "x", *, transient: bool) -> list[Any]:
        return self.step(i.InstructionFailed(instruction.token, code, "why", transient))

    def reported(self) -> tuple[TaskReport, ...]:
        [report] = self.step(after_ms=20)
        assert isinstance(report, do.Report)
        self.report = report
        return report.reports


def test_the_way_of_a_task_from_placed_to_running() -> None:
    bench = Bench(make_task())
    [prepare] = bench.first
    assert isinstance(prepare, do.Prepare)
    assert prepare.launch.env["CUBE_NODE"] == "node-a"
    [start] = bench.done(prepare)
    assert start == do.Start(start.token, "fake", prepare.launch, test_ports=True)
    assert bench.done(start, seen(RunState.RUNNING)) == []
    [report] = bench.reported()
    assert (report.state, report.handle, report.attempt) == (S.RUNNING, "h1", 1)


def test_nothing_happens_while_the_state_is_not_known_to_be_complete() -> None:
    worker = Worker(WorkerSettings(), ClusterId("c"), NodeId("a"), "h", ["fake"])
    wanted = i.WantedTask(make_task(), builders.group(), JobType.SERVICE)
    partial = i.Wanted(tasks=(wanted,), index=5, leader_now_ms=0, complete=False)
    assert worker.step([partial], 1000) == []
    assert worker.step([], 100_000) == []


def test_an_older_view_of_the_state_is_not_listened_to() -> None:
    bench = Bench(make_task(S.RUNNING), found=(seen(RunState.RUNNING),))
    bench.step(i.Wanted(tasks=(), index=0, leader_now_ms=0, complete=True))
    assert bench.worker.tasks.keys() == {ID}


def test_adoption_asks_for_nothing_and_says_nothing_when_all_is_as_it_was() -> None:
    bench = Bench(make_task(S.RUNNING, handle="h1"), found=(seen(RunState.RUNNING),))
    assert bench.first == []
    assert bench.step(after_ms=50_000) == []


def test_a_new_attempt_that_was_never_reported_is_adopted_with_its_number() -> None:
    bench = Bench(make_task(S.RUNNING), found=(seen(RunState.RUNNING, attempt=2),))
    [report] = bench.reported()
    assert (report.attempt, report.state, report.handle) == (2, S.RUNNING, "h2")


def test_an_earlier_attempt_that_still_runs_is_ended_before_the_next() -> None:
    bench = Bench(make_task(S.PREPARING, attempt=2), found=(seen(RunState.RUNNING),))
    [stop] = bench.first
    assert stop == do.Stop(stop.token, "fake", ID, 1, "SIGTERM", 10_000)
    [prepare] = bench.done(stop, seen(RunState.EXITED))
    assert prepare.launch.attempt == 2


def test_of_two_attempts_that_run_the_newest_is_kept() -> None:
    bench = Bench(
        make_task(S.RUNNING, attempt=2, handle="h2"),
        found=(seen(RunState.RUNNING, attempt=1), seen(RunState.RUNNING, attempt=2)),
    )
    [stop] = bench.first
    assert (stop.attempt, type(stop)) == (1, do.Stop)
    assert bench.done(stop, seen(RunState.EXITED)) == []


def test_something_of_no_task_is_ended_and_removed_and_nothing_is_reported() -> None:
    bench = Bench(found=(seen(RunState.RUNNING),))
    [stop] = bench.first
    assert isinstance(stop, do.Stop)
    [remove] = bench.done(stop, seen(RunState.EXITED))
    assert remove == do.Remove(remove.token, "fake", ID, keep_logs=False)
    assert bench.done(remove) == []
    assert bench.step(after_ms=1000) == []
    assert not bench.worker.tasks


def test_a_start_that_may_have_happened_is_ended_before_another_attempt() -> None:
    bench = Bench(make_task())
    [prepare] = bench.first
    [start] = bench.done(prepare)
    assert bench.failed(start, "engine_down", transient=True) == []
    again = [item for item in bench.step(after_ms=1000) if not isinstance(item, do.Report)]
    assert again == [do.Start(again[0].token, "fake", start.launch, test_ports=False)]
    [kill] = bench.failed(again[0], "command_not_found", transient=False)
    assert kill == do.Kill(kill.token, "fake", ID, 1)
    assert bench.done(kill, seen(RunState.EXITED, exit_code=137)) == []
    local = bench.worker.tasks[ID]
    assert (local.view.state, local.view.attempt) == (S.PENDING, 2)
    assert local.view.reason == "command_not_found"


def test_a_start_that_cannot_have_happened_needs_no_kill() -> None:
    bench = Bench(make_task())
    [prepare] = bench.first
    [start] = bench.done(prepare)
    assert bench.failed(start, "command_not_found", transient=False) == []
    assert bench.worker.tasks[ID].view.state is S.PENDING


def test_a_removal_refused_because_it_runs_kills_first() -> None:
    bench = Bench(make_task(S.RUNNING, desired=Desired.STOP), found=(seen(RunState.RUNNING),))
    [stop] = bench.first
    [remove] = bench.done(stop, seen(RunState.EXITED))
    assert bench.failed(remove, "still_running", transient=True) == []
    [kill, *_] = bench.step(after_ms=1000)
    assert kill == do.Kill(kill.token, "fake", ID, 1)
    [remove] = [x for x in bench.done(kill, seen(RunState.EXITED)) if isinstance(x, do.Remove)]
    bench.done(remove)
    assert bench.worker.tasks[ID].view.released


def test_a_hint_is_followed_by_a_look_and_the_look_is_believed() -> None:
    bench = Bench(make_task(S.RUNNING, handle="h1"), found=(seen(RunState.RUNNING),))
    [inspect] = bench.step(i.Observed("fake", seen(RunState.EXITED, exit_code=1)))
    assert inspect == do.Inspect(inspect.token, "fake", ID, 1)
    assert bench.done(inspect, seen(RunState.RUNNING)) == []
    assert bench.worker.tasks[ID].view.state is S.RUNNING


def test_hints_about_other_attempts_are_not_followed() -> None:
    bench = Bench(
        make_task(S.RUNNING, attempt=2, handle="h2"), found=(seen(RunState.RUNNING, attempt=2),)
    )
    assert bench.step(i.Observed("fake", seen(RunState.EXITED, attempt=1))) == []


def test_a_look_that_fails_changes_nothing_and_is_taken_again() -> None:
    bench = Bench(make_task(S.RUNNING, handle="h1"), found=(seen(RunState.RUNNING),))
    [inspect] = bench.step(i.Observed("fake", seen(RunState.EXITED)))
    assert bench.failed(inspect, "engine_down", transient=True) == []
    [again] = bench.step(after_ms=1000)
    assert isinstance(again, do.Inspect)


def test_how_it_ended_is_kept_until_the_state_knows() -> None:
    bench = Bench(make_task(S.RUNNING, handle="h1"), found=(seen(RunState.RUNNING),))
    bench.group = msgspec.structs.replace(
        bench.group, restart=msgspec.structs.replace(bench.group.restart, attempts=0)
    )
    bench.want(make_task(S.RUNNING, handle="h1"))
    [inspect] = bench.step(i.Observed("fake", seen(RunState.EXITED)))
    assert bench.done(inspect, seen(RunState.EXITED, exit_code=4)) == []
    [report] = bench.reported()
    assert (report.state, report.exit_code, report.released) == (S.FAILED, 4, False)
    assert bench.step(i.Reported(bench.report.token, 9)) == []
    [remove] = bench.want(make_task(S.FAILED))
    assert remove == do.Remove(remove.token, "fake", ID, keep_logs=True)
    bench.done(remove)
    [report] = bench.reported()
    assert (report.state, report.released) == (S.FAILED, True)


def test_the_output_of_a_task_goes_when_the_cluster_forgets_it_and_not_before() -> None:
    bench = Bench(make_task(S.RUNNING, handle="h1"), found=(seen(RunState.RUNNING),))
    bench.group = msgspec.structs.replace(
        bench.group, restart=msgspec.structs.replace(bench.group.restart, attempts=0)
    )
    bench.want(make_task(S.RUNNING, handle="h1"))
    [inspect] = bench.step(i.Observed("fake", seen(RunState.EXITED)))
    bench.done(inspect, seen(RunState.EXITED, exit_code=4))
    bench.reported()
    bench.step(i.Reported(bench.report.token, 9))
    [remove] = bench.want(make_task(S.FAILED))
    bench.done(remove)
    bench.reported()
    bench.step(i.Reported(bench.report.token, 10))
    assert bench.want(make_task(S.FAILED, released=True)) == []
    hour = bench.step(after_ms=3_600_000)
    assert not any(isinstance(one, do.Remove) for one in hour)
    [remove] = [one for one in bench.want() if isinstance(one, do.Remove)]
    assert remove == do.Remove(remove.token, "fake", ID, keep_logs=False)
    assert bench.failed(remove, "engine_down", transient=True) == []
    [again] = [one for one in bench.step(after_ms=60_000) if isinstance(one, do.Remove)]
    assert not again.keep_logs
    bench.done(again)
    assert not bench.worker.tasks


def test_one_batch_of_reports_is_under_way_at_a_time() -> None:
    other = TaskId("task-2")
    bench = Bench(make_task(), make_task(id=other))
    one, two = bench.first
    assert {report.task_id for report in bench.reported()} == {ID, other}
    bench.failed(one, "no_route", transient=True)
    bench.failed(two, "no_route", transient=True)
    assert not [x for x in bench.step(after_ms=500) if isinstance(x, do.Report)]
    bench.step(i.ReportFailed(bench.report.token, "no leader"))
    [again] = [x for x in bench.step(after_ms=200) if isinstance(x, do.Report)]
    assert [report.reason for report in again.reports] == ["no_route"] * 2, "what is true by now"


def test_what_was_acknowledged_and_is_not_to_be_seen_is_said_again_ever_more_seldom() -> None:
    bench = Bench(make_task(S.RUNNING, handle="old"), found=(seen(RunState.RUNNING),))
    bench.reported()
    times = []
    for _ in range(8):
        bench.step(i.Reported(bench.report.token, bench.index))
        while not (given := bench.step(after_ms=10)) or not isinstance(given[-1], do.Report):
            for item in given:
                if isinstance(item, do.Recover):
                    bench.step(i.Recovered(item.token, (seen(RunState.RUNNING),)))
        bench.report = given[-1]
        times.append(bench.now_ms)
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    for gap, least in zip(gaps, (2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000), strict=True):
        assert least <= gap <= least + 100


def test_a_lost_task_that_was_replaced_says_nothing_until_it_has_ended() -> None:
    lost = make_task(S.LOST, desired=Desired.STOP, desired_reason="replaced", started_at_ms=1)
    bench = Bench(lost, found=(seen(RunState.RUNNING),))
    [stop] = bench.first
    assert bench.step(after_ms=5000) == []
    [remove] = bench.done(stop, seen(RunState.EXITED, exit_code=143))
    bench.done(remove)
    [report] = bench.reported()
    assert (report.state, report.released) == (S.COMPLETED, True)


def test_probes_go_to_the_tasks_own_address_and_host_port() -> None:
    checks = (
        CheckSpec("web", CheckType.HTTP, port="http", path="/x"),
        CheckSpec("run", CheckType.EXEC, command=("ok",)),
    )
    ports = (TaskPort("http", 20_123, 80, Protocol.TCP),)
    bench = Bench(
        make_task(S.RUNNING, handle="h1", ports=ports),
        found=(seen(RunState.RUNNING),),
        checks=checks,
    )
    web, run = bench.first
    assert web == do.Probe(web.token, "fake", ID, 1, checks[0], "10.0.0.1", 20_123)
    assert run == do.Probe(run.token, "fake", ID, 1, checks[1], "10.0.0.1", 0)


def test_an_answer_to_a_probe_of_an_attempt_that_is_over_says_nothing_of_the_next() -> None:
    check = CheckSpec("run", CheckType.EXEC, command=("ok",), unhealthy_after=1, interval_ms=1)
    bench = Bench(
        make_task(S.RUNNING, handle="h1"), found=(seen(RunState.RUNNING),), checks=(check,)
    )
    [probe] = bench.first
    [inspect] = bench.step(i.Observed("fake", seen(RunState.EXITED)))
    bench.done(inspect, seen(RunState.EXITED, exit_code=1))
    [prepare, *_] = [x for x in bench.step(after_ms=1200) if isinstance(x, do.Prepare)]
    [start] = bench.done(prepare)
    bench.done(start, seen(RunState.RUNNING, attempt=2))
    bench.step(i.ProbeResult(probe.token, False, "late"))
    assert bench.worker.tasks[ID].checks["run"].failures == 0


def test_the_alarm_is_set_again_after_it_rang() -> None:
    bench = Bench(make_task(S.RUNNING, handle="h1"), found=(seen(RunState.RUNNING),))
    at_ms = 1000 + WorkerSettings().resync_ms
    assert bench.worker.step([], at_ms - 1) == []
    [recover] = bench.worker.step([], at_ms)
    assert isinstance(recover, do.Recover)
    failed = i.InstructionFailed(recover.token, "engine_down", "", True)
    [wake] = bench.worker.step([failed], at_ms)
    assert wake == do.WakeAt(at_ms + 1000)


def test_every_instruction_can_describe_itself() -> None:
    bench = Bench(make_task())
    [prepare] = bench.first
    assert prepare.describe() == "prepare web.g.0 attempt 1"
    [start] = bench.done(prepare)
    assert start.describe() == "start web.g.0 attempt 1"
