"""A fork of the cluster that goes on by itself: the real apply, the real scheduler, and workers to
whom everything succeeds at once. Pure: no clock but the virtual one.

The state is an immutable value, so a fork is a reference, and nobody sees what happens to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from cube.model import commands as c
from cube.model.cluster import ClusterState, Task
from cube.model.deployment import DeploymentAction, DeploymentStatus, DeploymentStep
from cube.model.events import TaskEvent
from cube.model.ids import CommandId, JobId, NodeId, TaskId
from cube.model.lifecycle import Desired, Health, NodeStatus, TaskState
from cube.model.outcome import Done, Outcome, PlanApplied
from cube.model.spec import JobType
from cube.scheduler.plan import Scheduler
from cube.scheduler.reconcile import draining_nodes, reconcile
from cube.scheduler.restart import up_to_date
from cube.statemachine.apply import apply

STEPS_MAX = 5_000  # plans: a rollout of a thousand tasks one by one takes four thousand
TASKS_MAX = 100_000  # placed: the largest group there can be, about ten seconds of a processor
TIME_MAX_MS = 7 * 24 * 3_600_000  # virtual: longer than any drain's deadline that people give
SIGTERM_EXIT = 143
_ON_THEIR_WAY = (TaskState.SCHEDULED, TaskState.PREPARING, TaskState.STARTING)


class Simulation:
    """`state` and `now_ms` are the fork's. `touched`: jobs whose tasks it has changed. `halted`:
    jobs whose rollouts would fail, and of what. `cut`: why `run` ended before everything was at
    rest."""

    def __init__(
        self, state: ClusterState, now_ms: int, scheduler: Scheduler | None = None
    ) -> None:
        """`scheduler`: one of another fork of about the same state spares its caches' making."""
        self.state = state
        self.now_ms = max(now_ms, state.now_ms)
        self.touched: set[JobId] = set()
        self.halted: dict[JobId, str] = {}
        self.cut = ""
        self._scheduler = Scheduler() if scheduler is None else scheduler
        self._ends_at_ms = self.now_ms + TIME_MAX_MS
        self._number = 0
        self._placed = 0
        self._wake_at_ms: int | None = None  # the scheduler's, of its last plan
        self._restless = _on_their_way(state)  # tasks that their nodes may have to do with

    def fork(self) -> Simulation:
        """One that goes on by itself from here."""
        other = Simulation.__new__(Simulation)
        other.__dict__.update(self.__dict__)
        other.touched, other._restless = set(self.touched), set(self._restless)
        other.halted = dict(self.halted)
        return other

    def do(self, body: c.Body) -> Outcome:
        """The command is applied."""
        self._number += 1
        before = self.state
        command = c.Command(CommandId(f"dry-run/{self._number}"), body, "dry-run")
        step = apply(before, c.Entry(before.index + 1, before.term, self.now_ms, command))
        self.state = step.state
        self._scheduler.note(before, step.state, step.events)
        for event in step.events:
            if isinstance(event, TaskEvent):
                self._restless.add(event.task_id)
                self.touched.add(event.job_id)
        return step.outcome

    def run(
        self,
        jobs: Iterable[JobId],
        until: Callable[[ClusterState], bool] | None = None,
        *,
        to_completion: bool = False,
        steps: int | None = None,
    ) -> None:
        """These jobs are at rest: nothing is to be done for them now, nor later by itself. Or
        `until` is true; or a bound was hit, which `cut` says. `to_completion`: canaries that
        wait for a person are promoted, and where groups of a batch wait for others to complete,
        these do."""
        about = sorted(jobs)
        steps = STEPS_MAX if steps is None else steps
        for _ in range(steps):
            if until is not None and until(self.state):
                return
            moved = self._plan()
            if self.cut:
                return
            if self._obey() or moved:
                continue
            wake_at_ms = self._next_wake_ms(about)
            if wake_at_ms is None:
                if to_completion and (self._promote(about) or self._complete_batch(about)):
                    continue
                return
            if wake_at_ms > self._ends_at_ms:
                self.cut = "what comes later than in seven days is not foreseen"
                return
            self.now_ms = wake_at_ms
        self.cut = f"not at rest after {steps} steps; what comes later is not foreseen"

    def _plan(self) -> bool:
        """The scheduler's next plan is applied. False: it has nothing to do now."""
        seed = f"dry-run/{self._number}"
        plan = self._scheduler.plan(self.state, self.now_ms, self.state.term, seed)
        self._wake_at_ms = plan.wake_at_ms
        if plan.command is None:
            return False
        command = self._without_failures(plan.command)
        if command is None:
            return False
        outcome = self.do(command)
        if not isinstance(outcome, PlanApplied) or (outcome.refused_count and not outcome.placed):
            self.cut = "a plan was refused"  # it would be made again and again
            return False
        self._placed += outcome.placed
        if self._placed > TASKS_MAX:
            self.cut = f"more than {TASKS_MAX} tasks are placed; the others are not foreseen"
        return True

    def _without_failures(self, plan: c.ApplyPlan) -> c.ApplyPlan | None:
        """The plan without its verdicts on rollouts that fail: how what was asked for comes out is
        the question, and that it is taken back then would hide it. None: nothing else is in it."""
        kept = []
        for verdict in plan.deployments:
            if verdict.status is DeploymentStatus.SUCCESSFUL:
                kept.append(verdict)
            else:
                self.halted[JobId(verdict.job_id)] = self._ending(verdict)
        if len(kept) == len(plan.deployments):
            return plan
        rest = msgspec.structs.replace(plan, deployments=tuple(kept))
        nothing = c.ApplyPlan(plan.term, plan.seed, plan.nodes)
        return None if rest == nothing else rest

    def _ending(self, verdict: DeploymentStep) -> str:
        job = self.state.jobs.get(JobId(verdict.job_id))
        deployment = None if job is None else job.deployment
        if deployment is None or not verdict.roll_back:
            return verdict.message
        return f"{verdict.message}; back to version {deployment.from_version}"

    def _promote(self, about: list[JobId]) -> bool:
        """Canaries that are up and wait for a person are promoted."""
        promoted = False
        for job_id in about:
            job = self.state.jobs.get(job_id)
            if job is not None and any(job.is_gated(group) for group in job.spec.groups):
                steer = c.SteerDeployment(job.name, job.version, DeploymentAction.PROMOTE)
                promoted = self.do(steer) == Done() or promoted
        return promoted

    def _obey(self) -> bool:
        """Every node that is there does at once what is wanted of its tasks."""
        reports: dict[NodeId, list[c.TaskReport]] = {}
        nodes, tasks = self.state.nodes, self.state.tasks
        for task_id in sorted(self._restless):
            task = tasks.get(task_id)
            node = None if task is None else nodes.get(task.node_id)
            if task is None or node is None or node.status in (NodeStatus.DOWN, NodeStatus.LEFT):
                continue
            report = _report_of(task) or self._completed_run(task)
            if report is not None:
                reports.setdefault(node.id, []).append(report)
        self._restless.clear()
        for node_id, items in sorted(reports.items()):
            for first in range(0, len(items), c.REPORTS_MAX):
                part = tuple(items[first : first + c.REPORTS_MAX])
                self.do(c.ReportTasks(node_id, part))
        return bool(reports)

    def _completed_run(self, task: Task) -> c.TaskReport | None:
        """Runs of cron jobs are over as soon as they run: else each due time would take more room."""
        job = self.state.jobs.get(task.job_id)
        if job is None or not job.parent or not task.live or not task.serving:
            return None
        return _ended(task, TaskState.COMPLETED, 0)

    def _next_wake_ms(self, about: list[JobId]) -> int | None:
        """When time goes on to, while some of the jobs are not as they should be and that may change
        by itself: others' turns come in between, and may take room or give it."""
        draining = draining_nodes(self.state)
        wakes: list[int] = []
        for job_id in about:
            job = self.state.jobs.get(job_id)
            if job is None:
                continue
            work = reconcile(self.state, job, self.now_ms)
            if work.wake_at_ms is None:
                continue
            if work.wants or work.waiting or self._has_old_tasks(job_id, draining):
                wakes.append(work.wake_at_ms)
        if not wakes:
            return None
        return min(wakes) if self._wake_at_ms is None else min(*wakes, self._wake_at_ms)

    def _has_old_tasks(self, job_id: JobId, draining: frozenset[NodeId]) -> bool:
        job = self.state.jobs[job_id]
        for task in self.state.tasks_of_job(job_id):
            group = job.spec.groups.get(task.group)
            if not task.ended and (
                group is None or task.node_id in draining or not up_to_date(job, task)
            ):
                return True
        return False

    def _complete_batch(self, about: list[JobId]) -> bool:
        reports: list[tuple[NodeId, c.TaskReport]] = []
        for job_id in about:
            job = self.state.jobs.get(job_id)
            if job is None or job.spec.type is not JobType.BATCH:
                continue
            work = reconcile(self.state, job, self.now_ms)
            if work.wants or not any(one.cause == "depends_on" for one in work.waiting):
                continue  # what has no place now is told, not what comes when others have ended
            reports.extend(
                (task.node_id, _ended(task, TaskState.COMPLETED, 0))
                for task in self.state.tasks_of_job(job_id)
                if task.live and task.serving
            )
        for node_id, report in reports:
            self.do(c.ReportTasks(node_id, (report,)))
        return bool(reports)


def _on_their_way(state: ClusterState) -> set[TaskId]:
    """Tasks of which their nodes are about to say something."""
    return {task.id for task in state.tasks.values() if _report_of(task) is not None}


def _report_of(task: Task) -> c.TaskReport | None:
    """What its node says next. What fails already is not supposed to mend."""
    if task.ended and task.state is not TaskState.LOST:
        return None if task.released else _ended(task, task.state, task.exit_code)
    if task.desired is not Desired.RUN:
        if task.released:
            return None
        return _ended(task, TaskState.COMPLETED, SIGTERM_EXIT)
    first = task.state is TaskState.PENDING and task.attempt == 1
    if (
        first
        or task.state in _ON_THEIR_WAY
        or task.state is TaskState.LOST  # its node is there, so it runs on
        or (task.state is TaskState.RUNNING and task.health is Health.UNKNOWN)
    ):
        return c.TaskReport(task.id, task.attempt, TaskState.RUNNING, Health.HEALTHY, task.handle)
    return None


def _ended(task: Task, state: TaskState, exit_code: int | None) -> c.TaskReport:
    return c.TaskReport(
        task.id, task.attempt, state, task.health, task.handle, exit_code, released=True
    )
