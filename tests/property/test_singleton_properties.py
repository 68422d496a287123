"""Whatever is cut, dies, returns or leads when: never two tasks of an at_most_one group at once.

Three nodes in virtual time: the real state machine, scheduler, node liveness and workers. Each node has
a clock of its own rate, as far apart as singleton.py covers. Hosts end what they run as late as they
may: a stop takes all of its timeout, and of a dead agent's tasks the supervisor sees to the lease.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import LaunchLease, Observation, RunState
from cube.model.lifecycle import NodeStatus, TaskState
from cube.model.spec import DriverName, RestartPolicy
from cube.scheduler import singleton
from cube.scheduler.liveness import Liveness
from cube.scheduler.plan import Scheduler
from cube.services.worker_loop import wanted_of
from cube.worker import inputs as i
from cube.worker import instructions as do
from cube.worker.machine import Worker
from cube.worker.settings import WorkerSettings
from tests import builders

NAMES = ("a", "b", "c")
TICK_MS = 250
STOP_TIMEOUT_MS = 3_000
# The slowest and the fastest clock that CLOCK_DRIFT_PER_MILLE covers together.
SLOW, FAST = 1.0, 1.0 + singleton.CLOCK_DRIFT_PER_MILLE / 1000


@dataclass
class Running:
    attempt: int
    fence: int
    lease: LaunchLease
    ends_at_ms: int | None = None  # it was told to stop; on the node's clock
    stop_token: int = 0


@dataclass
class Node:
    name: str
    rate: float
    view: ClusterState  # what this node has applied
    worker: Worker | None = None
    leased_from_ms: int | None = None  # the lease file
    heard: bool = True  # what it sends arrives
    hears: bool = True  # what is sent to it arrives
    beat_at_ms: int = 0
    tasks: dict[TaskId, Running] = field(default_factory=dict)
    ended: dict[TaskId, Observation] = field(default_factory=dict)
    inputs: list[i.Input] = field(default_factory=list)

    @property
    def id(self) -> NodeId:
        return NodeId(f"id-{self.name}")

    @property
    def is_connected(self) -> bool:
        return self.heard and self.hears


class World:
    def __init__(self, rates: tuple[float, ...], lost_after_ms: int) -> None:
        self.machine = builders.Machine(*NAMES)
        group = builders.group(
            driver=DriverName.FAKE,
            at_most_one=True,
            lost_after_ms=lost_after_ms,
            stop_timeout_ms=STOP_TIMEOUT_MS,
            restart=RestartPolicy(delay_ms=1_000),
        )
        self.machine.submit(builders.job("one", {"g": group}))
        self.now_ms = 0
        self.nodes = [
            Node(name, rate, self.machine.state) for name, rate in zip(NAMES, rates, strict=True)
        ]
        self.plans = 0
        self.fences: list[int] = []  # of starts
        for node in self.nodes:
            self.boot(node)
        self.elect(self.nodes[0])

    def clock_ms(self, node: Node) -> int:
        return int(self.now_ms * node.rate)

    def boot(self, node: Node) -> None:
        if node.worker is None:
            node.worker = Worker(
                WorkerSettings(), ClusterId("c"), node.id, "h", ["fake"], node.leased_from_ms
            )
            node.inputs = []
            node.view = ClusterState()  # nothing is known until it has caught up

    def kill(self, node: Node) -> None:
        if node is not self.leader:
            node.worker = None

    def elect(self, node: Node) -> None:
        """The others follow; whoever led knows nothing any more that counts."""
        if node.worker is None or not node.is_connected:
            return
        self.leader = node
        self.machine.term += 1
        self.scheduler = Scheduler()
        self.liveness = Liveness(node_grace_ms=1_000)
        self.liveness.leader_since(self.clock_ms(node), node.id)

    # One tick

    def tick(self) -> None:
        self.now_ms += TICK_MS
        self.machine.now_ms += TICK_MS
        self.lead()
        for node in self.nodes:
            if node.worker is not None:
                self.live(node)
            self.supervise(node)
        running = [(node.name, one) for node in self.nodes for one in node.tasks.items()]
        assert len(running) <= 1, f"two at once: {running}"

    def reaches(self, node: Node) -> bool:
        return node is self.leader or (node.is_connected and self.leader.is_connected)

    def lead(self) -> None:
        state, mono_ms = self.machine.state, self.clock_ms(self.leader)
        self.liveness.on_heartbeat(self.leader.id, mono_ms)
        gossip = {
            node.id: "alive" if node.worker and self.reaches(node) else "dead"
            for node in self.nodes
        }
        for node_id, status, why in self.liveness.decide(state.nodes, gossip, mono_ms).changes:
            self.machine.do(c.SetNodeStatus(self.machine.term, node_id, status, why))
        state = self.machine.state
        self.plans += 1
        plan = self.scheduler.plan(
            state,
            self.machine.now_ms,
            self.machine.term,
            f"seed-{self.plans}",
            self.liveness.silent_ms(state.nodes, mono_ms),
        )
        if plan.command is not None:
            self.machine.do(plan.command)

    def live(self, node: Node) -> None:
        """The agent's loop: state, heartbeat, worker."""
        local_ms = self.clock_ms(node)
        assert node.worker is not None
        if self.reaches(node) and node.view is not self.machine.state:
            node.view = self.machine.state
            node.inputs.append(
                wanted_of(node.view, node.view.tasks_of_node(node.id), node.id, True)
            )
        if local_ms >= node.beat_at_ms:
            node.beat_at_ms = local_ms + 1_000
            is_heard = node is self.leader or (node.heard and self.leader.hears)
            if is_heard:
                self.liveness.on_heartbeat(node.id, self.clock_ms(self.leader))
            if is_heard and self.reaches(node):  # its answer, and the log
                node.leased_from_ms = local_ms
                node.inputs.append(i.Leased(local_ms))
        inputs, node.inputs = node.inputs, []
        for instruction in node.worker.step(inputs, local_ms):
            self.carry_out(node, instruction)

    def carry_out(self, node: Node, instruction: do.Instruction) -> None:
        done = node.inputs.append
        match instruction:
            case do.Recover(token):
                running = [self.seen(id_, one) for id_, one in node.tasks.items()]
                done(i.Recovered(token, (*running, *node.ended.values())))
            case do.Prepare(token):
                done(i.InstructionDone(token))
            case do.Start(token, _, launch):
                assert launch.lease is not None
                fence = int(launch.env["CUBE_FENCE"])
                assert not self.fences or fence >= self.fences[-1], "an old one after a new one"
                self.fences.append(fence)
                one = node.tasks[launch.task_id] = Running(launch.attempt, fence, launch.lease)
                node.ended.pop(launch.task_id, None)
                done(i.InstructionDone(token, self.seen(launch.task_id, one)))
            case do.Inspect(token, _, task_id, attempt):
                done(i.InstructionDone(token, self.look(node, task_id, attempt)))
            case do.Stop() | do.Kill():
                timeout_ms = instruction.timeout_ms if isinstance(instruction, do.Stop) else 0
                found = node.tasks.get(instruction.task_id)
                if found is None:
                    seen = self.look(node, instruction.task_id, instruction.attempt)
                    done(i.InstructionDone(instruction.token, seen))
                else:
                    found.ends_at_ms = self.clock_ms(node) + timeout_ms
                    found.stop_token = instruction.token
            case do.Remove(token, _, task_id):
                node.ended.pop(task_id, None)
                done(i.InstructionDone(token))
            case do.Report(token, reports):
                if self.reaches(node):
                    self.machine.do(c.ReportTasks(node.id, reports))
                    done(i.Reported(token, self.machine.state.index))
                else:
                    done(i.ReportFailed(token, "no leader"))
            case _:
                pass

    def seen(self, task_id: TaskId, one: Running) -> Observation:
        return Observation(task_id=task_id, attempt=one.attempt, state=RunState.RUNNING, handle="1")

    def look(self, node: Node, task_id: TaskId, attempt: int) -> Observation:
        running = node.tasks.get(task_id)
        if running is not None and running.attempt == attempt:
            return self.seen(task_id, running)
        gone = Observation(task_id=task_id, attempt=attempt, state=RunState.GONE)
        return node.ended.get(task_id, gone)

    def supervise(self, node: Node) -> None:
        """Stops that are over, and leases that nobody else looks after."""
        local_ms = self.clock_ms(node)
        for task_id, one in list(node.tasks.items()):
            from_ms = max(one.lease.from_ms, node.leased_from_ms or 0)
            kill_at_ms = from_ms + one.lease.lost_after_ms + STOP_TIMEOUT_MS
            if one.ends_at_ms is not None:
                kill_at_ms = min(kill_at_ms, one.ends_at_ms)
            if local_ms >= kill_at_ms:
                self.end(node, task_id, 137)

    def end(self, node: Node, task_id: TaskId, exit_code: int) -> None:
        one = node.tasks.pop(task_id)
        seen = msgspec.structs.replace(
            self.seen(task_id, one), state=RunState.EXITED, exit_code=exit_code
        )
        node.ended[task_id] = seen
        if node.worker is not None:
            node.inputs.append(
                i.InstructionDone(one.stop_token, seen)
                if one.stop_token
                else i.Observed("fake", seen)
            )

    # What the adversary does

    def act(self, action: tuple[str, int]) -> None:
        what, number = action
        node = self.nodes[number % len(self.nodes)]
        match what:
            case "cut":
                node.heard = node.hears = False
            case "deaf":
                node.hears = False
            case "dumb":
                node.heard = False
            case "heal":
                node.heard = node.hears = True
            case "elect":
                self.elect(node)
            case "kill":
                self.kill(node)
            case "boot":
                self.boot(node)
            case "exit":
                for task_id in list(node.tasks):
                    self.end(node, task_id, number % 2)
            case _:
                for _ in range(number):
                    self.tick()

    def settle(self) -> None:
        for node in self.nodes:
            node.heard = node.hears = True
            self.boot(node)
        limit_ms = self.now_ms + 3 * 600_000
        while not self.is_settled():
            self.tick()
            assert self.now_ms < limit_ms, "nothing runs, though all is well"

    def is_settled(self) -> bool:
        state = self.machine.state
        is_up = all(node.status is NodeStatus.READY for node in state.nodes.values())
        running = [task for task in state.tasks.values() if task.state is TaskState.RUNNING]
        return is_up and len(running) == 1 and sum(len(node.tasks) for node in self.nodes) == 1


RATES = st.tuples(*[st.sampled_from([SLOW, FAST])] * len(NAMES))
TICKS = st.sampled_from([1, 4, 4, 12, 12, 40, 60])
ACTIONS = st.one_of(
    st.tuples(
        st.sampled_from(["cut", "cut", "deaf", "dumb", "heal", "elect", "kill", "boot", "exit"]),
        st.integers(0, 5),
    ),
    st.tuples(st.just("pass"), TICKS),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(RATES, st.lists(ACTIONS, min_size=4, max_size=40))
def test_never_two_and_in_the_end_one(
    rates: tuple[float, ...], actions: list[tuple[str, int]]
) -> None:
    world = World(rates, lost_after_ms=5_000)
    for _ in range(12):
        world.tick()
    for action in actions:
        world.act(action)
    world.settle()


@pytest.mark.parametrize("leader_changes", [False, True])
def test_clocks_drift_as_far_as_the_margin_covers(leader_changes: bool) -> None:
    """The leader's runs fast, the node's slow, and the lease is long: it is the drift that counts."""
    world = World((FAST, SLOW, FAST), lost_after_ms=600_000)
    away = world.nodes[1]
    for name in ("a", "c"):
        world.machine.do(c.SetEligibility(NodeId(f"id-{name}"), False))
    for _ in range(20):
        world.tick()
    assert len(away.tasks) == 1
    for name in ("a", "c"):
        world.machine.do(c.SetEligibility(NodeId(f"id-{name}"), True))
    away.heard = away.hears = False
    if leader_changes:
        world.elect(world.nodes[2])
    while len(set(world.fences)) == 1:
        world.tick()
    assert 603_000 < world.now_ms < 630_000
