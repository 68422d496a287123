"""Groups that would wait for each other in a circle, across jobs. Within a job the parser says so; only
the state knows the other jobs.

Every job that is accepted was without a circle, so a new one goes through the job that is submitted.
"""

from __future__ import annotations

from cube.model.outcome import Rejected, RejectReason
from cube.model.spec import JobSpec
from cube.statemachine.draft import Draft

PATH_SHOWN_MAX = 12  # groups of a circle that are named

_Place = tuple[str, str]  # job, group


def refusal(draft: Draft, spec: JobSpec) -> Rejected | None:
    """Why the job cannot have this spec: a circle that it would close; None: it closes none."""
    if not any(
        _leads_out(spec, name) for group in spec.groups.values() for name in group.depends_on
    ):
        return None
    done: set[_Place] = set()
    for group in spec.groups:
        circle = _circle(draft, spec, (spec.name, group), done)
        if circle:
            shown = [f"{job}/{name}" for job, name in circle]
            if len(shown) > PATH_SHOWN_MAX:
                shown[PATH_SHOWN_MAX - 1 : -1] = ["…"]
            path = " → ".join(shown)
            return Rejected(RejectReason.REFUSED, f"depends_on would be a cycle: {path}")
    return None


def _leads_out(spec: JobSpec, dependency: str) -> bool:
    job, slash, _ = dependency.rpartition("/")
    return bool(slash) and job != spec.name


def _circle(draft: Draft, spec: JobSpec, start: _Place, done: set[_Place]) -> list[_Place]:
    """Some circle that can be reached from `start`, its first member last again; or nothing.
    `done`: places from where none can be reached; more are added."""
    path = {start: _next(draft, spec, start)}  # with what is left to look at; in order
    while path:
        here = next(reversed(path))
        if not path[here]:
            del path[here]
            done.add(here)
            continue
        place = path[here].pop()
        if place in path:
            places = list(path)
            return [*places[places.index(place) :], place]
        if place not in done:
            path[place] = _next(draft, spec, place)
    return []


def _next(draft: Draft, spec: JobSpec, place: _Place) -> list[_Place]:
    """What the group waits for, the last one first. A job that is not there waits for nothing."""
    job_name, group_name = place
    job = None if job_name == spec.name else draft.job_named(job_name)
    known = spec if job_name == spec.name else (None if job is None else job.spec)
    group = None if known is None else known.groups.get(group_name)
    found: list[_Place] = []
    for dependency in () if group is None else reversed(group.depends_on):
        other, _, name = dependency.rpartition("/")
        found.append((other or job_name, name))
    return found
