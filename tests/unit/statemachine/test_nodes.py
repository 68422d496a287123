"""Names, status, and the end of nodes."""

from __future__ import annotations

import pytest

from cube.model import commands as c
from cube.model.ids import NodeId
from cube.model.lifecycle import BRAKED, NodeStatus
from cube.model.outcome import Done, NodeRegistered, Rejected, RejectReason
from cube.model.resources import Resources
from cube.statemachine import nodes as nodes_module
from cube.statemachine import snapshot
from cube.statemachine.invariants import violations
from tests.builders import Machine, facts, group, job

N1 = NodeId("id-n1")


def register(machine: Machine, id_: str, name: str, **changes: object) -> str:
    outcome = machine.do(c.RegisterNode(facts(name, id=NodeId(id_), **changes)))
    assert isinstance(outcome, NodeRegistered), outcome
    assert violations(machine.state) == []
    return outcome.name


def test_a_name_that_is_taken_gets_a_number() -> None:
    machine = Machine()
    assert [register(machine, id_, "web") for id_ in "abc"] == ["web", "web-2", "web-3"]
    assert register(machine, "b", "web", version="2") == "web-2"  # the same wish: the same name


def test_a_free_number_is_used_again() -> None:
    machine = Machine()
    for id_ in "abc":
        register(machine, id_, "web")
    machine.do(c.SetNodeStatus(1, NodeId("b"), NodeStatus.DOWN))
    machine.do(c.RemoveNode(NodeId("b")))
    assert register(machine, "d", "web") == "web-2"


def test_a_renamed_node_frees_its_old_name() -> None:
    machine = Machine()
    register(machine, "a", "one")
    assert register(machine, "a", "two") == "two"
    assert register(machine, "b", "one") == "one"


def test_a_node_may_be_renamed_to_what_it_is_called() -> None:
    machine = Machine()
    register(machine, "a", "web")
    assert register(machine, "b", "web") == "web-2"
    assert register(machine, "b", "web-2") == "web-2"


def test_a_node_renamed_to_a_name_in_use_gets_a_number() -> None:
    machine = Machine()
    register(machine, "a", "one")
    register(machine, "b", "two")
    assert register(machine, "b", "one") == "one-2"


def test_the_number_of_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes_module, "NODES_MAX", 2)
    machine = Machine("n1", "n2")
    outcome = machine.do(c.RegisterNode(facts("n3")))
    assert isinstance(outcome, Rejected)
    assert outcome.reason is RejectReason.LIMIT
    assert isinstance(machine.do(c.RegisterNode(facts("n1", version="2"))), NodeRegistered)


def test_new_facts_keep_what_others_wrote() -> None:
    machine = Machine("n1")
    machine.do(c.SetLabels(N1, {"zone": "a"}))
    machine.do(c.SetEligibility(N1, False))
    machine.do(c.SetNodeStatus(1, N1, NodeStatus.SUSPECT, "silent"))
    machine.do(c.RegisterNode(facts("n1", capacity=Resources(1, 1, 1), labels={"zone": "b"})))
    node = machine.state.nodes[N1]
    assert (node.label("zone"), node.eligible, node.status) == ("a", False, NodeStatus.SUSPECT)
    assert node.facts.capacity == Resources(1, 1, 1)
    before = machine.state.nodes
    machine.do(c.RegisterNode(node.facts))
    assert machine.state.nodes == before
    assert machine.steps[-1].events == ()


def test_cordon_drain_and_labels_outlive_the_node_its_leader_and_the_log() -> None:
    machine = Machine("n1")
    machine.do(c.SetEligibility(N1, False))
    machine.do(c.SetDrain(N1, 60_000))
    machine.do(c.SetLabels(N1, {"zone": "a"}))
    told = machine.state.nodes[N1]
    machine.do(c.SetNodeStatus(1, N1, NodeStatus.DOWN, "silent"))
    machine.term = 2  # another leader; and the node starts again, as it is configured now
    machine.do(c.RegisterNode(facts("n1", labels={"zone": "b", "disk": "ssd"})))
    machine.do(c.SetNodeStatus(2, N1, NodeStatus.READY))
    for state in (machine.state, snapshot.load(snapshot.dump(machine.state))):
        node = state.nodes[N1]
        assert (node.eligible, node.drain_deadline_ms) == (False, told.drain_deadline_ms)
        assert node.all_labels() == {"zone": "a", "disk": "ssd"}
        assert node.status is NodeStatus.READY
        assert not node.accepts_tasks


@pytest.mark.parametrize(
    "body",
    [
        c.SetNodeStatus(1, NodeId("no"), NodeStatus.DOWN),
        c.SetEligibility(NodeId("no"), True),
        c.SetDrain(NodeId("no"), 1),
        c.SetLabels(NodeId("no"), {}),
        c.RemoveNode(NodeId("no")),
    ],
)
def test_a_node_that_is_not_there(body: c.Body) -> None:
    outcome = Machine().do(body)
    assert isinstance(outcome, Rejected)
    assert outcome.reason is RejectReason.NOT_FOUND


def test_a_status_of_another_term_is_refused() -> None:
    machine = Machine("n1")
    outcome = machine.do(c.SetNodeStatus(0, N1, NodeStatus.DOWN))
    assert isinstance(outcome, Rejected)
    assert outcome.reason is RejectReason.STALE_TERM
    assert machine.state.nodes[N1].status is NodeStatus.READY


@pytest.mark.parametrize(
    ("body", "again"),
    [
        (c.SetNodeStatus(1, N1, NodeStatus.SUSPECT), c.SetNodeStatus(1, N1, NodeStatus.SUSPECT)),
        (c.SetEligibility(N1, False), c.SetEligibility(N1, False)),
        (c.SetLabels(N1, {"a": "b"}), c.SetLabels(N1, {"a": "b"})),
    ],
)
def test_what_is_so_already_changes_nothing(body: c.Body, again: c.Body) -> None:
    machine = Machine("n1")
    assert machine.do(body) == Done(changed=True)
    assert machine.do(again) == Done(changed=False)
    assert machine.steps[-1].events == ()


def test_a_drain_has_a_deadline_by_the_leaders_clock_and_an_end() -> None:
    machine = Machine("n1")
    assert machine.do(c.SetDrain(N1, None)) == Done(changed=False)
    assert machine.do(c.SetDrain(N1, 1000)) == Done(changed=True)
    assert machine.state.nodes[N1].drain_deadline_ms == machine.now_ms + 1000
    assert not machine.state.nodes[N1].accepts_tasks
    assert isinstance(machine.do(c.SetDrain(N1, -1)), Rejected)
    assert machine.do(c.SetDrain(N1, None)) == Done(changed=True)
    assert machine.state.nodes[N1].accepts_tasks


def test_a_new_reason_for_the_same_status_is_told_and_its_time_stays() -> None:
    machine = Machine("n1")
    machine.do(c.SetNodeStatus(1, N1, NodeStatus.SUSPECT, "gossip says dead"))
    at_ms = machine.state.nodes[N1].status_at_ms
    machine.now_ms += 1_000
    assert machine.do(c.SetNodeStatus(1, N1, NodeStatus.SUSPECT, BRAKED)) == Done()
    node = machine.state.nodes[N1]
    assert (node.status_reason, node.status_at_ms) == (BRAKED, at_ms)


def test_a_node_that_only_the_brake_keeps_from_being_down_may_be_removed() -> None:
    machine = Machine("n1", "n2")
    machine.do(c.SetNodeStatus(1, N1, NodeStatus.SUSPECT, BRAKED))
    assert machine.do(c.RemoveNode(N1)) == Done()
    assert N1 not in machine.state.nodes


@pytest.mark.parametrize(
    ("status", "may_go"),
    [
        (NodeStatus.READY, False),
        (NodeStatus.SUSPECT, False),
        (NodeStatus.DOWN, True),
        (NodeStatus.LEFT, True),
    ],
)
def test_only_a_node_that_is_away_is_removed(status: NodeStatus, may_go: bool) -> None:
    machine = Machine("n1", "n2")
    machine.submit(job("web", {"g": group(count=2)}))
    machine.submit(job("old"))
    machine.place("web", "g", (0, "n1", ()), (1, "n2", ()))
    machine.place("old", "g", (0, "n1", ()))
    machine.do(c.SetNodeStatus(1, N1, status))
    machine.do(c.DeleteJob("old"))
    outcome = machine.do(c.RemoveNode(N1))
    if may_go:
        assert outcome == Done()
        assert {t.node_id for t in machine.state.tasks.values()} == {NodeId("id-n2")}
        assert set(machine.state.reserved) == {NodeId("id-n2")}
        assert [j.name for j in machine.state.jobs.values()] == ["web"]  # its last task went
        assert register(machine, "new", "n1") == "n1"
    else:
        assert isinstance(outcome, Rejected)
        assert outcome.reason is RejectReason.REFUSED
        assert N1 in machine.state.nodes
    assert violations(machine.state) == []
