"""The rules of who votes, one by one."""

from __future__ import annotations

import msgspec
import pytest

from cube.scheduler.voters import (
    LAG_ENTRIES_MAX,
    LEARNER_LAG_MAX,
    AddVoter,
    Member,
    RemoveVoter,
    Seen,
    TransferLeadership,
    decide,
    heir,
    may_remove,
    may_transfer,
)

GRACE_MS = 10_000


def seen(voters: str, learners: str = "", **changes: object) -> Seen:
    """One letter a node, the first leads: a live one in upper case, a dead one in lower case."""
    members = {}
    for place, letter in enumerate(voters + learners):
        is_live = letter.isupper()
        members[letter.upper()] = Member(
            address=letter.upper(),
            name=letter.upper(),
            joined_at_ms=place,
            silent_ms=0 if is_live else GRACE_MS,
            lag=0 if is_live else None,
        )
    view = Seen(
        leader=voters[0],
        voters=frozenset(voters.upper()),
        members=members,
        dead_voter_grace_ms=GRACE_MS,
    )
    return msgspec.structs.replace(view, **changes)


def but(view: Seen, address: str, **changes: object) -> Seen:
    member = msgspec.structs.replace(view.members[address], **changes)
    return msgspec.structs.replace(view, members={**view.members, address: member})


def added(view: Seen) -> str | None:
    step = decide(view).step
    assert step is None or isinstance(step, AddVoter), step
    return step.address if step is not None else None


def removed(view: Seen) -> str | None:
    step = decide(view).step
    assert step is None or isinstance(step, RemoveVoter), step
    return step.address if step is not None else None


def test_one_and_two_nodes_have_one_voter_and_say_what_that_means() -> None:
    for view in (seen("A"), seen("A", "B")):
        assert decide(view).step is None
        assert "second disk" in decide(view).why


def test_two_ready_learners_make_three_voters_the_longest_joined_first() -> None:
    assert added(seen("A", "BC")) == "B"
    assert added(seen("AB", "C")) == "C"
    assert decide(seen("ABC", "D")) == decide(seen("ABC"))
    assert decide(seen("ABC", "D")).why == ""


def test_growth_waits_for_two_that_have_the_log() -> None:
    for lag in (None, LEARNER_LAG_MAX + 1):
        view = but(seen("A", "BC"), "C", lag=lag)
        assert added(view) is None
        assert "1 of 3 voters" in decide(view).why
    assert added(but(seen("A", "BC"), "C", lag=LEARNER_LAG_MAX)) == "B"


def test_growth_from_an_odd_number_waits_for_silent_voters() -> None:
    view = but(seen("ABC", "DE"), "C", lag=None, silent_ms=3_000)
    assert added(view) is None


def test_a_dead_voter_goes_as_its_replacement_comes() -> None:
    assert removed(seen("ABc", "D")) == "C"
    assert added(seen("AB", "cD")) == "D"


def test_a_silent_voter_has_time_until_the_grace_is_over() -> None:
    view = but(seen("ABc", "D"), "C", silent_ms=GRACE_MS - 1)
    assert decide(view).step is None
    assert decide(view).why.endswith("C")


def test_a_dead_voter_without_replacement_stays() -> None:
    assert removed(seen("ABc")) is None
    assert removed(seen("ABc", "d")) is None
    assert removed(but(seen("ABc", "D"), "D", lag=LEARNER_LAG_MAX + 1)) is None
    assert removed(seen("ABCDe")) is None  # four and five survive one more death alike


def test_dead_voters_go_while_three_live_ones_remain_and_gain_by_it() -> None:
    assert removed(seen("ABCde")) == "D"
    assert removed(seen("ABCe", "d")) == "E"


def test_a_removed_node_votes_no_more() -> None:
    assert removed(but(seen("ABc", "D"), "C", is_registered=False, silent_ms=0)) == "C"
    assert removed(but(seen("ABC"), "C", is_registered=False)) == "C"


def test_nobody_is_removed_whose_vote_is_needed() -> None:
    view = but(seen("ABc"), "B", is_registered=False)
    # Two are registered, one of them dead: B's vote is needed until C is gone.
    assert removed(view) == "C"
    assert may_remove(view, "B") is not None
    assert may_remove(view, "C") is None
    assert may_remove(view, "A") is not None
    assert may_remove(view, "Z") is None


def test_the_target_shrinks_by_removals_and_the_setting_only() -> None:
    assert removed(seen("ABCDE", voters_max=3)) == "E"
    assert removed(seen("AB")) == "B"
    assert removed(seen("ABCde", voters_max=3)) == "D"


def test_a_leader_that_left_hands_over_before_anything_else() -> None:
    view = but(seen("ABC", "D"), "A", is_registered=False)
    assert isinstance(decide(view).step, TransferLeadership)
    assert added(but(seen("A", "B"), "A", is_registered=False)) == "B"


def test_a_leader_that_left_waits_for_a_voter_that_lacks_some_entries() -> None:
    view = but(seen("ABC", "D"), "A", is_registered=False)
    behind = {"lag": LAG_ENTRIES_MAX + 1}
    assert decide(but(but(view, "B", **behind), "C", **behind)).step is None


def handed_to(view: Seen) -> str | None:
    step = decide(view).step
    assert step is None or isinstance(step, TransferLeadership), step
    return step.address if step is not None else None


@pytest.mark.parametrize(
    ("changes", "tried", "to"),
    [
        ({}, False, None),  # nobody rests
        ({"A": {"is_resting": True}}, False, "B"),
        ({"A": {"is_resting": True}}, True, None),  # once in a term
        ({"B": {"is_resting": True}}, False, None),  # a follower's rest moves nothing
        ({"A": {"is_resting": True}, "B": {"is_resting": True}}, False, "C"),
        ({"A": {"is_resting": True}, "B": {"is_resting": True}, "C": {"is_resting": True}},
         False, None),  # it would come back at once
        ({"A": {"is_resting": True}, "B": {"lag": 5}}, False, "C"),
        ({"A": {"is_resting": True}, "B": {"lag": None}, "C": {"lag": LAG_ENTRIES_MAX + 1}},
         False, None),
        ({"A": {"is_resting": True}, "B": {"silent_ms": 2_000}}, False, "C"),
    ],
)  # fmt: skip
def test_a_leader_that_rests_hands_over_once_to_one_that_does_not(
    changes: dict[str, dict[str, object]], tried: bool, to: str | None
) -> None:
    view = seen("ABC", has_tried_handover=tried)
    for address, change in changes.items():
        view = but(view, address, **change)
    assert handed_to(view) == to


def test_a_leader_that_rests_sees_to_the_voters_first() -> None:
    view = but(seen("ABc", "D"), "A", is_resting=True)
    assert removed(view) == "C"
    assert handed_to(but(seen("A", "B"), "A", is_resting=True)) is None  # a learner cannot lead


@pytest.mark.parametrize(
    ("address", "refusal"),
    [
        (None, ""),
        ("A", ""),
        ("B", ""),
        ("C", "C does not answer"),
        ("D", "D does not vote, so it cannot lead"),
        ("Z", "Z does not vote, so it cannot lead"),
        ("E", "E has not caught up: it lacks 101 entries of the log"),
    ],
)
def test_leadership_goes_on_request_to_who_can_lead(address: str | None, refusal: str) -> None:
    view = but(seen("ABcE", "D"), "E", lag=LAG_ENTRIES_MAX + 1)
    assert (may_transfer(view, address) or "") == refusal


def test_on_request_somebody_that_rests_leads_if_there_is_nobody_else() -> None:
    view = but(seen("ABC"), "B", is_resting=True)
    assert heir(view) == "C"
    assert heir(but(view, "C", lag=None)) == "B"
    assert heir(seen("Abc")) is None
    assert may_transfer(seen("Abc"), None) == "no other voter answers and has the whole log"


def test_without_a_majority_nothing_is_done() -> None:
    view = seen("Abc", "DE")
    assert decide(view).step is None
    assert "majority" in decide(view).why


def test_a_voter_that_has_not_answered_this_leader_is_not_live() -> None:
    """A new leader's clock starts at its election: silence of 0 says nothing."""
    view = but(but(seen("ABC", "DE"), "B", lag=None, silent_ms=0), "C", lag=None, silent_ms=0)
    assert decide(view).step is None
