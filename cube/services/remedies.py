"""`cube why` with what would help: each single change that may place a task is tried on a fork of the
state, with the real apply and the real scheduler, and only what does place it is told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from cube.model import commands as c
from cube.model.cluster import ClusterState, Job
from cube.model.explain import Explanation
from cube.model.outcome import Rejected
from cube.scheduler.reconcile import reconcile
from cube.scheduler.suggest import LET, Remedy, candidates
from cube.scheduler.want import Want
from cube.scheduler.why import explain, explain_job
from cube.services.simulation import Simulation

SUGGESTIONS_MAX = 5  # told of each explanation: more is no help
OF_A_KIND_MAX = 2  # told: so that there is a choice between kinds of changes
TRIES_MAX = 24  # forks for each explanation
EXPLAINED_MAX = 8  # explanations of one job that are looked into
STEPS_MAX = 200  # of one fork: what places a task does so within a few


class Tried(msgspec.Struct, frozen=True):
    """A change that places `placed` of the slots in question."""

    remedy: Remedy
    placed: int


def why(state: ClusterState, now_ms: int, job_name: str) -> list[Explanation]:
    """As scheduler.why.explain, with suggestions that help."""
    found = explain(state, now_ms, job_name)
    job = state.job_named(job_name)
    if job is None or not any(one.kind in ("unplaced", "waiting") for one in found):
        return found
    base = Simulation(state, now_ms)
    if job.cron is None:
        return _with_hints(base, job, found)
    told = found[:1]  # of the schedule; the others are of its runs
    for run in state.runs_of(job):
        told.extend(_with_hints(base, run, explain_job(state, now_ms, run)))
    return told


def _with_hints(base: Simulation, job: Job, found: Sequence[Explanation]) -> list[Explanation]:
    wants = {
        (want.group, want.slots): want for want in reconcile(base.state, job, base.now_ms).wants
    }
    told: list[Explanation] = []
    left = EXPLAINED_MAX
    for one in found:
        ideas = _ideas(base, job, one, wants.get((one.group, one.slots))) if left else []
        if ideas:
            left -= 1
            hints = _told(tried(base, job, one, ideas), len(one.slots))
            one = msgspec.structs.replace(one, suggestions=(*one.suggestions, *hints))
        told.append(one)
    return told


def _ideas(base: Simulation, job: Job, one: Explanation, want: Want | None) -> list[Remedy]:
    if one.kind == "unplaced" and want is not None:
        return candidates(base.state, base.now_ms, want)
    if any(reason.code == "depends_on" for reason in one.reasons):
        return list(_start_what_it_needs(base.state, job, one.group))
    return []


def _start_what_it_needs(state: ClusterState, job: Job, group: str) -> Iterable[Remedy]:
    spec = job.spec.groups.get(group)
    for name in spec.depends_on if spec is not None else ():
        other = state.job_named(name.rpartition("/")[0])
        if other is not None and other.stopped:
            yield Remedy(c.StartJob(other.name), f"cube start {other.name}", (LET, 0))


def tried(base: Simulation, job: Job, one: Explanation, ideas: Sequence[Remedy]) -> list[Tried]:
    """Those of the ideas, smallest first, that place tasks of the explanation's slots: all of them,
    or, when no idea does, most of them first."""
    whole: list[Tried] = []
    partly: list[Tried] = []
    kinds: dict[int, int] = {}
    tries = 0
    for remedy in ideas:
        kind = remedy.size[0]
        if kinds.get(kind, 0) >= OF_A_KIND_MAX:
            continue
        if tries >= TRIES_MAX or len(whole) >= SUGGESTIONS_MAX:
            break
        tries += 1
        count = _placed_by(base, job, one, remedy)
        if count == len(one.slots):
            whole.append(Tried(remedy, count))
            kinds[kind] = kinds.get(kind, 0) + 1
        elif count:
            partly.append(Tried(remedy, count))
    partly.sort(key=lambda found: (-found.placed, found.remedy.size))
    return whole or partly[:OF_A_KIND_MAX]


def _placed_by(base: Simulation, job: Job, one: Explanation, remedy: Remedy) -> int:
    fork = base.fork()
    if isinstance(fork.do(remedy.body), Rejected):
        return 0
    count = len(one.slots)
    fork.run([job.id], lambda state: placed(base.state, state, job, one) == count, steps=STEPS_MAX)
    return placed(base.state, fork.state, job, one)


def placed(before: ClusterState, after: ClusterState, job: Job, one: Explanation) -> int:
    """How many of the explanation's slots have a task that they had not."""
    slots = set(one.slots)
    return len(
        {
            task.slot
            for task in after.tasks_of_job(job.id)
            if task.group == one.group
            and task.slot in slots
            and task.live
            and task.id not in before.tasks
        }
    )


def _told(found: Sequence[Tried], count: int) -> list[str]:
    return [
        one.remedy.told + (f" (places {one.placed} of {count})" if one.placed < count else "")
        for one in found
    ]
