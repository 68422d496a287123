"""Jobs whose groups wait for each other at random: the graph that is accepted never has a circle, and
nothing else is refused."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from hypothesis import given, settings
from hypothesis import strategies as st

from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.outcome import Rejected
from cube.model.spec import JobSpec
from tests.builders import Machine, group, job

JOBS = ["a", "b", "c", "d"]
GROUPS = ["x", "y"]


def specs() -> st.SearchStrategy[JobSpec]:
    names = st.sampled_from([f"{name}/{g}" for name in JOBS for g in GROUPS] + GROUPS)
    return st.builds(
        lambda name, deps: job(name, {g: group(depends_on=tuple(deps[g])) for g in GROUPS}),
        st.sampled_from(JOBS),
        st.fixed_dictionaries({g: st.lists(names, max_size=2, unique=True) for g in GROUPS}),
    )


def has_circle(known: dict[str, JobSpec]) -> bool:
    edges = {
        (name, g): {
            (other or name, target)
            for other, _, target in (one.rpartition("/") for one in shape.depends_on)
        }
        for name, spec in known.items()
        for g, shape in spec.groups.items()
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError:
        return True
    return False


def accepted(state: ClusterState) -> dict[str, JobSpec]:
    return {name: state.jobs[job_id].spec for name, job_id in state.job_names.items()}


@settings(max_examples=300, deadline=None)
@given(st.lists(specs() | st.sampled_from(JOBS), min_size=2, max_size=12))
def test_what_is_accepted_has_no_circle_and_nothing_else_is_refused(
    steps: list[JobSpec | str],
) -> None:
    machine = Machine()
    for step in steps:
        if isinstance(step, str):
            machine.do(c.DeleteJob(step))
            continue
        if has_circle({step.name: step}):
            continue  # within the job: the parser's to refuse
        would_be = accepted(machine.state) | {step.name: step}
        is_refused = isinstance(machine.submit(step), Rejected)
        assert is_refused == has_circle(would_be)
        assert not has_circle(accepted(machine.state))
