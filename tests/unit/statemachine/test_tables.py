"""Sets of task ids under change."""

from __future__ import annotations

import immutables
from hypothesis import given
from hypothesis import strategies as st

from cube.model.ids import JobId, NodeId, TaskId
from cube.model.tally import tally_of
from cube.model.taskids import JobTaskIds, TaskIdSet
from cube.statemachine.tables import JobIds, NodeIds
from tests.builders import Machine, group, job

IDS = [TaskId(f"{n:016x}") for n in range(6)]
STEPS = st.lists(
    st.tuples(st.sampled_from("xy"), st.sampled_from(["add", "gone", "look"]), st.sampled_from(IDS))
)


@given(STEPS)
def test_ids_of_keys_are_what_was_added_and_is_not_gone(
    steps: list[tuple[str, str, TaskId]],
) -> None:
    jobs = JobIds(immutables.Map({JobId("x"): JobTaskIds((IDS[0], IDS[5]))}))
    nodes = NodeIds(immutables.Map({NodeId("x"): TaskIdSet((IDS[5], IDS[0]))}))
    wanted: dict[str, set[TaskId]] = {"x": {IDS[0], IDS[5]}, "y": set()}
    for key, what, id_ in steps:
        if what == "look":
            assert list(jobs.of(JobId(key))) == sorted(wanted[key])
            assert sorted(nodes.of(NodeId(key))) == sorted(wanted[key])
        elif what == "add" and id_ not in wanted[key]:
            jobs.add_all(JobId(key), [id_])
            nodes.add(NodeId(key), id_)
            wanted[key].add(id_)
        elif what == "gone":
            jobs.discard(JobId(key), id_)
            nodes.discard(NodeId(key), id_)
            wanted[key].discard(id_)
    left = {key: ids for key, ids in wanted.items() if ids}
    found = jobs.finish()
    assert {str(key): set(ids) for key, ids in found.items()} == left
    assert all(list(ids) == sorted(ids) for ids in found.values())
    on_nodes = nodes.finish()
    assert {str(key): set(ids) for key, ids in on_nodes.items()} == left
    assert {str(key): len(ids) for key, ids in on_nodes.items()} == {
        key: len(ids) for key, ids in left.items()
    }


def test_a_job_has_other_ids_when_one_of_its_tasks_has_changed() -> None:
    machine = Machine("a")
    for name in "xy":
        machine.submit(job(name, {"g": group(count=2)}))
        machine.place(name, "g", (0, "a", ()), (1, "a", ()))
    x, y = (machine.state.job_named(name) for name in "xy")
    assert x is not None and y is not None
    before = machine.state
    assert before.tally_of_job(x.id)["g"].running == 0
    machine.report(next(iter(before.ids_of_job(x.id))), "running")
    after = machine.state
    assert after.ids_of_job(x.id) == before.ids_of_job(x.id)
    assert after.ids_of_job(x.id) is not before.ids_of_job(x.id)
    assert after.ids_of_job(y.id) is before.ids_of_job(y.id)
    # Of the one who was asked for, it is known how many are what; of the other nobody has asked.
    known = after.ids_of_job(x.id).tally
    assert known is not None
    assert known == tally_of(after.tasks_of_job(x.id))
    assert known["g"].running == 1
    assert before.tally_of_job(x.id)["g"].running == 0
    assert after.ids_of_job(y.id).tally is None


def test_an_older_state_keeps_its_tally_whatever_comes_after() -> None:
    machine = Machine("a")
    machine.submit(job("x", {"g": group(count=3)}))
    machine.place("x", "g", (0, "a", ()), (1, "a", ()))
    x = machine.state.job_named("x")
    assert x is not None
    states = [machine.state]
    states[-1].tally_of_job(x.id)
    machine.place("x", "g", (2, "a", ()))
    states.append(machine.state)
    machine.report(states[0].tasks_of_job(x.id)[0].id, "running")
    states.append(machine.state)
    assert states[-1].ids_of_job(x.id).tally is not None
    for state in states:
        assert state.tally_of_job(x.id) == tally_of(state.tasks_of_job(x.id))
    assert [len(state.tally_of_job(x.id)["g"].slots) for state in states] == [2, 3, 3]


def test_sets_are_the_same_in_any_order() -> None:
    one, other = TaskIdSet(IDS), TaskIdSet(reversed(IDS))
    assert one == other
    assert hash(one) == hash(other)
    assert one != TaskIdSet(IDS[1:])
    assert IDS[2] in one and TaskId("0") not in one
    assert not TaskIdSet() and len(one.without({IDS[0]})) == 5
