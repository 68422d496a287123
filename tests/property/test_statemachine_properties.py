"""The state machine under any commands in any order."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cube.model import codec
from cube.model import commands as c
from cube.model.cluster import ClusterState, NodeFacts
from cube.model.cronrun import RunStatus, run_id
from cube.model.ids import ClusterId, CommandId, JobId, NodeId, TaskId
from cube.model.lifecycle import Health, NodeStatus, TaskState, may_move
from cube.model.outcome import Rejected, RejectReason
from cube.model.resources import Resources
from cube.model.spec import (
    CronSpec,
    GroupSpec,
    JobSpec,
    JobType,
    MountSpec,
    MountType,
    Overlap,
    PlacementPolicy,
    PortSpec,
    SecretRef,
)
from cube.model.stored import StoredKind
from cube.model.trust import GossipKey, TokenRecord, TokenRole
from cube.statemachine.apply import apply
from cube.statemachine.invariants import overcommitted, violations
from cube.statemachine.snapshot import digest, dump, load
from tests.builders import facts, group, job

NAMES = st.sampled_from(["a", "b", "c"])  # c is a cron job
GROUPS = st.sampled_from(["g", "h", "nope"])
NODES = st.sampled_from([NodeId(f"id-n{i}") for i in range(4)])
TASK_POOL_SEEDS = 3


@cache  # a strategy takes longer to make than to draw from
def node_facts() -> st.SearchStrategy[NodeFacts]:
    # Two nodes share a host, and so a port domain. Capacity never shrinks: see overcommitted().
    return st.integers(0, 2).map(
        lambda i: facts(
            f"n{i}",
            advertise=f"host-{i // 2}",
            capacity=Resources(300, 300 << 20, 0),
            port_first=20000,
            port_last=20003,
        )
    )


@cache  # a strategy takes longer to make than to draw from
def specs() -> st.SearchStrategy[JobSpec]:
    ports = st.sampled_from(
        [
            {},
            {"p": PortSpec()},
            {"p": PortSpec(host=20001)},
            {"p": PortSpec(), "q": PortSpec(host=80)},
        ]
    )
    groups = st.builds(
        lambda count, port, cpu, command, volumes, secret: group(
            count=count,
            ports=port,
            resources=Resources(cpu, (64 << 20) if cpu else 0, 0),  # nothing at all, too
            command=(command,),
            mounts=tuple(MountSpec(MountType.VOLUME, f"/{name}", name) for name in volumes),
            env={"P": SecretRef(secret)} if secret else {},
        ),
        st.integers(0, 3),
        ports,
        st.sampled_from([0, 100, 200]),
        st.sampled_from(["one", "two"]),
        st.sampled_from(["", "", "u", "v", "uv"]),
        st.sampled_from(["", "", "", "s"]),
    )

    def build(name: str, g: GroupSpec, h: GroupSpec, overlap: Overlap, minute: int) -> JobSpec:
        if name != "c":
            return job(name, {"g": g, "h": h})
        cron = CronSpec(f"{minute} * * * *", overlap=overlap)
        return job(name, {"g": g, "h": h}, type=JobType.CRON, cron=cron)

    return st.builds(
        build, NAMES, groups, groups, st.sampled_from(Overlap), st.sampled_from([0, 30])
    )


@cache  # a strategy takes longer to make than to draw from
def run_job_ids() -> st.SearchStrategy[JobId]:
    return st.builds(run_id, st.sampled_from([JobId("job-c"), JobId("job-a")]), st.integers(0, 3))


@cache  # a strategy takes longer to make than to draw from
def run_steps() -> st.SearchStrategy[c.RunStep]:
    times = st.sampled_from([0, 1000, 1100, 1200, 5000])
    return st.builds(
        c.RunStep, st.sampled_from([JobId("job-c"), JobId("job-a"), JobId("job-c.000001")]),
        st.integers(1, 2), times, times, st.booleans(), st.integers(0, 2), times,
    )  # fmt: skip


@cache  # a strategy takes longer to make than to draw from
def run_ends() -> st.SearchStrategy[c.RunEnd]:
    return st.builds(
        c.RunEnd, run_job_ids() | st.just(JobId("job-c")), st.sampled_from(RunStatus),
        st.integers(0, 2), st.integers(0, 2), st.text(max_size=3),
    )  # fmt: skip


@cache  # a strategy takes longer to make than to draw from
def task_ids() -> st.SearchStrategy[TaskId]:
    """Ids that plans with the seeds below may have made."""
    from cube.model.ids import task_id

    return st.builds(
        lambda seed, ordinal: task_id(f"s{seed}", ordinal),
        st.integers(0, TASK_POOL_SEEDS),
        st.integers(0, 4),
    )


@cache  # a strategy takes longer to make than to draw from
def placements() -> st.SearchStrategy[c.GroupPlacement]:
    @st.composite
    def build(draw: st.DrawFn) -> c.GroupPlacement:
        count = draw(st.integers(0, 3))
        port_count = draw(st.integers(0, 2))
        host = st.sampled_from([80, 20000, 20001, 20002])
        return c.GroupPlacement(
            draw(
                st.sampled_from([JobId("job-a"), JobId("job-b"), JobId("job-c"), JobId("job-a2")])
            ),
            draw(st.integers(1, 3)),
            draw(GROUPS),
            tuple(draw(st.integers(0, 3)) for _ in range(count)),
            tuple(draw(st.integers(0, 3)) for _ in range(count)),
            tuple(tuple(draw(host) for _ in range(port_count)) for _ in range(count)),
            tuple(draw(task_ids()) for _ in range(count)) if draw(st.booleans()) else (),
        )

    return build()


@cache  # a strategy takes longer to make than to draw from
def trust_bodies() -> st.SearchStrategy[c.Body]:
    """Ids, hashes and keys that fit as often as not."""
    ids = st.sampled_from(["aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd", "eeeeeeee", "no", ""])
    hashes = st.sampled_from([b"a" * 32, b"b" * 32, b"b" * 32, b"short", b""])
    keys = st.builds(GossipKey, ids, st.sampled_from([b"sealed", b"sealed", b""]))
    tokens = st.builds(
        lambda id_, hash_, role: TokenRecord(id=id_, hash=hash_, role=role),
        ids, hashes, st.sampled_from(TokenRole),
    )  # fmt: skip
    return st.one_of(
        st.builds(
            c.InitTrust, st.sampled_from(["pem", "pem", ""]), st.sampled_from([b"key", b""]),
            hashes, keys, st.none() | tokens,
        ),
        st.builds(c.RotateJoinToken, hashes),
        st.builds(
            c.CreateToken, ids, hashes, st.sampled_from(TokenRole),
            st.none() | st.integers(-1, 100), st.sampled_from(["", "ci", "two\nlines"]),
            st.sampled_from([b"", b"k" * 32, b"short"]),
        ),
        st.builds(c.RemoveToken, ids),
        st.builds(c.KeepTokenKey, ids, st.sampled_from([b"", b"k" * 32, b"x" * 32])),
        st.builds(c.InstallGossipKey, keys),
        st.builds(c.InstallGossipKey, keys),
        st.builds(c.UseGossipKey, ids),
        st.builds(c.RemoveGossipKey, ids),
    )  # fmt: skip


def secret_s(value: bytes) -> c.StoreVersion:
    return c.StoreVersion(
        StoredKind.SECRET, "s", b"sealed" + value, len(value), value.rjust(32, b".")
    )


@cache  # a strategy takes longer to make than to draw from
def stored_bodies() -> st.SearchStrategy[c.Body]:
    names = st.sampled_from(["s", "s", "t", "no/name"])
    values = st.sampled_from([b"one", b"two", b"three", b""])
    return st.one_of(
        st.builds(
            lambda name, value, expected: c.StoreVersion(
                StoredKind.SECRET, name, b"sealed" + value, len(value), value.rjust(32), expected
            ),
            names, values, st.none() | st.none() | st.integers(0, 2),
        ),
        st.builds(
            lambda name, value: c.StoreVersion(StoredKind.CONFIG, name, value, len(value)),
            names, values,
        ),
        st.builds(c.RemoveStored, st.sampled_from(StoredKind), names),
    )  # fmt: skip


def notes() -> st.SearchStrategy[c.Body]:
    return st.builds(
        c.NoteExec, task_id=task_ids(), task=st.just("t"), job=st.just("j"),
        node_id=st.just(NodeId("n")), attempt=st.integers(0, 2),
        program=st.sampled_from(["sh", "", "a\nb"]), more=st.integers(-1, 3),
    )  # fmt: skip


@cache  # a strategy takes longer to make than to draw from
def bodies() -> st.SearchStrategy[c.Body]:
    term = st.integers(1, 2)
    reports = st.builds(
        c.TaskReport,
        task_ids(),
        st.integers(0, 3),
        st.sampled_from(TaskState),
        st.sampled_from(Health),
        st.just("handle"),
        st.sampled_from([None, 0, 137]),
        st.booleans(),
        st.just("reason"),
        st.text(max_size=5),
        st.booleans(),
    )
    plans = st.builds(
        lambda t, seed, placing, stops, updates, reaps, ends, steps: c.ApplyPlan(
            t,
            f"s{seed}",
            tuple(NodeId(f"id-n{i}") for i in range(4)),
            tuple(placing),
            tuple(c.PlannedStop(id_, "why" if id_ < "8" else "preempted by a.g") for id_ in stops),
            tuple(updates),
            tuple(reaps),
            tuple(ends),
            tuple(steps),
        ),
        term,
        st.integers(0, TASK_POOL_SEEDS),
        st.lists(placements(), max_size=2),
        st.lists(task_ids(), max_size=2),
        st.lists(st.tuples(task_ids(), st.integers(1, 3)), max_size=2),
        st.lists(task_ids(), max_size=2),
        st.lists(run_ends(), max_size=2),
        st.lists(run_steps(), max_size=2),
    )
    expected = st.none() | st.integers(0, 2)
    return st.one_of(
        plans,
        plans,
        st.builds(c.ReportTasks, NODES, st.lists(reports, max_size=4).map(tuple)),
        st.builds(c.ReportTasks, NODES, st.lists(reports, max_size=4).map(tuple)),
        st.builds(
            lambda spec, e, again: c.SubmitJob(spec, JobId(f"job-{spec.name}{again}"), e),
            specs(),
            expected,
            st.sampled_from(["", "2"]),
        ),
        st.builds(
            c.ScaleJob, NAMES, st.dictionaries(GROUPS, st.integers(-1, 4), max_size=2), expected
        ),
        st.builds(c.StopJob, NAMES),
        st.builds(c.StartJob, NAMES),
        st.builds(c.DeleteJob, NAMES),
        st.builds(c.TriggerJob, NAMES),
        st.builds(c.StopTask, task_ids()),
        st.builds(c.RestartTask, task_ids()),
        notes(),
        st.builds(c.RegisterNode, node_facts()),
        st.builds(c.SetNodeStatus, term, NODES, st.sampled_from(NodeStatus), st.just("")),
        st.builds(c.SetEligibility, NODES, st.booleans()),
        st.builds(c.SetDrain, NODES, st.none() | st.integers(-1, 10)),
        st.builds(
            c.SetLabels,
            NODES,
            st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
        ),
        st.builds(c.RemoveNode, NODES),
        trust_bodies(),
        stored_bodies(),
        stored_bodies(),
        st.builds(c.RollBackJob, NAMES, st.none() | st.integers(1, 4)),
        st.just(c.InitCluster(ClusterId("other"), "again")),
        st.just(c.StartRebalance()),
        st.builds(
            c.ChangeSettings,
            st.none() | st.sampled_from(PlacementPolicy),
            st.none() | st.booleans(),
            st.none() | st.booleans(),
        ),
        st.just(c.Noop()),
    )


def likely(draw: st.DrawFn, state: ClusterState) -> c.Body | None:
    """A command that has a good chance of being accepted in this state."""
    jobs = sorted(state.jobs.values(), key=lambda job: job.id)
    tasks = sorted(state.tasks.values(), key=lambda task: task.id)
    kinds = ["place", "place", "report", "report", "down", "stop", "reap", "run", "run", "secret"]
    kind = draw(st.sampled_from(kinds))
    if kind == "secret":
        value = draw(st.sampled_from([b"one", b"two", b"three"]))
        removal = c.RemoveStored(StoredKind.SECRET, "s")
        return removal if draw(st.booleans()) else secret_s(value)
    if kind == "run":
        return likely_run(draw, state)
    if kind == "place" and jobs:
        job = draw(st.sampled_from(jobs))
        name = draw(st.sampled_from(sorted(job.spec.groups)))
        ports = [job.spec.groups[name].ports[p] for p in sorted(job.spec.groups[name].ports)]
        count = draw(st.integers(1, 3))
        hosts = tuple(
            tuple(port.host or draw(st.integers(20000, 20003)) for port in ports)
            for _ in range(count)
        )
        slots = tuple(draw(st.integers(0, 3)) for _ in range(count))
        at = tuple(draw(st.integers(0, 2)) for _ in range(count))
        seed = f"s{draw(st.integers(0, TASK_POOL_SEEDS))}"
        nodes = tuple(NodeId(f"id-n{i}") for i in range(3))
        placement = c.GroupPlacement(job.id, job.version, name, slots, at, hosts)
        return c.ApplyPlan(1, seed, nodes=nodes, placements=(placement,))
    if kind == "report" and tasks:
        task = draw(st.sampled_from(tasks))
        attempt = draw(st.sampled_from([task.attempt, task.attempt, task.attempt + 1]))
        to = draw(st.sampled_from(TaskState))
        released = draw(st.booleans())
        return c.ReportTasks(task.node_id, (c.TaskReport(task.id, attempt, to, released=released),))
    if kind == "down":
        status = draw(st.sampled_from([NodeStatus.DOWN, NodeStatus.READY]))
        return c.SetNodeStatus(1, draw(NODES), status)
    if kind == "reap" and tasks:
        return c.ApplyPlan(1, "reap", reaps=tuple(task.id for task in tasks))
    if kind == "stop" and tasks:
        planned = c.PlannedStop(draw(st.sampled_from(tasks)).id, "scale_down")
        return c.ApplyPlan(1, "stop", stops=(planned,))
    return None


def likely_run(draw: st.DrawFn, state: ClusterState) -> c.Body | None:
    """Of the cron job: a run begins, by schedule or by hand, or some run ends."""
    found = state.job_named("c")
    if found is None or found.cron is None:
        return None
    kind = draw(st.sampled_from(["step", "trigger", "end"]))
    if kind == "trigger":
        return c.TriggerJob("c")
    if kind == "step":
        at_ms = max(state.now_ms, found.cron.after_ms + 1)
        starts = draw(st.booleans()) or draw(st.booleans())
        missed = draw(st.sampled_from([0, 0, 2]))
        step = c.RunStep(
            found.id, found.version, found.cron.after_ms, at_ms, starts, missed, at_ms - 1
        )
        return c.ApplyPlan(1, "step", run_steps=(step,))
    ends = [c.RunEnd(run.job_id, RunStatus.COMPLETED, 1, 0) for run in found.cron.active]
    return c.ApplyPlan(1, "end", run_ends=tuple(ends))


@st.composite
def histories(draw: st.DrawFn, size: int = 30) -> list[c.Entry]:
    """A cluster with nodes and a job, then anything, likely things more often than not. Command
    ids repeat now and then."""
    first: list[c.Body] = [c.InitCluster(ClusterId("cluster"), "test"), secret_s(b"one")]
    first += [
        c.RegisterNode(
            facts(f"n{i}", advertise=f"host-{i // 2}", capacity=Resources(300, 300 << 20, 0),
                  port_first=20000, port_last=20003)
        )
        for i in range(3)
    ]  # fmt: skip
    cron = job("c", {"g": group()}, type=JobType.CRON, cron=CronSpec("* * * * *"))
    first += [
        c.SubmitJob(draw(specs()), JobId("job-a"), None), c.SubmitJob(cron, JobId("job-c"), None)
    ]  # fmt: skip
    state = ClusterState()
    entries: list[c.Entry] = []
    for index in range(1, len(first) + draw(st.integers(5, size)) + 1):
        body = first[index - 1] if index <= len(first) else None
        if body is None and draw(st.integers(0, 3)):
            body = likely(draw, state)
        if body is None:
            body = draw(bodies())
        repeated = index > len(first) and draw(st.integers(0, 9)) == 0
        id_ = CommandId(f"c{draw(st.integers(1, index)) if repeated else index}")
        at_ms = 1000 + draw(st.integers(-500, 500)) + 10 * index
        term = draw(st.sampled_from([1, 1, 1, 1, 2]))
        entries.append(c.Entry(index, term, at_ms, c.Command(id_, body)))
        state = apply(state, entries[-1]).state
    return entries


def run(entries: list[c.Entry], state: ClusterState | None = None) -> ClusterState:
    state = state or ClusterState()
    for entry in entries:
        state = apply(state, entry).state
    return state


@settings(max_examples=300, deadline=None)
@given(histories())
def test_any_command_in_any_order_keeps_every_invariant(entries: list[c.Entry]) -> None:
    state = ClusterState()
    for entry in entries:
        before = state
        step = apply(before, entry)
        state = step.state
        assert state.index == entry.index
        assert state.now_ms >= before.now_ms
        assert violations(state) == []
        assert overcommitted(state) == []
        for job_id in state.tasks_by_job:
            state.tally_of_job(job_id)  # and so the next state has one that is carried on
        for job_id in {*before.tasks_by_job, *state.tasks_by_job}:
            if before.ids_of_job(job_id) is state.ids_of_job(job_id):  # readers rely on it
                assert before.tasks_of_job(job_id) == state.tasks_of_job(job_id)
        for id_, task in state.tasks.items():
            old = before.tasks.get(id_)
            if old is not None and (old.state, old.attempt) != (task.state, task.attempt):
                assert may_move(old.state, old.attempt, task.state, task.attempt)
            if old is not None:
                assert not (old.released and not task.released)
                assert (old.node_id, old.slot, old.resources, old.ports) == (
                    task.node_id, task.slot, task.resources, task.ports,
                )  # fmt: skip
        if isinstance(step.outcome, Rejected):
            assert (state.tasks, state.jobs, state.nodes, state.trust) == (
                before.tasks,
                before.jobs,
                before.nodes,
                before.trust,
            )
            assert step.events == ()


@settings(max_examples=100, deadline=None)
@given(histories(), st.integers(0, 40))
def test_replay_equals_snapshot_plus_tail(entries: list[c.Entry], cut: int) -> None:
    head, tail = entries[:cut], entries[cut:]
    restored = load(dump(run(head)))
    assert restored == run(head)
    assert digest(run(tail, restored)) == digest(run(entries))
    assert run(tail, restored) == run(entries)


@settings(max_examples=100, deadline=None)
@given(histories(), st.data())
def test_a_command_twice_is_once(entries: list[c.Entry], data: st.DataObject) -> None:
    state = run(entries)
    again = data.draw(st.sampled_from(entries))
    first = state.outcomes[again.command.id]  # of the first of several with this id
    step = apply(state, c.Entry(state.index + 1, 2, state.now_ms + 5, again.command))
    assert step.outcome == first.outcome
    assert step.index == first.index
    assert step.events == ()
    assert (step.state.tasks, step.state.jobs, step.state.nodes, step.state.outcomes) == (
        state.tasks, state.jobs, state.nodes, state.outcomes,
    )  # fmt: skip


@given(histories())
@settings(max_examples=50, deadline=None)
def test_commands_survive_the_codec(entries: list[c.Entry]) -> None:
    for entry in entries:
        data = codec.encode_command(entry.command)
        assert codec.decode_command(data) == entry.command


def test_the_same_key_with_another_body_is_refused() -> None:
    state = run([c.Entry(1, 1, 1, c.Command(CommandId("k"), c.Noop(), "", "digest-1"))])
    step = apply(state, c.Entry(2, 1, 2, c.Command(CommandId("k"), c.Noop(), "", "digest-2")))
    assert isinstance(step.outcome, Rejected)
    assert step.outcome.reason is RejectReason.KEY_REUSED


DIGEST_PROGRAM = """
from tests.builders import Machine, job, group, facts
from cube.model import commands as c
from cube.statemachine.snapshot import digest
m = Machine(*[f"n{i}" for i in range(20)])
for i in range(30):
    env = {f"K{j}": "v" for j in range(9)}
    m.submit(job(f"job{i}", {f"g{k}": group(count=3, env=env) for k in range(4)}))
    m.place(f"job{i}", "g1", *[(s, f"n{(i + s) % 20}", ()) for s in range(3)])
m.do(c.SetNodeStatus(1, "id-n3", c.NodeStatus.DOWN, "test"))
m.do(c.DeleteJob("job7"))
m.do(c.StopJob("job8"))
print(digest(m.state), hash("x"))
"""


def test_the_digest_does_not_depend_on_the_hash_seed() -> None:
    root = Path(__file__).resolve().parents[2]
    outputs = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", DIGEST_PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        outputs.append(done.stdout.split())
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][1] != outputs[1][1], "the seeds made no difference: the test proves nothing"
