"""depends_on at first start: a group that never ran waits for the groups it names."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from cube.model.cluster import ClusterState, Job, Task
from cube.model.spec import GroupSpec, JobSpec, JobType
from cube.scheduler.restart import completed_by_itself, up_to_date


def unmet(state: ClusterState, job: Job, group: GroupSpec) -> list[tuple[str, str]]:
    """(dependency, what it is like now) for each that is not there yet, in the order of the file."""
    found = []
    for name in group.depends_on:
        problem = _problem(state, job, name)
        if problem is not None:
            found.append((name, problem))
    return found


def _problem(state: ClusterState, job: Job, name: str) -> str | None:
    job_name, slash, group_name = name.rpartition("/")
    other = state.job_named(job_name) if slash and job_name != job.name else job
    if other is None or other.deleted:
        return f"there is no job {job_name}"
    spec = other.spec.groups.get(group_name)
    if spec is None:
        return f"job {other.name} has no group {group_name}"
    if other.stopped:
        return f"job {other.name} is stopped"
    tasks = [task for task in state.tasks_of_job(other.id) if task.group == group_name]
    match other.spec.type:
        case JobType.CRON:
            return f"job {other.name} runs by schedule and is never up"
        case JobType.BATCH:
            done = {
                task.slot for task in tasks if completed_by_itself(task) and up_to_date(other, task)
            }
            return _short("completed", sum(slot < spec.count for slot in done), spec.count)
        case JobType.SYSTEM:
            live = [task for task in tasks if task.live]
            serving = sum(task.serving for task in live)
            if not live:
                return "no task of it runs yet"
            return _short("healthy", serving, len(live))
        case JobType.SERVICE:
            slots = {task.slot for task in tasks if task.live and task.serving}
            return _short("healthy", sum(slot < spec.count for slot in slots), spec.count)


def never_met(spec: JobSpec, given_up: Collection[str]) -> set[str]:
    """Groups of a batch job that wait for one of `given_up`, directly or not: those that have not
    started never will."""
    found: set[str] = set()
    while True:
        stuck = found.union(given_up)
        more = {
            name
            for name, group in spec.groups.items()
            if name not in stuck and any(_own(spec, one) in stuck for one in group.depends_on)
        }
        if not more:
            return found
        found |= more


def _own(spec: JobSpec, dependency: str) -> str:
    """The group of this job that is meant; empty: it is another job's."""
    job_name, slash, group_name = dependency.rpartition("/")
    return group_name if not slash or job_name == spec.name else ""


def warnings(state: ClusterState, spec: JobSpec) -> list[str]:
    """`path: sentence` for each group of another job that is not there or will never be up: allowed,
    since it may come later. What is waiting for it, `cube why` says."""
    found = []
    for name, group in spec.groups.items():
        for dependency in group.depends_on:
            job_name, slash, group_name = dependency.rpartition("/")
            if slash and job_name != spec.name:
                problem = _missing(state, job_name, group_name)
                if problem:
                    found.append(f"groups.{name}.depends_on: {problem}")
    return found


def _missing(state: ClusterState, job_name: str, group_name: str) -> str:
    other = state.job_named(job_name)
    if other is None:
        return f"there is no job {job_name} yet; the group waits until it comes"
    if group_name not in other.spec.groups:
        near = difflib.get_close_matches(group_name, list(other.spec.groups), n=1)
        meant = f" (did you mean `{job_name}/{near[0]}`?)" if near else ""
        return f"job {job_name} has no group {group_name}{meant}; the group waits until it has"
    if other.spec.type is JobType.CRON:
        return f"job {job_name} runs by schedule and is never up; the group waits for ever"
    if other.stopped:
        return f"job {job_name} is stopped; the group waits until it is started"
    return ""


def _short(word: str, have: int, want: int) -> str | None:
    return None if have >= want else f"{have} of {want} {word}"


def started_before(tasks: list[Task]) -> bool:
    """Whether the group's first start is behind it: depends_on has no say any more."""
    return any(task.live or task.started_at_ms for task in tasks)
