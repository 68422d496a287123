"""The checker itself: histories that it must accept, and histories that it must not."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.lincheck import (
    Action,
    Operation,
    Read,
    Refused,
    Register,
    Unknown,
    Verdict,
    Write,
    check,
    check_key,
)

ABSENT = Register()


def op(action: Action, call: float, end: float, client: int = 0, key: str = "x") -> Operation:
    return Operation(client, key, action, call, end)


def at(version: int, value: str) -> Read:
    return Read(Register(version, value))


GOOD = {
    "nothing": [],
    "absent, written, read": [
        op(Read(ABSENT), 0, 1),
        op(Write("a", 1), 2, 3),
        op(at(1, "a"), 4, 5),
    ],
    "a read beside a write sees either": [
        op(Write("a", 1), 0, 10),
        op(Read(ABSENT), 1, 2, 1),
        op(at(1, "a"), 3, 4, 2),
    ],
    "an unknown write shows up late": [
        op(Unknown("a"), 0, 1),
        op(Read(ABSENT), 2, 3),
        op(at(1, "a"), 4, 5),
    ],
    "an unknown write never happens": [
        op(Unknown("a"), 0, 1),
        op(Read(ABSENT), 2, 3),
        op(Write("b", 1), 4, 5),
    ],
    "an unknown write at a version that has passed does nothing": [
        op(Write("a", 1), 0, 1),
        op(Unknown("b", expected=0), 2, 3),
        op(Write("c", 2), 4, 5),
        op(at(2, "c"), 6, 7),
    ],
    "one of two at the same version wins": [
        op(Write("a", 1, expected=0), 0, 5),
        op(Refused(0), 0, 5, 1),
        op(at(1, "a"), 6, 7),
    ],
    "a refusal by an unknown write": [
        op(Unknown("a"), 0, 1),
        op(Refused(0), 2, 3),
        op(at(1, "a"), 4, 5),
    ],
}  # fmt: skip

BAD = {
    "a stale read": [op(Write("a", 1), 0, 1), op(Write("b", 2), 2, 3), op(at(1, "a"), 4, 5)],
    "a read that turns back": [
        op(Write("a", 1), 0, 10),
        op(at(1, "a"), 1, 2, 1),
        op(Read(ABSENT), 3, 4, 2),
    ],
    "an acknowledged write is lost": [op(Write("a", 1), 0, 1), op(Read(ABSENT), 2, 3)],
    "a lost write is written over": [op(Write("a", 1), 0, 1), op(Write("b", 1), 2, 3)],
    "a value that nobody wrote": [op(at(1, "a"), 0, 1)],
    "a write before its call": [op(at(1, "a"), 0, 1), op(Write("a", 1), 2, 3)],
    "a write that happened twice": [
        op(Write("a", 1), 0, 1),
        op(Write("b", 2), 2, 3),
        op(at(3, "a"), 4, 5),
    ],
    "a retry that counted twice": [op(Write("a", 1), 0, 1), op(at(2, "a"), 2, 3)],
    "two winners at one version": [
        op(Write("a", 1, expected=0), 0, 5),
        op(Write("b", 1, expected=0), 0, 5, 1),
    ],
    "a write at a version that had passed": [
        op(Write("a", 1), 0, 1),
        op(Write("b", 2, expected=0), 2, 3),
    ],
    "a refusal without a reason": [
        op(Write("a", 1), 0, 1),
        op(Refused(1), 2, 3),
        op(at(1, "a"), 4, 5),
    ],
    "an unknown write that happens twice": [
        op(Unknown("a"), 0, 1),
        op(at(1, "a"), 2, 3),
        op(Write("b", 2), 4, 5),
        op(at(3, "a"), 6, 7),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_accepts(name: str) -> None:
    assert check_key("x", GOOD[name]).verdict is Verdict.GOOD


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str) -> None:
    found = check_key("x", BAD[name])
    assert found.verdict is Verdict.BAD
    assert "no order explains" in found.why


def test_each_key_is_found_for_itself() -> None:
    history = [
        op(Write("a", 1), 0, 1, key="good"),
        op(Write("a", 1), 0, 1, key="bad"),
        op(Read(ABSENT), 2, 3, key="bad"),
    ]
    found = {one.key: one.verdict for one in check(history)}
    assert found == {"good": Verdict.GOOD, "bad": Verdict.BAD}


def test_what_is_too_hard_is_undecided() -> None:
    assert check_key("x", GOOD["absent, written, read"], steps_max=1).verdict is Verdict.UNDECIDED


def by_trying_all(operations: list[Operation]) -> bool:
    """The definition, word for word: slow, and nothing to get wrong."""
    known = [o for o in operations if not isinstance(o.action, Unknown)]
    unknown = [o for o in operations if isinstance(o.action, Unknown)]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *some]):
                if _is_in_time(order) and _is_explained(order):
                    return True
    return False


def _is_in_time(order: tuple[Operation, ...]) -> bool:
    for first, second in itertools.combinations(order, 2):
        if not isinstance(second.action, Unknown) and second.end < first.call:
            return False
    return True


def _is_explained(order: tuple[Operation, ...]) -> bool:
    now = Register()
    for operation in order:
        then = operation.action.after(now)
        if then is None:
            return False
        now = then
    return True


versions = st.integers(0, 3)
values = st.sampled_from("ab")
actions = st.one_of(
    st.builds(lambda v, x: Read(Register(v, x if v else "")), versions, values),
    st.builds(Write, values, st.integers(1, 3), st.none() | versions),
    st.builds(Refused, versions),
    st.builds(Unknown, values, st.none() | versions),
)
operations = st.builds(
    lambda action, call, lasts: op(action, call, call + lasts),
    actions, st.integers(0, 8), st.integers(0, 5),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(operations, max_size=5))
def test_agrees_with_the_definition(history: list[Operation]) -> None:
    expected = Verdict.GOOD if by_trying_all(history) else Verdict.BAD
    assert check_key("x", history).verdict is expected


def simulated(count: int, seed: int) -> list[Operation]:
    """What clients of a perfect register see, eight at once, with lost answers."""
    dice = random.Random(seed)
    free_at = [0.0] * 8
    moments = []
    for number in range(count):
        client = dice.randrange(8)
        call = free_at[client] + dice.random()
        end = free_at[client] = call + 3 * dice.random()
        moments.append((dice.uniform(call, end), number, client, call, end))
    now = Register()
    history = []
    for _, number, client, call, end in sorted(moments):
        expected = now.version - dice.choice([0, 0, 1]) if dice.random() < 0.5 else None
        action: Action
        then = Register(now.version + 1, f"v{number}")
        is_refused = expected is not None and expected != now.version
        if dice.random() < 0.4:
            action = Read(now)
        elif dice.random() < 0.05:
            action = Unknown(then.value, expected)
            if not is_refused and dice.random() < 0.5:
                now = then
        elif is_refused:
            assert expected is not None
            action = Refused(expected)
        else:
            action, now = Write(then.value, then.version, expected), then
        history.append(op(action, call, end, client))
    return history


@pytest.mark.parametrize("seed", range(3))
def test_long_histories_are_decided(seed: int) -> None:
    history = simulated(1_000, seed)
    assert check_key("x", history).verdict is Verdict.GOOD
    acknowledged = [h.action for h in history if isinstance(h.action, Write)]
    middle = acknowledged[len(acknowledged) // 2]
    late = max(h.end for h in history) / 2 + 200
    stale = op(Read(Register(middle.version, middle.value)), late, late, 9)
    lost = op(Write("never", middle.version), 0, late, 9)
    for wrong in (stale, lost):
        assert check_key("x", [*history, wrong]).verdict is Verdict.BAD
