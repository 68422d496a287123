"""The memory of outcomes, and what apply keeps of an entry."""

from __future__ import annotations

import pytest

from cube.model import commands as c
from cube.model.ids import ClusterId, CommandId, JobId
from cube.model.outcome import Done, JobAccepted, Rejected, RejectReason
from cube.statemachine import apply as apply_module
from cube.statemachine.invariants import violations
from cube.statemachine.snapshot import dump, load
from tests.builders import Machine, job


def test_the_oldest_outcome_goes_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_module, "OUTCOMES_MAX", 3)
    machine = Machine()
    for number in range(5):
        machine.do(c.Noop(), command_id=f"c{number}")
        assert len(machine.state.outcomes) <= 3
        assert violations(machine.state) == []
    assert sorted(machine.state.outcomes) == ["c2", "c3", "c4"]
    before = machine.state.outcomes
    machine.do(c.Noop(), command_id="c2")  # a repetition does not make it newer
    assert machine.state.outcomes == before
    machine.do(c.Noop(), command_id="c5")
    assert sorted(machine.state.outcomes) == ["c3", "c4", "c5"]
    restored = Machine(state=load(dump(machine.state)))
    restored.do(c.Noop(), command_id="c6")
    assert sorted(restored.state.outcomes) == ["c4", "c5", "c6"]


def test_a_repetition_gets_the_first_outcome_and_its_index() -> None:
    machine = Machine()
    body = c.SubmitJob(job("web"), JobId("j"))
    first = machine.do(body, command_id="k", digest="d")
    index = machine.state.index
    machine.do(c.DeleteJob("web"))
    again = machine.do(body, command_id="k", digest="d")
    assert isinstance(first, JobAccepted)
    assert again == first
    assert machine.steps[-1].index == index
    assert machine.state.index == index + 2
    assert machine.state.job_named("web") is None


def test_a_refusal_is_remembered_too() -> None:
    machine = Machine()
    refused = machine.do(c.StopJob("web"), command_id="k")
    machine.submit(job("web"))
    assert machine.do(c.StopJob("web"), command_id="k") == refused
    assert isinstance(refused, Rejected)


def test_a_key_with_another_body_is_refused_and_does_nothing() -> None:
    machine = Machine()
    machine.do(c.SubmitJob(job("a"), JobId("a")), command_id="k", digest="1")
    outcome = machine.do(c.SubmitJob(job("b"), JobId("b")), command_id="k", digest="2")
    assert isinstance(outcome, Rejected)
    assert outcome.reason is RejectReason.KEY_REUSED
    assert machine.state.job_named("b") is None
    kept = machine.state.outcomes[CommandId("k")]
    assert kept.digest == "1"


def test_a_cluster_is_made_once() -> None:
    machine = Machine()
    outcome = machine.do(c.InitCluster(ClusterId("other"), "other"))
    assert isinstance(outcome, Rejected)
    assert (machine.state.cluster_id, machine.state.cluster_name) == ("cluster", "test")


def test_time_in_the_state_never_goes_back() -> None:
    machine = Machine()
    latest = machine.now_ms
    machine.now_ms -= 1000
    assert machine.do(c.Noop()) == Done(changed=False)
    assert machine.state.now_ms == latest
    machine.do(c.Noop(), command_id="again")
    machine.do(c.Noop(), command_id="again")
    assert machine.state.now_ms == latest
