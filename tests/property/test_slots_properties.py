"""What is said of a job in short is what is said of it at length, whatever has happened."""

from __future__ import annotations

from hypothesis import given, settings

from cube.api.slots import SlotsOfJobs, slots_of_job
from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.statemachine.apply import apply
from tests.property.test_statemachine_properties import histories


@settings(max_examples=100, deadline=None)
@given(histories())
def test_short_cuts_and_what_is_remembered_say_the_same(entries: list[c.Entry]) -> None:
    state, remembered = ClusterState(), SlotsOfJobs()
    for entry in entries:
        state = apply(state, entry).state
        for job in state.jobs.values():
            whole = slots_of_job(state, job)
            standing = remembered.standing(state, job)
            assert (standing.groups, standing.status) == (whole.groups, whole.status)
            assert remembered.of(state, job) == whole
