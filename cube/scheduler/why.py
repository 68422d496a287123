"""`cube why`: for each slot that is not as wanted, every cause; for each node, every obstacle.

Works on any node from its own state: no mirror, no numpy. It says what reconcile and the filters say,
because it asks them. What would help is found by trying (cube.services.remedies).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from cube.model.cluster import ClusterState, Job, Task
from cube.model.deployment import DeploymentStatus, deployment_id
from cube.model.explain import Explanation, NodeExplanation, Reason
from cube.model.ids import NodeId
from cube.model.lifecycle import Health, TaskState
from cube.model.spec import GroupSpec, JobType
from cube.model.units import format_duration
from cube.scheduler import cron, filters
from cube.scheduler.deployments import last_words
from cube.scheduler.flapping import flaps
from cube.scheduler.homes import homes_of, sentence
from cube.scheduler.liveness import brake_of, braked
from cube.scheduler.preempt import Held, held_nodes
from cube.scheduler.reconcile import reconcile
from cube.scheduler.restart import up_to_date
from cube.scheduler.slots import JobWork, Slot, Waiting, slots_of
from cube.scheduler.trouble import FAILURES, TROUBLE_MS, troubled
from cube.scheduler.want import Want

FAILURES_MAX = 5  # last failures shown of each group of slots
_TROUBLE = frozenset({TaskState.FAILED, TaskState.REJECTED, TaskState.LOST})


def explain(state: ClusterState, now_ms: int, job_name: str) -> list[Explanation]:
    """Empty when the job is as wanted, or unknown. By group, then slot."""
    job = state.job_named(job_name)
    if job is None or job.deleted:
        return []
    if job.stopped:
        return [
            Explanation(
                job.name, name, (), "stopped", f"job {job.name} is stopped: cube start {job.name}"
            )
            for name in sorted(job.spec.groups)
        ]
    if job.spec.type is JobType.CRON:
        return [
            cron.explain_schedule(job, now_ms),
            *(one for run in state.runs_of(job) for one in explain_job(state, now_ms, run)),
        ]
    return explain_job(state, now_ms, job)


def explain_job(state: ClusterState, now_ms: int, job: Job) -> list[Explanation]:
    """Of a job that has tasks of its own: also of one run of a cron job."""
    if job.stopped:  # a run that is over, or on its way there
        return []
    work = reconcile(state, job, now_ms)
    by_group: dict[str, list[Task]] = {}
    for task in state.tasks_of_job(job.id):
        by_group.setdefault(task.group, []).append(task)
    found: list[Explanation] = []
    for name in sorted(job.spec.groups):
        found.extend(_Group(state, now_ms, job, name, by_group.get(name, [])).explain(work))
    return found


class _Group:
    """One group's explanations."""

    def __init__(
        self, state: ClusterState, now_ms: int, job: Job, name: str, tasks: Sequence[Task]
    ) -> None:
        self.state = state
        self.now_ms = now_ms
        self.job = job
        self.name = name
        self.group: GroupSpec = job.spec.groups[name]
        self.tasks = tasks
        self.slots = slots_of(tasks)

    def explain(self, work: JobWork) -> Iterator[Explanation]:
        """What is wrong with the group; which nodes it avoids goes with each."""
        avoided = self._avoided()
        for one in self._explain(work):
            yield msgspec.structs.replace(one, reasons=(*one.reasons, *avoided))

    def _avoided(self) -> list[Reason]:
        if self.job.spec.type is JobType.SYSTEM:
            return []
        found = []
        counted = troubled(self.job, self.group, self.tasks, self.now_ms)
        for node_id, count in counted.items():
            node = self.state.nodes.get(node_id)
            name = node_id if node is None else node.name
            span = format_duration(TROUBLE_MS)
            message = f"{name} is avoided: {count} failures of {self.name} there within {span}"
            found.append(Reason("avoided", message, f"fewer than {FAILURES}", str(count)))
        return found

    def _explain(self, work: JobWork) -> Iterator[Explanation]:
        for want in work.wants:
            if want.group == self.name:
                yield self._unplaced(want)
        for waiting in work.waiting:
            if waiting.group == self.name:
                yield self._waiting(waiting)
        yield from self._braked()
        yield from self._ending()
        yield from self._not_serving()
        yield from self._flapping()
        yield from self._held_back(work)

    def _make(
        self,
        slots: Sequence[int],
        kind: str,
        summary: str,
        *,
        reasons: Sequence[Reason] = (),
        nodes: Sequence[NodeExplanation] = (),
        hints: Sequence[str] = (),
        since_ms: int = 0,
    ) -> Explanation:
        return Explanation(
            self.job.name,
            self.name,
            tuple(slots),
            kind,
            summary,
            tuple(reasons),
            tuple(nodes),
            tuple(hints),
            since_ms,
        )

    # Slots without a task

    def _unplaced(self, want: Want) -> Explanation:
        context = filters.Context(
            self.state, self.group, self.now_ms, want.on_node, dict(want.avoid)
        )
        nodes = sorted(self.state.nodes.values(), key=lambda node: (node.name, node.id))
        if want.only_on:
            only = set(want.only_on)
            nodes = [node for node in nodes if node.id in only]
        held = held_nodes(self.state)
        explained = [
            NodeExplanation(
                node.id, node.name, (*filters.reasons(context, node), *_held(want, held, node.id))
            )
            for node in nodes
        ]
        if making := self._making_room():
            detail = f"{', '.join(making)} being stopped to make room"
            return self._make(
                want.slots, "waiting", f"{_tasks(len(want.slots))} about to be placed: {detail}",
                reasons=[Reason("preemption", detail)], nodes=explained,
                since_ms=self._since_ms(want.slots),
            )  # fmt: skip
        past = self._failures(want.slots, _TROUBLE)
        past += [Reason("volume", one) for one in self._homes(want)]
        since_ms = self._since_ms(want.slots)
        open_ = [one.node for one in explained if not one.reasons]
        count = _tasks(len(want.slots))
        if open_:
            where = f"{open_[0]} has room" if len(open_) == 1 else f"{len(open_)} nodes have room"
            return self._make(
                want.slots,
                "waiting",
                f"{count} about to be placed: {where}",
                reasons=past,
                nodes=explained,
                since_ms=since_ms,
            )
        cause = "; ".join([*self._homes(want), _tally(explained)])
        return self._make(
            want.slots,
            "unplaced",
            f"{count} not placed: {cause}",
            reasons=past,
            nodes=explained,
            since_ms=since_ms,
        )

    def _making_room(self) -> list[str]:
        """`batch.g.3 on n2`: tasks that were told to go for this group."""
        mine = f"{self.job.name}.{self.name}"
        tasks = [self.state.tasks[task_id] for task_id in sorted(self.state.preempted)]
        return [
            f"{task.name} on {self.state.nodes[task.node_id].name}"
            for task in tasks
            if task.preempted_by == mine and task.state is not TaskState.LOST
        ]

    def _homes(self, want: Want) -> list[str]:
        """Where the slots' volumes are: `its volume shop-data is on n2, which is down`."""
        if not want.only_on:
            return []
        found = [homes_of(self.state, self.job, self.name, self.group, slot) for slot in want.slots]
        return list(dict.fromkeys(sentence(self.state, homes) for homes in found if homes))

    def _waiting(self, waiting: Waiting) -> Explanation:
        slots, count = waiting.slots, _tasks(len(waiting.slots))
        left = format_duration(max(0, waiting.until_ms - self.now_ms))
        since_ms = self._since_ms(slots)
        match waiting.cause:
            case "depends_on":
                reason = Reason("depends_on", f"waits for {waiting.detail}")
                summary = f"{count} not started yet: waits for {waiting.detail}"
                return self._make(slots, "waiting", summary, reasons=[reason], since_ms=since_ms)
            case "volume":
                return self._make(
                    slots,
                    "unplaced",
                    f"{count} not placed: {waiting.detail}",
                    reasons=[Reason("volume", waiting.detail)],
                    hints=["mount only volumes that are on one node"],
                    since_ms=since_ms,
                )
            case "on_partition":
                summary = waiting.detail
                if waiting.until_ms:
                    summary = f"{count} lost, replaced in {left} at the latest: {waiting.detail}"
                reason = Reason("on_partition", summary, have=left if waiting.until_ms else "")
                return self._make(slots, "waiting", summary, reasons=[reason], since_ms=since_ms)
            case "returning":
                summary = f"{count} lost with a node that is back; it has {left} to say more"
                reason = Reason("returning", summary, have=left)
                return self._make(slots, "waiting", summary, reasons=[reason], since_ms=since_ms)
            case "over":
                failures = self._failures(slots, _TROUBLE)
                attempts = self.group.reschedule.attempts
                summary = f"{count} given up: {_first(failures)}"
                limit = Reason(
                    "attempts", "reschedule attempts are used up", need="", have=str(attempts)
                )
                hint = f"cube logs {self._task_name(slots)}; correct the job and run it again"
                return self._make(
                    slots,
                    "failing",
                    summary,
                    reasons=[*failures, limit],
                    hints=[hint],
                    since_ms=since_ms,
                )
            case _:
                failures = self._failures(slots, _TROUBLE)
                backoff = Reason("backoff", f"tried again in {left}", have=left)
                return self._make(
                    slots,
                    "failing",
                    f"{count} failing, tried again in {left}: {_first(failures)}",
                    reasons=[*failures, backoff],
                    hints=[f"cube logs {self._task_name(slots)}"],
                    since_ms=since_ms,
                )

    def _braked(self) -> Iterator[Explanation]:
        """Slots whose node looks down, and is not declared so."""
        brake = brake_of(self.state.nodes)
        if brake is None:
            return
        held = {node.id: node for node in braked(self.state.nodes)}
        tasks = [
            task
            for number, slot in sorted(self.slots.items())
            if self._is_wanted(number)
            for task in slot.live
            if task.node_id in held
        ]
        if tasks:
            names = ", ".join(sorted({held[task.node_id].name for task in tasks}))
            yield self._make(
                [task.slot for task in tasks],
                "waiting",
                f"{_tasks(len(tasks))} on nodes that look down and are not declared so ({names})",
                reasons=[Reason("brake", brake)],
                since_ms=min(held[task.node_id].status_at_ms for task in tasks),
            )

    def _ending(self) -> Iterator[Explanation]:
        """Slots whose old task has not ended yet."""
        ending = [
            task
            for number, slot in sorted(self.slots.items())
            if self._is_wanted(number) and not slot.live
            for task in slot.stopping[:1]
        ]
        if ending:
            why = ", ".join(sorted({task.desired_reason or "stopped" for task in ending}))
            yield self._make(
                [task.slot for task in ending],
                "waiting",
                f"{_tasks(len(ending))} being stopped ({why}), then replaced",
                reasons=[Reason("stopping", f"{task.id} is {task.state.value}") for task in ending],
                since_ms=min(task.state_at_ms for task in ending),
            )

    # Slots with a task that does not serve

    def _not_serving(self) -> Iterator[Explanation]:
        alike: dict[tuple[str, str], list[Task]] = {}
        for number, slot in sorted(self.slots.items()):
            if not self._is_wanted(number) or slot.serves():
                continue
            for task in slot.live[:1]:
                alike.setdefault(self._trouble(task), []).append(task)
        for (kind, summary), tasks in alike.items():
            slots = [task.slot for task in tasks]
            reasons = [_of_task(task) for task in tasks[:FAILURES_MAX]]
            if kind == "failing":
                for task in tasks:
                    reasons.extend(_history(task))
            yield self._make(
                slots,
                kind,
                f"{_tasks(len(tasks))} {summary}",
                reasons=_distinct(reasons),
                hints=[f"cube logs {tasks[0].name}"] if kind == "failing" else [],
                since_ms=min(task.state_at_ms for task in tasks),
            )

    def _trouble(self, task: Task) -> tuple[str, str]:
        """(kind, what is said of tasks like this one)."""
        if task.state is TaskState.RUNNING:
            if task.health is Health.UNHEALTHY:
                return "failing", "running but unhealthy: its checks fail"
            return "waiting", "running, not healthy yet: its checks have not passed"
        if task.restarts or task.state is TaskState.PENDING:
            code = "" if task.exit_code is None else f", last exit code {task.exit_code}"
            return "failing", f"restarting{code}"
        node = self.state.nodes.get(task.node_id)
        where = task.node_id if node is None else node.name
        return "waiting", f"{task.state.value} on {where}"

    def _flapping(self) -> Iterator[Explanation]:
        """Slots whose task serves, for now."""
        for number, slot in sorted(self.slots.items()):
            if not self._is_wanted(number) or not slot.live:
                continue
            told = flaps(self.job, self.group, [*slot.ended, *slot.live], self.now_ms)
            if told is not None:
                task = slot.live[-1]
                yield self._make(
                    [number],
                    "flapping",
                    f"1 task {told}",
                    reasons=_distinct([*_history(task), *self._failures([number], _TROUBLE)]),
                    hints=[f"cube logs {task.name}"],
                    since_ms=task.started_at_ms,
                )

    def _held_back(self, work: JobWork) -> Iterator[Explanation]:
        """Tasks of an older version that are to be replaced, but not yet."""
        outdated = [
            task
            for number, slot in sorted(self.slots.items())
            if self._is_wanted(number)
            for task in slot.live
            if not up_to_date(self.job, task)
        ]
        if outdated and self.job.spec.type is not JobType.BATCH:
            next_ = {task_id for task_id, _ in work.stops}
            held = [task for task in outdated if task.id not in next_]
            if held:
                summary, hints = self._why_not_yet(len(held))
                yield self._make(
                    [task.slot for task in held],
                    "waiting",
                    summary,
                    reasons=[Reason("update", f"{t.id} is of version {t.version}") for t in held],
                    hints=hints,
                )

    def _why_not_yet(self, count: int) -> tuple[str, list[str]]:
        """What is said of tasks of an older version, and what would let them go on."""
        deployment = self.job.deployment
        older = f"{_tasks(count)} of an older version"
        name = "" if deployment is None else deployment_id(self.job.name, deployment.version)
        if deployment is not None and deployment.holds:
            said = f": {deployment.message}" if deployment.message else ""
            hints = [f"cube deployment fail {name}"]
            if deployment.status is DeploymentStatus.PAUSED:
                hints.insert(0, f"cube deployment resume {name}")
            return f"{older}, kept: {name} is {deployment.status.value}{said}", hints
        if self.job.is_gated(self.name):
            return (
                f"{older}, replaced once the {self.group.canaries} canaries are promoted",
                [f"cube deployment promote {name}"],
            )
        parallelism = self.group.update.parallelism
        return f"{older}, replaced {parallelism} at a time as the others come up", []

    # Facts

    def _is_wanted(self, number: int) -> bool:
        return self.job.spec.type is JobType.SYSTEM or number < self.group.count

    def _task_name(self, slots: Sequence[int]) -> str:
        return f"{self.job.name}.{self.name}.{slots[0] if slots else 0}"

    def _failures(self, slots: Sequence[int], states: frozenset[TaskState]) -> list[Reason]:
        """What the slots' newest ended tasks of these states ended of, newest first."""
        ended = [
            task
            for number in slots
            for task in self.slots.get(number, _NO_SLOT).ended
            if task.state in states and up_to_date(self.job, task)
        ]
        ended.sort(key=lambda task: (-task.finished_at_ms, task.slot, task.id))
        return _distinct([_of_task(task) for task in ended])[:FAILURES_MAX]

    def _since_ms(self, slots: Sequence[int]) -> int:
        """Since when these slots have been empty."""
        newest = self.job.versions[-1].created_at_ms
        last = [
            self.slots[number].ended[-1].finished_at_ms
            for number in slots
            if number in self.slots and self.slots[number].ended
        ]
        return max([newest, *last])


_NO_SLOT = Slot()


def _held(want: Want, held: Mapping[NodeId, Held], node_id: NodeId) -> list[Reason]:
    one = held.get(node_id)
    if one is None or not one.bars(want):
        return []
    return [Reason("held", f"its room is held for {one.name}, which preempted tasks there")]


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _first(reasons: Sequence[Reason]) -> str:
    return reasons[0].message if reasons else "see its log"


def _of_task(task: Task) -> Reason:
    """The task's own last word."""
    said = last_words(task)
    if task.oom_killed:
        said = f"out of memory: {said}"
    have = "" if task.exit_code is None else f"exit code {task.exit_code}"
    return Reason(task.reason or task.state.value, said, "", have)


def _history(task: Task) -> list[Reason]:
    """Earlier attempts of a task that restarts in place, newest first."""
    found = [
        Reason(entry.reason or entry.state.value, entry.message or entry.reason)
        for entry in reversed(task.history)
        if (entry.reason or entry.message) and entry.attempt < task.attempt
    ]
    return found[:FAILURES_MAX]


def _distinct(reasons: Sequence[Reason]) -> list[Reason]:
    return list(dict.fromkeys(reasons))


def _tally(explained: Sequence[NodeExplanation]) -> str:
    """`2 of 3 nodes: memory; 1 of 3 nodes: constraint`."""
    if not explained:
        return "there are no nodes"
    counted: dict[str, int] = {}
    for one in explained:
        for code in dict.fromkeys(reason.code for reason in one.reasons):
            counted[code] = counted.get(code, 0) + 1
    total = len(explained)
    most_first = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} of {total} nodes: {code}" for code, count in most_first)
