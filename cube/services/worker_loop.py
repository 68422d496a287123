"""The shell around cube.worker: state and drivers' answers in, instructions carried out."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Protocol

from cube.model.cluster import ClusterState, Task
from cube.model.commands import ReportTasks
from cube.model.errors import DriverFailed, OutcomeUnknown, Unavailable
from cube.model.ids import NodeId
from cube.model.launch import Observation
from cube.model.spec import JobType
from cube.model.spec import Protocol as PortProtocol
from cube.ports.clock import Clock
from cube.ports.driver import Driver
from cube.ports.prober import Prober
from cube.services.checks import run_check
from cube.services.stored_values import StoredValues
from cube.worker import inputs as i
from cube.worker import instructions as do
from cube.worker.machine import Worker

HINTS_MAX = 4_096  # inputs waiting, above which hints are dropped: a resync makes up for them
INPUTS_PER_STEP_MAX = 512  # a burst must not hold the loop up
INPUTS_KEPT = 1_000  # for debugging: the last that the machine was given

# Calls under way per driver. An engine gets slower, not faster, above 4 to 8 at a time
# (performance.md); stops mostly wait for the workload, so they need room not to queue.
_SLOTS: dict[type[do.DriverInstruction], int] = {
    do.Prepare: 4,
    do.Start: 8,
    do.Inspect: 8,
    do.Stop: 64,
    do.Kill: 64,
    do.Remove: 8,
}

PortFree = Callable[[str, int, PortProtocol], bool]

_log = logging.getLogger(__name__)


class States(Protocol):
    """Where the state comes from: cube.services.state_feed.StateFeed."""

    @property
    def state(self) -> ClusterState: ...

    async def changed(self, after_index: int) -> ClusterState: ...


class WorkerLoop:
    """Owner of the worker. Each instruction runs in a task of its own, which ends by handing its
    answer back; nothing but the owner touches the machine."""

    def __init__(
        self,
        worker: Worker,
        node_id: NodeId,
        drivers: Mapping[str, Driver],
        prober: Prober,
        clock: Clock,
        states: States,
        is_caught_up: Callable[[], bool],
        propose: Callable[[ReportTasks], Awaitable[None]],
        port_free: PortFree,
        values: StoredValues,
    ) -> None:
        """`is_caught_up`: this replica has applied all that was committed when this process
        started; once true, it stays so, and on_caught_up() follows. `propose` comes back when the
        reports are applied here, and raises Unavailable or OutcomeUnknown. `port_free`: may be bound on
        this address now. `values`: the machine never sees a secret; here it becomes part of what a
        driver is told."""
        self._worker = worker
        self._node_id = node_id
        self._drivers = drivers
        self._prober = prober
        self._clock = clock
        self._states = states
        self._is_caught_up = is_caught_up
        self._propose = propose
        self._port_free = port_free
        self._values = values
        # Called when a first task needs a lease: on_leased() should follow soon.
        self.on_lease_wanted: Callable[[], None] = lambda: None
        self.wants_lease = False
        self._lease: tuple[int, int] | None = None  # (sent, index) that waits for its state
        self._told: tuple[list[Task], bool] | None = None
        # Bounded by what can be in it: one answer for each instruction under way (one per task, one
        # per check), one view of the state, and HINTS_MAX hints.
        self._inputs: asyncio.Queue[i.Input] = asyncio.Queue()
        self._newest: i.Wanted | None = None  # waiting in the queue, by then perhaps replaced
        self._wake_at_ms: int | None = None
        self._running: dict[int, asyncio.Task[None]] = {}
        self._slots: dict[tuple[str, type], asyncio.Semaphore] = {}
        self._opened: set[str] = set()
        self._opening: dict[str, asyncio.Lock] = {}
        self._recovery_codes: dict[str, str] = {}  # of the last Recover by driver; "": it worked
        self._recovered_once: set[str] = set()
        self._hints_dropped = 0
        self.recent: deque[tuple[int, list[i.Input]]] = deque(maxlen=INPUTS_KEPT)

    async def open(self) -> None:
        """The drivers have been opened, as far as they could be; run() tries the rest again. Before
        it, nothing can be asked of them: no facts, no logs. May run beside run(), which waits for no
        driver but the one that it asks."""
        await asyncio.gather(*(self._try_to_open(name) for name in sorted(self._drivers)))

    async def _try_to_open(self, name: str) -> None:
        try:
            await self._open(name)
        except DriverFailed as failure:
            _log.warning("open_failed driver=%s code=%s %s", name, failure.code, failure.message)

    async def _open(self, name: str) -> None:
        async with self._opening.setdefault(name, asyncio.Lock()):
            if name not in self._opened:
                await self._drivers[name].open(lambda seen: self._on_change(name, seen))
                self._opened.add(name)

    async def run(self) -> None:
        """Works until cancelled. What was started on the host goes on."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                _ = self._spawn(self._watch())
                while True:
                    inputs = await self._next_inputs()
                    now_ms = self._clock.monotonic_ms()
                    if self._wake_at_ms is not None and now_ms >= self._wake_at_ms:
                        self._wake_at_ms = None
                    self.recent.append((now_ms, inputs))
                    for instruction in self._worker.step(inputs, now_ms):
                        self._carry_out(instruction)
                    self._look_at_lease()
        finally:
            for name in sorted(self._opened):
                await self._drivers[name].close()

    async def _next_inputs(self) -> list[i.Input]:
        """What has come in, as soon as there is something; nothing when it is time to wake."""
        inputs: list[i.Input] = []
        wait_s: float | None = None
        if self._wake_at_ms is not None:
            wait_s = max(0, self._wake_at_ms - self._clock.monotonic_ms()) / 1000
        if wait_s != 0:
            try:
                async with asyncio.timeout(wait_s):
                    inputs.append(await self._inputs.get())
            except TimeoutError:
                return []
        else:
            await asyncio.sleep(0)  # whatever the alarm says, the others have their turn
        while not self._inputs.empty() and len(inputs) < INPUTS_PER_STEP_MAX:
            inputs.append(self._inputs.get_nowait())
        return [self._newest_of(item) for item in inputs]

    def _newest_of(self, item: i.Input) -> i.Input:
        if isinstance(item, i.Wanted) and self._newest is not None:
            item, self._newest = self._newest, None
        return item

    # The state

    async def _watch(self) -> None:
        """The machine is told of this node's tasks whenever they change."""
        while True:
            state = self._states.state
            self._tell(state)
            await self._states.changed(state.index)

    def on_caught_up(self) -> None:
        """`is_caught_up` has become true, which need not have changed the state."""
        self._tell(self._states.state)

    def _tell(self, state: ClusterState) -> None:
        """The machine knows, or will before anything that is put into its queue from now on, what
        `state` has of this node, and whether that is to be relied on."""
        is_caught_up = self._is_caught_up()
        tasks = state.tasks_of_node(self._node_id)
        told = self._told
        if told is None or is_caught_up != told[1] or not _are_same(tasks, told[0]):
            self._told = (tasks, is_caught_up)
            is_waiting = self._newest is not None
            self._newest = wanted_of(state, tasks, self._node_id, is_caught_up)
            if not is_waiting:
                self._inputs.put_nowait(self._newest)
        lease = self._lease
        if lease is not None and state.index >= lease[1]:
            self._lease = None
            self._inputs.put_nowait(i.Leased(lease[0]))

    # Leases

    def on_leased(self, sent_ms: int, index: int) -> None:
        """A leader has acknowledged a heartbeat that was sent at `sent_ms` (monotonic). It counts once
        the machine knows the state of `index`, in which the leader had seen it."""
        self._lease = (sent_ms, index)
        self._tell(self._states.state)

    def _look_at_lease(self) -> None:
        wanted, self.wants_lease = self.wants_lease, self._worker.wants_lease
        if self.wants_lease and not wanted:
            self.on_lease_wanted()

    # Instructions

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self._group.create_task(work)  # the group keeps the reference, and its failure

    def _carry_out(self, instruction: do.Instruction) -> None:
        _log.debug("instruction %s", instruction.describe())
        match instruction:
            case do.WakeAt(at_ms):
                self._wake_at_ms = at_ms
            case do.Cancel(of_token):
                task = self._running.get(of_token)
                if task is not None:
                    task.cancel()
            case do.Recover():
                _ = self._spawn(self._recover(instruction))
            case do.Probe():
                _ = self._spawn(self._probe(instruction))
            case do.Report():
                _ = self._spawn(self._report(instruction))
            case do.Prepare(token):
                task = self._spawn(self._drive(instruction))
                self._running[token] = task
                task.add_done_callback(functools.partial(self._on_prepared, token))
            case _:
                _ = self._spawn(self._drive(instruction))

    def _on_prepared(self, token: int, done: asyncio.Task[None]) -> None:
        del self._running[token]
        if done.cancelled():
            self._inputs.put_nowait(
                i.InstructionFailed(token, i.CANCELLED, "cancelled", transient=True)
            )

    async def _recover(self, instruction: do.Recover) -> None:
        name = instruction.driver
        try:
            await self._open(name)
            found = await self._drivers[name].recover()
        except DriverFailed as failure:
            self._note_recovery(name, failure)
            self._inputs.put_nowait(_failed(instruction.token, failure))
            return
        if name not in self._recovered_once:
            _log.info("recovered driver=%s found=%d", name, len(found))
        self._note_recovery(name, None)
        self._inputs.put_nowait(i.Recovered(instruction.token, tuple(found)))

    def _note_recovery(self, name: str, failure: DriverFailed | None) -> None:
        """Each change is logged, not each retry. An engine that was never there is nothing unusual:
        drivers are tried where they might work."""
        is_first = name not in self._recovery_codes
        before = self._recovery_codes.get(name, "")
        code = "" if failure is None else failure.code
        self._recovery_codes[name] = code
        if failure is None:
            if before:
                _log.info("recover_restored driver=%s", name)
            self._recovered_once.add(name)
        elif is_first or code != before:
            level = logging.WARNING if name in self._recovered_once else logging.INFO
            _log.log(level, "recover_failed driver=%s code=%s %s", name, code, failure.message)

    def _on_change(self, driver: str, seen: Observation) -> None:
        if self._inputs.qsize() < HINTS_MAX:
            self._inputs.put_nowait(i.Observed(driver, seen))
        else:
            self._hints_dropped += 1
            _log.warning("hint_dropped driver=%s total=%d", driver, self._hints_dropped)

    async def _drive(self, instruction: do.DriverInstruction) -> None:
        kind = type(instruction)
        slots = self._slots.setdefault((instruction.driver, kind), asyncio.Semaphore(_SLOTS[kind]))
        answer: i.Input
        try:
            async with slots:
                seen = await self._call(instruction)
        except DriverFailed as failure:
            _log.warning(
                "instruction_failed what=%r code=%s transient=%s %s",
                instruction.describe(),
                failure.code,
                failure.transient,
                failure.message,
            )
            answer = _failed(instruction.token, failure)
        else:
            if isinstance(seen, str):
                answer = i.InstructionDone(instruction.token, digest=seen)
            else:
                answer = i.InstructionDone(instruction.token, seen)
        self._inputs.put_nowait(answer)

    async def _call(self, instruction: do.DriverInstruction) -> Observation | str | None:
        driver = self._drivers[instruction.driver]
        match instruction:
            case do.Prepare():
                return await driver.prepare(self._values.with_login(instruction.launch))
            case do.Start():
                if instruction.test_ports:
                    self._test_ports(instruction)
                return await driver.start(self._values.complete(instruction.launch))
            case do.Inspect():
                return await driver.inspect(instruction.task_id, instruction.attempt)
            case do.Stop(_, _, task_id, attempt, stop_signal, timeout_ms):
                return await driver.stop(task_id, attempt, stop_signal, timeout_ms)
            case do.Kill():
                return await driver.stop(instruction.task_id, instruction.attempt, "SIGKILL", 0)
            case do.Remove():
                await driver.remove(instruction.task_id, keep_logs=instruction.keep_logs)
                return None

    def _test_ports(self, instruction: do.Start) -> None:
        for port in instruction.launch.ports:
            what = f"{port.protocol} port {port.host} of {port.address}"
            try:
                is_free = self._port_free(port.address, port.host, port.protocol)
            except OSError as error:
                raise DriverFailed("port_taken", f"{what}: {error}", transient=False) from error
            if not is_free:
                raise DriverFailed("port_taken", f"{what} is in use", transient=False)

    async def _probe(self, probe: do.Probe) -> None:
        self._inputs.put_nowait(await run_check(probe, self._drivers[probe.driver], self._prober))

    async def _report(self, report: do.Report) -> None:
        for item in report.reports:
            _log.info(
                "task_state task=%s attempt=%d state=%s health=%s reason=%s released=%s message=%r",
                item.task_id,
                item.attempt,
                item.state,
                item.health,
                item.reason,
                item.released,
                item.message,
            )
        try:
            await self._propose(ReportTasks(self._node_id, report.reports))
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("report_failed reports=%d %s", len(report.reports), error)
            self._inputs.put_nowait(i.ReportFailed(report.token, str(error)))
            return
        self._inputs.put_nowait(i.Reported(report.token, self._states.state.index))


def wanted_of(
    state: ClusterState, tasks: list[Task], node_id: NodeId, is_caught_up: bool
) -> i.Wanted:
    """What the machine is to know of the state."""
    node = state.nodes.get(node_id)
    return i.Wanted(
        tasks=tuple(_wanted_task(state, task) for task in tasks),
        index=state.index,
        leader_now_ms=state.now_ms,
        complete=is_caught_up,
        node_name="" if node is None else node.name,
    )


def _wanted_task(state: ClusterState, task: Task) -> i.WantedTask:
    job = state.jobs.get(task.job_id)
    job_type = JobType.SERVICE if job is None else job.spec.type
    uses, digest = state.uses_of(task), state.digest_for(task)
    return i.WantedTask(task, state.group_of(task), job_type, uses, digest)


def _are_same(tasks: list[Task], others: list[Task]) -> bool:
    # By identity: an unchanged task is the same object in the next state.
    return len(tasks) == len(others) and all(
        task is other for task, other in zip(tasks, others, strict=True)
    )


def _failed(token: int, failure: DriverFailed) -> i.InstructionFailed:
    return i.InstructionFailed(token, failure.code, failure.message, failure.transient)
