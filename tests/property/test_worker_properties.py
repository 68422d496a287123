"""Whatever happens in whatever order, the worker keeps its promises.

The world here is a state machine (the real one), a driver that keeps the driver contract, and an
adversary that decides when each is heard: answers come late, doubled, or as failures that did happen;
the agent dies in between; the leader changes its mind.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cube.model import commands as c
from cube.model.cluster import Task
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Observation, RunState
from cube.model.lifecycle import Desired, NodeStatus, TaskState
from cube.model.spec import (
    CheckSpec,
    CheckType,
    DriverName,
    JobType,
    OnPartition,
    RestartCondition,
    RestartPolicy,
)
from cube.services.worker_loop import wanted_of
from cube.worker import inputs as i
from cube.worker import instructions as do
from cube.worker.local_task import Phase
from cube.worker.machine import Worker
from cube.worker.settings import WorkerSettings
from tests import builders

NODE = NodeId("id-a")
TASKS_MAX = 4
LOST_AFTER_MS, STOP_TIMEOUT_MS = 3_000, 1_000


@dataclass
class Host:
    """A driver's host: at most one attempt per task at a time, as the contract has it."""

    attempts: dict[TaskId, Observation] = field(default_factory=dict)
    started: set[tuple[TaskId, int]] = field(default_factory=set)

    def start(self, task_id: TaskId, attempt: int) -> Observation:
        present = self.attempts.get(task_id)
        if present is not None and present.attempt == attempt:
            return present
        assert present is None or present.state is RunState.EXITED, "an attempt still runs"
        assert (task_id, attempt) not in self.started, "started a second time"
        self.started.add((task_id, attempt))
        seen = Observation(
            task_id=task_id,
            attempt=attempt,
            state=RunState.RUNNING,
            handle=f"{task_id}/{attempt}",
        )
        self.attempts[task_id] = seen
        return seen

    def end(self, task_id: TaskId, exit_code: int) -> None:
        seen = self.attempts[task_id]
        if seen.state is RunState.RUNNING:
            self.attempts[task_id] = msgspec.structs.replace(
                seen, state=RunState.EXITED, exit_code=exit_code
            )

    def inspect(self, task_id: TaskId, attempt: int) -> Observation:
        seen = self.attempts.get(task_id)
        if seen is None or seen.attempt != attempt:
            return Observation(task_id=task_id, attempt=attempt, state=RunState.GONE)
        return seen


class World:
    def __init__(self) -> None:
        self.leader = builders.Machine("a", "b")
        self.host = Host()
        self.now_ms = 10_000
        self.leased_from_ms: int | None = None  # as in the lease file
        self.jobs = 0
        self.tag = 0  # what every image's tag means now
        self.told: dict[TaskId, Task] = {}  # what the worker was last told
        self.is_told = False  # of the newest state
        self.old_answers: list[i.Input]
        self.boot()

    def boot(self) -> None:
        self.worker = Worker(
            WorkerSettings(),
            ClusterId("cluster"),
            NODE,
            "host-a",
            ["fake", "process"],
            self.leased_from_ms,
        )
        self.under_way: list[do.Instruction] = []
        self.old_answers = []
        self.told = {}
        self.is_told = self.is_any_told = False
        self.made_at = (
            -1
        )  # index of the state that the report under way was made in full knowledge of
        self.wake_at_ms: int | None = None

    # What the adversary does

    def step(self, *inputs: i.Input) -> None:
        for instruction in self.worker.step(inputs, self.now_ms):
            self.check(instruction)
            if isinstance(instruction, do.WakeAt):
                self.wake_at_ms = instruction.at_ms
            elif not isinstance(instruction, do.Cancel):
                self.under_way.append(instruction)
        self.check_stopped()

    def check(self, instruction: do.Instruction) -> None:
        match instruction:
            case do.Start() | do.Prepare():
                task = self.told.get(instruction.launch.task_id)
                assert task is not None, "never told of it"
                assert task.desired is Desired.RUN, "it is not wanted"
                if isinstance(instruction, do.Start):
                    self.check_lease(task)
                    self.check_image(instruction)
            case do.Stop() if self.lease_end_ms(self.told.get(instruction.task_id)) is not None:
                end_ms = self.lease_end_ms(self.told[instruction.task_id]) or 0
                kill_ms = self.now_ms + instruction.timeout_ms
                assert kill_ms <= max(self.now_ms, end_ms + STOP_TIMEOUT_MS), "killed too late"
            case do.Report(_, reports):
                assert reports
                assert len({report.task_id for report in reports}) == len(reports)
                self.made_at = self.leader.state.index if self.is_told else -1
            case _:
                pass
        if isinstance(instruction, do.DriverInstruction):
            mine = [
                other
                for other in self.under_way
                if isinstance(other, do.DriverInstruction) and id_of(other) == id_of(instruction)
            ]
            assert not mine, "two things are done to one task at a time"
            assert self.is_any_told, "before the state was known"

    def lease_end_ms(self, task: Task | None) -> int | None:
        group = None if task is None else self.leader.state.group_of(task)
        if group is None or not group.is_leased or self.leased_from_ms is None:
            return None
        return self.leased_from_ms + group.lost_after_ms

    def check_lease(self, task: Task) -> None:
        group = self.leader.state.group_of(task)
        if group is not None and group.is_leased:
            assert self.now_ms < (self.lease_end_ms(task) or 0), "started without a lease"

    def check_image(self, start: do.Start) -> None:
        """It starts with what its job's version runs everywhere, and that is agreed on."""
        task = self.leader.state.tasks.get(start.launch.task_id)
        told = self.told.get(start.launch.task_id)
        is_unheard = told is not None and told.state is TaskState.LOST
        if task is not None and start.launch.image and not is_unheard:
            assert start.launch.image_digest, "nobody knows yet what the others will run"
            assert start.launch.image_digest == self.leader.state.digest_for(task)

    def check_stopped(self) -> None:
        """Whatever needs a lease and has none is being ended, or something is under way for it."""
        busy = {id_of(one) for one in self.under_way if isinstance(one, do.DriverInstruction)}
        for task in self.told.values():
            end_ms = self.lease_end_ms(task)
            local = self.worker.tasks.get(task.id)
            if local is None or end_ms is None or self.now_ms < end_ms or local.due_ms is not None:
                continue
            assert local.phase is not Phase.RUNNING or task.id in busy, "it runs without a lease"

    def lease(self, age_ms: int) -> None:
        """A heartbeat of a while ago is acknowledged now, and the state of now is known."""
        self.tell()
        sent_ms = self.now_ms - age_ms
        self.leased_from_ms = max(sent_ms, self.leased_from_ms or sent_ms)
        self.step(i.Leased(sent_ms))

    def place(self, restart: RestartPolicy, job_type: JobType) -> None:
        if len(self.leader.state.tasks_of_node(NODE)) >= TASKS_MAX:
            return
        self.jobs += 1
        name = f"job{self.jobs}"
        check = CheckSpec("exec", CheckType.EXEC, command=("x",))
        group = builders.group(
            driver=DriverName.FAKE,
            restart=restart,
            shutdown_delay_ms=2000,
            stop_timeout_ms=STOP_TIMEOUT_MS,
            on_partition=OnPartition.KEEP if self.jobs % 3 else OnPartition.STOP,
            lost_after_ms=LOST_AFTER_MS,
            checks=(check,) if self.jobs % 2 else (),
            image="app:1" if self.jobs % 4 < 2 else "",
            count=2,
        )
        self.leader.submit(builders.job(name, {"g": group}, type=job_type))
        self.leader.place(name, "g", (0, "a", ()), (1, "b", ()))
        self.is_told = False

    def lead(self, what: str, pick: int) -> None:
        tasks = sorted(self.leader.state.tasks.values(), key=lambda task: task.id)
        self.leader.now_ms += 10
        match what:
            case "down":
                self.leader.do(c.SetNodeStatus(1, NODE, NodeStatus.DOWN))
            case "ready":
                self.leader.do(c.SetNodeStatus(1, NODE, NodeStatus.READY))
            case "stop" | "scale_down" if tasks:
                task = tasks[pick % len(tasks)]
                self.leader.do(c.ApplyPlan(1, "", stops=(c.PlannedStop(task.id, what),)))
            case "tag":
                self.tag += 1
            case "other" if tasks:  # another node was faster
                task = tasks[pick % len(tasks)]
                if task.node_id != NODE and not task.ended:
                    self.leader.report(task.id, "preparing", image_digest=digest(self.tag))
            case "delete" if tasks:
                self.leader.do(c.DeleteJob(tasks[pick % len(tasks)].job))
            case "reap" if tasks:
                self.leader.do(c.ApplyPlan(1, "", reaps=tuple(task.id for task in tasks)))
        self.is_told = False

    def tell(self, *, complete: bool = True) -> None:
        state = self.leader.state
        tasks = state.tasks_of_node(NODE)
        if complete:
            self.told = {task.id: task for task in tasks}
            self.is_told = self.is_any_told = True
        self.step(wanted_of(state, tasks, NODE, complete))

    def answer(self, pick: int, how: str) -> None:
        if not self.under_way:
            return
        instruction = self.under_way.pop(pick % len(self.under_way))
        answer = self.carry_out(instruction, how)
        self.old_answers.append(answer)
        self.step(answer)

    def carry_out(self, instruction: do.Instruction, how: str) -> i.Input:
        assert not isinstance(instruction, do.WakeAt | do.Cancel)
        token = instruction.token
        if isinstance(instruction, do.Report):
            if how in ("transient", "permanent"):
                return i.ReportFailed(token, how)
            self.commit(instruction)
            return (
                i.ReportFailed(token, how)
                if how == "unknown"
                else i.Reported(token, self.leader.state.index)
            )
        if isinstance(instruction, do.Probe):
            return i.ProbeResult(token, how == "done")
        if how in ("transient", "permanent"):
            return i.InstructionFailed(token, "some_code", how, how == "transient")
        if isinstance(instruction, do.Recover):
            done: i.Input = i.Recovered(
                token,
                tuple(self.host.attempts.values()) if instruction.driver == "fake" else (),
            )
        else:
            done = self.drive(instruction)
        if how == "unknown":
            return i.InstructionFailed(token, "engine_down", how, True)
        return done

    def drive(self, instruction: do.DriverInstruction) -> i.Input:
        token = instruction.token
        match instruction:
            case do.Prepare(_, _, launch):
                found = digest(self.tag) if launch.image else ""
                return i.InstructionDone(token, digest=launch.image_digest or found)
            case do.Start(_, _, launch):
                return i.InstructionDone(token, self.host.start(launch.task_id, launch.attempt))
            case do.Inspect(_, _, task_id, attempt):
                return i.InstructionDone(token, self.host.inspect(task_id, attempt))
            case do.Stop() | do.Kill():
                seen = self.host.inspect(instruction.task_id, instruction.attempt)
                if seen.state is RunState.RUNNING:
                    self.host.end(instruction.task_id, 143)
                seen = self.host.inspect(instruction.task_id, instruction.attempt)
                return i.InstructionDone(token, seen)
            case do.Remove(_, _, task_id):
                present = self.host.attempts.get(task_id)
                if present is not None and present.state is RunState.RUNNING:
                    return i.InstructionFailed(token, "still_running", "", True)
                self.host.attempts.pop(task_id, None)
                return i.InstructionDone(token)

    def commit(self, report: do.Report) -> None:
        self.leader.now_ms += 10
        in_knowledge = self.made_at == self.leader.state.index
        for item in report.reports:
            before = self.leader.state.tasks.get(item.task_id)
            self.leader.do(c.ReportTasks(NODE, (item,)))
            after = self.leader.state.tasks.get(item.task_id)
            if in_knowledge and before is not None and after is not None:
                shown = (after.state, after.attempt) == (item.state, item.attempt)
                assert shown or before.released, f"{item} is no move from {before}"
        self.is_told = False

    def end_one(self, pick: int, exit_code: int, hint: str) -> None:
        ids = sorted(self.host.attempts)
        if not ids:
            return
        task_id = ids[pick % len(ids)]
        self.host.end(task_id, exit_code)
        for _ in range({"none": 0, "one": 1, "two": 2}[hint]):
            self.step(i.Observed("fake", self.host.attempts[task_id]))

    def pass_ms(self, ms: int) -> None:
        self.now_ms += ms
        self.leader.now_ms += ms
        self.step()

    def settle(self) -> None:
        """Everybody does what they should, and nothing more happens, for some minutes."""
        self.lead("ready", 0)
        for _ in range(400):
            if not self.is_told:
                self.tell()
            if self.under_way:
                self.answer(0, "done")
                continue
            self.lease(0)
            wake_at_ms = self.wake_at_ms or 0
            self.pass_ms(max(1, min(wake_at_ms - self.now_ms, LOST_AFTER_MS // 2)))

    def check_settled(self) -> None:
        state = self.leader.state
        tasks = {task.id: task for task in state.tasks_of_node(NODE)}
        for task in tasks.values():
            seen = self.host.attempts.get(task.id)
            if task.desired is Desired.RUN and not task.ended:
                assert task.state is TaskState.RUNNING, task
                assert seen is not None
                assert seen.state is RunState.RUNNING
                assert (seen.attempt, seen.handle) == (task.attempt, task.handle)
            else:
                assert task.ended, task
                assert task.released, task
                assert seen is None
        assert not self.host.attempts.keys() - tasks.keys(), "something of no task is left"
        assert self.worker.tasks.keys() == tasks.keys()


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def id_of(instruction: do.DriverInstruction) -> TaskId:
    if isinstance(instruction, do.Prepare | do.Start):
        return instruction.launch.task_id
    return instruction.task_id


HOW = st.sampled_from(["done", "done", "done", "transient", "permanent", "unknown"])
PICK = st.integers(0, 7)
RESTARTS = st.builds(
    RestartPolicy,
    policy=st.sampled_from(list(RestartCondition)),
    attempts=st.integers(0, 3),
    delay_ms=st.just(1000),
)
ACTIONS = st.one_of(
    st.tuples(st.just("place"), RESTARTS, st.sampled_from([JobType.SERVICE, JobType.BATCH])),
    st.tuples(
        st.just("lead"),
        st.sampled_from(["down", "ready", "stop", "scale_down", "delete", "reap", "tag", "other"]),
        PICK,
    ),
    st.tuples(st.just("tell"), st.booleans()),
    st.tuples(st.just("answer"), PICK, HOW),
    st.tuples(st.just("answer"), PICK, st.just("done")),
    st.tuples(st.just("answer"), st.just(0), st.just("done")),
    st.tuples(
        st.just("end"), PICK, st.sampled_from([0, 1, 137]), st.sampled_from(["none", "one", "two"])
    ),
    st.tuples(st.just("pass"), st.sampled_from([1, 20, 500, 2_000, 30_000])),
    st.tuples(st.just("lease"), st.sampled_from([0, 0, 900, 5_000])),
    st.tuples(st.just("boot")),
    st.tuples(st.just("again"), PICK),
    st.tuples(st.just("calm")),
)


def act(world: World, action: tuple) -> None:  # type: ignore[type-arg]
    match action:
        case ("place", restart, job_type):
            world.place(restart, job_type)
        case ("lead", what, pick):
            world.lead(what, pick)
        case ("tell", complete):
            world.tell(complete=complete)
        case ("answer", pick, how):
            world.answer(pick, how)
        case ("end", pick, exit_code, hint):
            world.end_one(pick, exit_code, hint)
        case ("pass", ms):
            world.pass_ms(ms)
        case ("lease", age_ms):
            world.lease(age_ms)
        case ("boot",):
            world.boot()
        case ("again", pick) if world.old_answers:
            world.step(world.old_answers[pick % len(world.old_answers)])
        case ("calm",):
            world.lease(0)
            for _ in range(30):
                if not world.is_told:
                    world.tell()
                if world.under_way:
                    world.answer(0, "done")
                else:
                    world.pass_ms(20)
        case _:
            pass


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTIONS, min_size=10, max_size=120))
def test_promises_hold_in_any_order_and_all_settles(actions: list) -> None:  # type: ignore[type-arg]
    world = World()
    for action in actions:
        act(world, action)
    world.settle()
    world.check_settled()


def random_action(dice: random.Random) -> tuple:  # type: ignore[type-arg]
    pick = dice.randrange(8)
    kind = dice.choice(
        ["place", "lead", "tell", "tell", "end", "pass", "again", "boot", "lease", "lease"]
        + ["answer"] * 12
    )
    match kind:
        case "place":
            restart = RestartPolicy(dice.choice(list(RestartCondition)), dice.randrange(4))
            return kind, restart, dice.choice([JobType.SERVICE, JobType.BATCH])
        case "lead":
            words = ["down", "ready", "ready", "stop", "scale_down", "delete", "reap", "reap"]
            words += ["tag", "other", "other"]
            return kind, dice.choice(words), pick
        case "tell":
            return kind, dice.random() < 0.9
        case "answer":
            how = ["done"] * 8 + ["transient", "permanent", "unknown"]
            return kind, dice.choice([0, pick]), dice.choice(how)
        case "end":
            return kind, pick, dice.choice([0, 1, 137]), dice.choice(["none", "one", "two"])
        case "pass":
            return kind, dice.choice([1, 20, 500, 2_000, 30_000])
        case "lease":
            return kind, dice.choice([0, 0, 900, 5_000])
        case "again":
            return kind, pick
        case _:
            pass
    return ("boot",) if dice.random() < 0.2 else ("calm",)


@pytest.mark.parametrize("seed", range(4))
def test_promises_hold_over_long_lives(seed: int) -> None:
    """Longer than hypothesis likes them. A failure names its seed; nothing is shrunk."""
    for number in range(60):
        dice = random.Random(f"{seed}/{number}")
        world = World()
        for _ in range(dice.randrange(20, 300)):
            act(world, random_action(dice))
        world.settle()
        world.check_settled()
