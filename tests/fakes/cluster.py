"""A cluster without consensus: commands are applied at once, by the real state machine.

World is what is replicated, FakeCluster one node's door to it. Tests act as the scheduler and the
workers through World.apply.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec

from cube.adapters.fake_sessions import FakeSession
from cube.model import commands as c
from cube.model.cluster import ClusterState, NodeFacts, Task
from cube.model.dryrun import DryRun
from cube.model.errors import CubeError, Unavailable
from cube.model.events import Event
from cube.model.explain import Explanation
from cube.model.ids import ClusterId, CommandId, JobId, NodeId
from cube.model.jobfile import parse_tree
from cube.model.launch import DriverInfo, LogChunk, TaskStats
from cube.model.lifecycle import Health, TaskState
from cube.model.outcome import Outcome, PlanApplied
from cube.model.resources import Resources
from cube.model.sessions import ExecCaller, ExecOrder
from cube.model.spec import JobSpec
from cube.ports.cluster import (
    BootstrapView,
    JoinGrant,
    JoinRequest,
    LogRequest,
    MemberStats,
    MemberView,
    Proposed,
    Published,
)
from cube.ports.log import LogStatus, Progress, Role, Voter
from cube.ports.session import Session
from cube.ports.trust import EnrolGrant, EnrolRefusal, EnrolRequest, RefusalCode
from cube.services.dry_run import Foreseeable, foresee
from cube.statemachine.apply import apply

START_MS = 1_700_000_000_000
TERM = 1


class FakeClock:
    """Moves when it is told."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now = now_ms

    def now_ms(self) -> int:
        return self.now

    def monotonic_ms(self) -> int:
        return self.now


def node_facts(name: str, number: int, **changes: object) -> NodeFacts:
    facts = NodeFacts(
        id=NodeId(f"{number:08x}-0000-4000-8000-000000000000"),
        name=name,
        advertise=f"10.0.0.{number}",
        http_address=f"127.0.0.1:{7700 + number}",
        raft_address=f"127.0.0.1:{8700 + number}",
        gossip_address=f"127.0.0.1:{9700 + number}",
        version="0.1.0",
        capacity=Resources(4_000, 8 << 30, 100 << 30),
        drivers={"process": DriverInfo("process", True), "docker": DriverInfo("docker", True)},
    )
    return msgspec.structs.replace(facts, **changes)


def job_spec(name: str = "shop", type_: str = "service", **groups: dict[str, object]) -> JobSpec:
    """A job of processes; each group is given what differs from one task with one port."""
    trees = groups or {"web": {}}
    common = {"driver": "process", "command": ["true"], "ports": {"http": {}}}
    return parse_tree(
        {"name": name, "type": type_, "groups": {g: common | tree for g, tree in trees.items()}}
    )


class World:
    """`events` remembers everything, but what is below `forgotten_index`."""

    def __init__(self, *nodes: NodeFacts) -> None:
        self.state = ClusterState()
        self.published: list[Published] = []
        self.forgotten_index = 0
        self.changed = asyncio.Event()
        self._number = 0
        self.next_port = 20_000
        self.apply(c.InitCluster(ClusterId("cluster-1"), "test"))
        for facts in nodes or (node_facts("n1", 1), node_facts("n2", 2)):
            self.apply(c.RegisterNode(facts))

    def apply(
        self, body: c.Body, *, actor: str = "test", id_: CommandId | None = None, digest: str = ""
    ) -> Outcome:
        return self.enter(body, actor, id_, digest).outcome

    def enter(self, body: c.Body, actor: str, id_: CommandId | None, digest: str) -> Proposed:
        self._number += 1
        command = c.Command(id_ or CommandId(f"c{self._number}"), body, actor, digest)
        index = self.state.index + 1
        step = apply(self.state, c.Entry(index, TERM, START_MS + index * 1000, command))
        self.state = step.state
        self.publish(index, step.events)
        return Proposed(step.outcome, step.index)

    def publish(self, index: int, events: tuple[Event, ...]) -> None:
        if events:
            self.published.append(Published(index, self.state.now_ms, events))
        self.changed.set()
        self.changed = asyncio.Event()

    def run(self, spec: JobSpec) -> None:
        self.apply(c.SubmitJob(spec, JobId(f"job-{spec.name}-{self._number}")))

    def place(self, job: str, group: str, slots: Sequence[int], node: str = "n1") -> list[Task]:
        """As the scheduler would."""
        found = self.state.job_named(job)
        assert found is not None
        ports = sorted(found.spec.groups[group].ports)
        rows = []
        for _ in slots:
            rows.append(tuple(range(self.next_port, self.next_port + len(ports))))
            self.next_port += len(ports)
        node_id = self.state.node_names[node]
        placement = c.GroupPlacement(
            found.id, found.version, group, tuple(slots), (0,) * len(slots), tuple(rows)
        )
        before = set(self.state.tasks)
        plan = c.ApplyPlan(TERM, f"seed{self._number}", (node_id,), (placement,))
        outcome = self.apply(plan)
        assert isinstance(outcome, PlanApplied) and outcome.placed == len(slots), outcome
        made = [task for id_, task in self.state.tasks.items() if id_ not in before]
        return sorted(made, key=lambda task: task.slot)

    def report(
        self,
        task: Task,
        state: TaskState,
        health: Health = Health.NONE,
        *,
        attempt: int = 0,
        reason: str = "",
        message: str = "",
        released: bool = False,
        exit_code: int | None = None,
    ) -> Task:
        """As the task's node would."""
        report = c.TaskReport(
            task.id,
            attempt or task.attempt,
            state,
            health,
            "4242",
            exit_code,
            False,
            reason,
            message,
            released,
        )
        self.apply(c.ReportTasks(task.node_id, (report,)))
        return self.state.tasks[task.id]

    def running(self, spec: JobSpec, node: str = "n1") -> list[Task]:
        """The job, with every task placed and running."""
        self.run(spec)
        return [
            self.report(task, TaskState.RUNNING, Health.HEALTHY)
            for group, template in spec.groups.items()
            for task in self.place(spec.name, group, range(template.count), node)
        ]


class FakeCluster:
    """`weather` is raised by the next proposals (and by barriers); `not_joined` is said by joined."""

    def __init__(self, world: World, node: str = "n1", leader: str | None = "n1") -> None:
        self.world = world
        self.node = node
        self.id = world.state.node_names[node]
        self.leader = leader
        self.weather: CubeError | None = None
        self.not_joined: str | None = None
        self.ready = True
        self.proposed: list[c.Body] = []
        self.explanations: list[Explanation] = []
        self.barriers = 0
        self.transfers: list[NodeId | None] = []
        self.seen: tuple[Progress, ...] = ()  # progress, as the leader sees it
        self.voters: tuple[str, ...] | None = None  # names; None: all nodes
        self.votes_removed: list[NodeId] = []
        self.enrolled: list[tuple[str, EnrolRequest]] = []
        self.told: tuple[str, ...] = ()  # warnings
        self.lag: int | None = None  # the index that this node stands at, when it is behind

    def state(self) -> ClusterState:
        return self.world.state

    async def propose(
        self, body: c.Body, *, actor: str, command_id: CommandId | None = None, digest: str = ""
    ) -> Proposed:
        await asyncio.sleep(0)
        self.proposed.append(body)
        if self.weather is not None:
            raise self.weather
        return self.world.enter(body, actor, command_id, digest)

    async def wait_index(self, index: int, timeout_ms: int) -> bool:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while self.world.state.index < index:
                    await self.world.changed.wait()
        except TimeoutError:
            return False
        return True

    async def barrier(self, timeout_ms: int) -> int:
        self.barriers += 1
        if self.weather is not None:
            raise self.weather
        return self.world.state.index

    def log_status(self) -> LogStatus:
        nodes = self.world.state.nodes.values()
        addresses = {node.name: node.facts.raft_address for node in nodes}
        index = self.world.state.index
        return LogStatus(
            role=Role.LEADER if self.node == self.leader else Role.VOTER,
            term=TERM,
            leader=None if self.leader is None else addresses[self.leader],
            commit_index=index,
            applied_index=index,
            voters=tuple(
                Voter(address)
                for name, address in sorted(addresses.items())
                if self.voters is None or name in self.voters
            ),
            quorum=self.leader is not None,
            ready=self.ready,
        )

    async def transfer_leadership(self, to: NodeId | None) -> None:
        if self.weather is not None:
            raise self.weather
        self.transfers.append(to)
        if to is not None:
            self.leader = self.world.state.nodes[to].name

    async def progress(self) -> tuple[Progress, ...]:
        if self.leader is None:
            raise Unavailable("no leader is known")
        return self.seen

    async def remove_vote(self, node_id: NodeId) -> None:
        if self.weather is not None:
            raise self.weather
        self.votes_removed.append(node_id)

    def warnings(self) -> tuple[str, ...]:
        return self.told

    def node_id(self) -> NodeId:
        return self.id

    def members(self) -> Sequence[MemberView]:
        return [
            MemberView(
                node_id=node.id,
                name=node.name,
                state="alive",
                incarnation=1,
                gossip_address=node.facts.gossip_address,
                http_address=node.facts.http_address,
                raft_address=node.facts.raft_address,
                last_seen_ms=START_MS,
                stats=MemberStats(
                    cpu_percent=25.0, cpu_cores=4, load_1m=0.5,
                    memory_total_bytes=8 << 30, memory_used_bytes=2 << 30,
                    disk_total_bytes=100 << 30, disk_used_bytes=10 << 30,
                ),
            )
            for node in self.world.state.nodes.values()
        ]  # fmt: skip

    def joined(self) -> str | None:
        return self.not_joined

    def events_since(self, index: int, number: int) -> list[Published] | None:
        if index < self.world.forgotten_index or index > self.world.state.index:
            return None
        return [
            entry
            for entry in self.world.published
            if entry.index > index or (entry.index == index and len(entry.events) > number + 1)
        ]

    def events_kept(self) -> list[Published]:
        return [one for one in self.world.published if one.index > self.world.forgotten_index]

    def explain(self, job: str) -> list[Explanation]:
        return [found for found in self.explanations if found.job == job]

    async def why(self, state: ClusterState, job: str) -> list[Explanation]:
        return self.explain(job)

    async def dry_run(self, state: ClusterState, body: Foreseeable) -> DryRun:
        return foresee(state, state.now_ms, body)


class FakeLocalTasks:
    """`chunks` are what every task said so far; a follower then gets what is `say`-ed, to the end."""

    def __init__(self) -> None:
        self.chunks: list[LogChunk] = []
        self.asked: list[tuple[str, tuple[str, ...], int | None, int, bool]] = []
        self.failure: CubeError | None = None
        self.followers = 0
        self.volumes: dict[str, bool] = {}
        self.sessions: list[tuple[ExecOrder, str, FakeSession]] = []
        self.callers: list[ExecCaller] = []
        self.stats_asked = 0
        self.signals: list[tuple[str, str, str]] = []
        self.task_over = asyncio.Event()
        self._more: asyncio.Queue[LogChunk | None] = asyncio.Queue()

    async def volume_names(self) -> list[str]:
        if self.failure is not None:
            raise self.failure
        return sorted(self.volumes)

    async def remove_volume(self, name: str) -> bool:
        if self.failure is not None:
            raise self.failure
        return self.volumes.pop(name, False)

    def say(self, chunk: LogChunk | None) -> None:
        self._more.put_nowait(chunk)

    async def logs(
        self, task: Task, *, streams: tuple[str, ...], tail: int | None, since_ms: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        self.asked.append((task.id, streams, tail, since_ms, follow))
        if self.failure is not None:
            raise self.failure
        for chunk in self.chunks:
            if chunk.stream in streams and (chunk.at_ms >= since_ms or not chunk.at_ms):
                yield chunk
        if not follow:
            return
        self.followers += 1
        try:
            while (said := await self._more.get()) is not None:
                yield said
        finally:
            self.followers -= 1

    async def stats(self, task: Task) -> TaskStats:
        if self.failure is not None:
            raise self.failure
        self.stats_asked += 1
        return TaskStats(at_ms=START_MS + 1_000 * self.stats_asked, cpu_ms=250 * self.stats_asked,
                         memory_bytes=3 << 20, memory_limit_bytes=64 << 20, pids=2)  # fmt: skip

    async def signal(self, task: Task, name: str, actor: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.signals.append((task.id, name, actor))

    @contextlib.asynccontextmanager
    async def exec(
        self, task: Task, order: ExecOrder, caller: ExecCaller
    ) -> AsyncIterator[Session]:
        if self.failure is not None:
            raise self.failure
        session = FakeSession(order, self.task_over, 0)
        self.sessions.append((order, caller.actor, session))
        self.callers.append(caller)
        try:
            yield session
        finally:
            await session.close()


class FakePeers:
    def __init__(self, leader_http: str | None = None, *, leads: bool = True) -> None:
        self.leader = leader_http
        self.leads = leads
        self.transfers: list[NodeId | None] = []
        self.heartbeats: list[tuple[NodeId, int | None]] = []
        self.leases: list[NodeId] = []
        self.asked: list[LogRequest] = []
        self.answer: bytes | Exception = b"entries"
        self.votes_removed: list[NodeId] = []
        self.enrolled: list[tuple[str, EnrolRequest]] = []

    async def join(self, request: JoinRequest) -> JoinGrant:
        self._check()
        return JoinGrant(
            cluster_id="cluster-1",
            cluster_name="test",
            voters=("127.0.0.1:8701",),
            gossip_seeds=("127.0.0.1:9701",),
        )

    async def remove_vote(self, node_id: NodeId) -> None:
        self._check()
        self.votes_removed.append(node_id)

    async def transfer(self, node_id: NodeId | None) -> None:
        self._check()
        self.transfers.append(node_id)

    def progress(self) -> tuple[Progress, ...]:
        self._check()
        return (Progress("127.0.0.1:8702", 7, 3, 40),)

    def _check(self) -> None:
        if not self.leads:
            raise Unavailable("this node does not lead")

    def leader_http(self) -> str | None:
        return self.leader

    def heartbeat(self, node_id: NodeId, log_index: int | None) -> bool:
        if self.leads:
            self.heartbeats.append((node_id, log_index))
        return self.leads

    async def lease(self, node_id: NodeId) -> int | None:
        self.leases.append(node_id)
        return 41

    async def log(self, request: LogRequest) -> bytes:
        self.asked.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def bootstrap(self) -> BootstrapView:
        return BootstrapView(
            node_id=NodeId("n"), cluster_id="cluster-1", expect=0, vouches_for=None
        )

    def bootstrap_sealed(self, nonce: str) -> bytes:
        return f"sealed {nonce}".encode()

    def ca(self) -> str:
        return "ca pem"

    def enrol(self, host: str, request: EnrolRequest) -> EnrolGrant | EnrolRefusal:
        self.enrolled.append((host, request))
        return EnrolRefusal(RefusalCode.WRONG_SECRET, "no")
