"""The node's own tasks: inputs in, instructions out. No clock, no driver, no socket.

Two truths meet here. The state says which tasks this node shall run (Wanted); the drivers say what
there is (Recovered, Inspect). Nothing is started or stopped before both have spoken, and silence of
either one changes nothing: a control plane that is away never touches a healthy task.
Source: dask worker_state_machine.py (the form), swarmkit agent/exec (one step of one task).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import msgspec

from cube.model.backoff import doubling_ms
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Observation, RunState
from cube.model.lifecycle import TaskState
from cube.worker import inputs as i
from cube.worker.adopt import adopt, compare, local_of, stray_of
from cube.worker.advance import advance
from cube.worker.answers import on_done, on_failed, on_probe, say_health
from cube.worker.endings import finish
from cube.worker.health import changed_checks
from cube.worker.instructions import Instruction, WakeAt
from cube.worker.launch import NodeIdentity
from cube.worker.local_task import LocalTask, Phase
from cube.worker.reports import Outbox
from cube.worker.settings import WorkerSettings
from cube.worker.step import Step


class _DriverRecord(msgspec.Struct):
    is_recovered: bool = False
    is_asked: bool = False  # a Recover is under way
    failures: int = 0
    due_ms: int = 0  # of the next Recover


class Worker:
    """Call step() with everything that happened; carry its instructions out; answer each one."""

    def __init__(
        self,
        settings: WorkerSettings,
        cluster_id: ClusterId,
        node_id: NodeId,
        advertise: str,
        drivers: Sequence[str],
        leased_from_ms: int | None = None,
    ) -> None:
        """`drivers`: names of those this node has. Their order is that of the first Recovers.
        `leased_from_ms`: the last of i.Leased that an earlier process of this node was given."""
        self._settings = settings
        node = NodeIdentity(cluster_id, node_id, "", advertise)
        self._context = Step(settings, node, leased_from_ms)
        self._drivers = {name: _DriverRecord() for name in drivers}
        self._tasks: dict[TaskId, LocalTask] = {}
        self._outbox = Outbox(settings)
        self._timers: list[tuple[int, TaskId]] = []
        self._touched: dict[TaskId, None] = {}
        self._index = -1  # of the newest complete Wanted, −1: none yet
        self._leader_now_ms = 0
        self._wake_at_ms: int | None = None

    def step(self, inputs: Iterable[i.Input], now_ms: int) -> list[Instruction]:
        """All inputs are taken up, in order, and everything whose time has come is done. `now_ms` is
        monotonic. The last instruction is a WakeAt when the next time to wake has changed."""
        context = self._context
        assert now_ms >= context.now_ms, "monotonic time went back"
        context.now_ms = now_ms
        if context.lease.boot_ms is None:
            context.lease.boot_ms = now_ms
        context.instructions = []
        if self._wake_at_ms is not None and now_ms >= self._wake_at_ms:
            self._wake_at_ms = None  # the alarm has rung
        for item in inputs:
            self._take(item)
        self._ask_drivers()
        self._pop_timers()
        while self._touched:
            touched, self._touched = self._touched, {}
            for task_id in touched:
                self._advance(task_id)
        report = self._outbox.collect(self._tasks, now_ms, context.token)
        if report is not None:
            context.instructions.append(report)
        self._set_alarm()
        return context.instructions

    @property
    def wants_lease(self) -> bool:
        """There is a task here that runs only while leaders acknowledge this node."""
        return any(
            local.group.is_leased and local.phase is not Phase.DONE
            for local in self._tasks.values()
        )

    @property
    def tasks(self) -> dict[TaskId, LocalTask]:
        """For tests and debugging. Not to be written to."""
        return self._tasks

    def _take(self, item: i.Input) -> None:
        match item:
            case i.Wanted():
                self._on_wanted(item)
            case i.Recovered():
                self._on_recovered(item)
            case i.Observed():
                self._on_observed(item)
            case i.InstructionDone():
                local = self._operated(item.token)
                if local is not None:
                    on_done(local, item.observation, item.digest, self._context)
            case i.InstructionFailed():
                self._on_instruction_failed(item)
            case i.ProbeResult():
                self._on_probe(item)
            case i.Reported():
                now_ms = self._context.now_ms
                self._outbox.on_reported(self._tasks, item.token, item.index, now_ms)
            case i.ReportFailed():
                self._outbox.on_failed(item.token, self._context.now_ms)
            case i.Leased():
                self._on_leased(item.sent_ms)

    def _on_leased(self, sent_ms: int) -> None:
        lease = self._context.lease
        is_first = lease.from_ms is None  # until now adopted tasks were counted from the boot
        lease.extend(sent_ms)
        for local in self._tasks.values():
            if local.group.is_leased and (is_first or local.phase is Phase.STARTING):
                self._touch(local.id)  # it may have waited for this

    # The state's word

    def _on_wanted(self, wanted: i.Wanted) -> None:
        if not wanted.complete or wanted.index < self._index:
            return
        self._index = self._outbox.state_index = wanted.index
        self._leader_now_ms = wanted.leader_now_ms
        node = self._context.node
        if wanted.node_name and wanted.node_name != node.name:
            self._context.node = msgspec.structs.replace(node, name=wanted.node_name)
        seen: set[TaskId] = set()
        for item in wanted.tasks:
            seen.add(item.task.id)
            local = self._tasks.get(item.task.id)
            if local is None:
                self._on_new(item)
            elif local.task is not item.task or local.group is not item.group:
                self._on_changed(local, item)
        for task_id, local in self._tasks.items():
            if task_id not in seen and local.task is not None:
                local.task = None
                self._touch(task_id)

    def _on_new(self, item: i.WantedTask) -> None:
        local = local_of(item)
        self._tasks[local.id] = local
        self._touch(local.id)
        driver = self._drivers.get(local.driver)
        is_new = item.task.state is TaskState.SCHEDULED
        if driver is None:
            # What ran under a driver that was since taken away is out of our hands.
            message = f"this node has no {local.driver} driver"
            if is_new and local.is_wanted:
                finish(local, TaskState.REJECTED, "no_driver", message)
            elif not item.task.ended:
                local.say(reason="no_driver", message=message)
        elif driver.is_recovered:
            adopt(local, (), self._leader_now_ms, self._context)
        elif is_new:
            local.due_ms = self._context.now_ms + self._settings.driver_patience_ms

    def _on_changed(self, local: LocalTask, item: i.WantedTask) -> None:
        local.task = item.task
        local.job_type = item.job_type
        local.uses = item.uses
        local.digest = item.digest
        if item.group is not None and item.group is not local.group:
            is_rechecked = item.group.checks != local.group.checks
            local.group = item.group
            local.has_template = True
            if is_rechecked and local.phase is Phase.RUNNING:
                now_ms = self._context.now_ms
                local.checks = changed_checks(local.checks, item.group, now_ms)
                say_health(local)
        self._touch(local.id)

    # The drivers' word

    def _ask_drivers(self) -> None:
        """Not before the state is known: what a driver says is then acted on while it is fresh."""
        if self._index < 0:
            return
        for name, driver in self._drivers.items():
            if not driver.is_asked and driver.due_ms <= self._context.now_ms:
                driver.is_asked = True
                self._context.give_recover(name)

    def _on_recovered(self, item: i.Recovered) -> None:
        name = self._context.recoveries.pop(item.token, None)
        if name is None:
            return
        driver = self._drivers[name]
        driver.is_asked = False
        driver.is_recovered = True
        driver.failures = 0
        driver.due_ms = self._context.now_ms + self._settings.resync_ms
        found: dict[TaskId, list[Observation]] = {}
        for seen in item.observations:
            if seen.state is not RunState.GONE:
                found.setdefault(seen.task_id, []).append(seen)
        for local in self._tasks.values():
            if local.driver != name:
                continue
            mine = found.pop(local.id, [])
            if local.phase is Phase.HELD:
                adopt(local, mine, self._leader_now_ms, self._context)
            else:
                compare(local, mine)
            self._touch(local.id)
        for task_id, seen_list in found.items():
            if task_id not in self._tasks:
                self._tasks[task_id] = stray_of(name, seen_list)
                self._touch(task_id)

    def _on_recover_failed(self, name: str, failure: i.InstructionFailed) -> None:
        driver = self._drivers[name]
        driver.is_asked = False
        driver.failures += 1
        driver.due_ms = self._context.now_ms + doubling_ms(
            driver.failures, self._settings.recover_retry_ms, self._settings.recover_retry_ms_max
        )
        for local in self._tasks.values():
            is_waiting = local.driver == name and local.phase is Phase.HELD and local.end is None
            if is_waiting and local.task is not None and not local.task.ended:
                local.say(reason=failure.code, message=f"waiting for {name}: {failure.message}")
                self._touch(local.id)

    def _on_observed(self, item: i.Observed) -> None:
        seen = item.observation
        local = self._tasks.get(seen.task_id)
        if local is None or local.attempt != seen.attempt or local.driver != item.driver:
            return
        if local.phase in (Phase.STARTING, Phase.RUNNING):
            # While it starts, too: a short command ends before its start has been answered, and
            # that hint comes once.
            local.is_hinted = True
        elif local.phase is Phase.WITHDRAWING and seen.state is not RunState.RUNNING:
            local.due_ms = None  # nobody is served any more
        self._touch(local.id)

    def _on_instruction_failed(self, failure: i.InstructionFailed) -> None:
        name = self._context.recoveries.pop(failure.token, None)
        if name is not None:
            self._on_recover_failed(name, failure)
            return
        local = self._operated(failure.token)
        if local is not None:
            on_failed(local, failure, self._context)

    def _operated(self, token: int) -> LocalTask | None:
        """The task that waited for this answer. None: answered already, or forgotten."""
        task_id = self._context.operations.pop(token, None)
        local = None if task_id is None else self._tasks.get(task_id)
        if local is None or local.operation != token:
            return None
        self._touch(local.id)
        return local

    def _on_probe(self, result: i.ProbeResult) -> None:
        task_id, name = self._context.probes.pop(result.token, (None, ""))
        local = None if task_id is None else self._tasks.get(task_id)
        check = None if local is None else local.checks.get(name)
        if local is None or check is None or check.token != result.token:
            return  # of an attempt, or a version of the check, that is no more
        on_probe(local, check, result, self._context)
        self._touch(local.id)

    # One task after the other

    def _touch(self, task_id: TaskId) -> None:
        self._touched[task_id] = None

    def _advance(self, task_id: TaskId) -> None:
        local = self._tasks.get(task_id)
        if local is None:
            return
        if local.phase is Phase.HELD:
            self._look_after_held(local)
        advance(local, self._context)
        if local.phase is Phase.DONE and local.task is None and not local.operation:
            del self._tasks[task_id]
            return
        self._outbox.mark(task_id)
        due_ms = local.next_due_ms(self._context.lease.due_ms(local))
        if due_ms is not None and (local.armed_ms is None or due_ms < local.armed_ms):
            local.armed_ms = due_ms
            heapq.heappush(self._timers, (due_ms, task_id))

    def _look_after_held(self, local: LocalTask) -> None:
        """A task that its driver has not spoken of: a new one is not kept waiting for ever, and one
        that nobody asks about any more is forgotten (if it is found later, it is a stray)."""
        if local.task is None:
            local.phase = Phase.DONE
            local.is_touched = False
        elif local.due_ms is not None and self._context.now_ms >= local.due_ms:
            local.due_ms = None
            local.end = TaskState.REJECTED if local.is_wanted else TaskState.COMPLETED
            local.say(local.end, reason="engine_down", message=f"{local.driver} does not answer")

    def _pop_timers(self) -> None:
        now_ms = self._context.now_ms
        while self._timers and self._timers[0][0] <= now_ms:
            due_ms, task_id = heapq.heappop(self._timers)
            local = self._tasks.get(task_id)
            if local is not None and local.armed_ms == due_ms:
                local.armed_ms = None
                self._touch(task_id)

    def _set_alarm(self) -> None:
        now_ms = self._context.now_ms
        due = [self._timers[0][0]] if self._timers else []
        if self._index >= 0:
            due += [driver.due_ms for driver in self._drivers.values() if not driver.is_asked]
        report_due_ms = self._outbox.next_due_ms(self._tasks, now_ms)
        if report_due_ms is not None:
            due.append(report_due_ms)
        wake_at_ms = min(due, default=None)
        if wake_at_ms is not None and wake_at_ms != self._wake_at_ms:
            self._context.instructions.append(WakeAt(wake_at_ms))
        self._wake_at_ms = wake_at_ms
