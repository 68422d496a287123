"""Who should vote, and the next single safe step towards it: architecture.md, "Membership and
voters". Pure; the leader asks again after each committed step, so a crash between two of them is
only another start.

    target     the largest odd number ≤ min(registered nodes, raft.voters): a node that is merely
               down still counts, so a failure never shrinks it
    invariant  after every step the live voters are a majority of all voters
    optimum    target voters, all of them registered and live

A voter is *live* when it answered this leader a moment ago, and *dead* when it has not for
dead_voter_grace; in between it is neither, and nothing is done about it. A learner is *ready* when it
is registered, live and has the log, as it says of itself in its heartbeats; the leader sends it the
rest, and counts its vote only once it has all.

A dead voter goes only when a ready learner can take its place, or while three live ones remain and
its going lets one more fail. Remove first, then add: while the replacement is not a voter its own
death costs nothing, and the live voters that decide are the same before and after. Adding is begun
from an odd number only with two learners ready: an even number of voters survives no more than the
odd one below it, and is a place to pass through. Once all this is done, a leader whose node rests
(drains, or is cordoned) hands over.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cube.model.units import format_duration

LIVE_MS = 1_500  # voters answer every heartbeat; as long as a leader stays in office unanswered
LEARNER_LIVE_MS = 3_000  # learners are heard once a second; one heartbeat may be lost
LAG_ENTRIES_MAX = 100  # behind the leader, and still caught up: a message or two
LEARNER_LAG_MAX = 1_000  # the same, of a learner, which says so once a second
ONE_VOTER = "one voter: a second disk is not yet protecting the log; three nodes would"
LIVE_KEPT_MIN = 3  # a dead voter may go without a replacement while this many live ones remain


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A voter, a registered node, or both. `is_registered`: neither removed nor left.

    `silent_ms`: since this leader last heard it, or took office: a voter's answer, a learner's heartbeat.
    `lag`: entries that it lacks; None until it has been heard at all.
    """

    address: str
    name: str = ""
    is_registered: bool = True
    joined_at_ms: int = 0
    silent_ms: int = 0
    lag: int | None = None
    is_resting: bool = False  # draining, or not eligible: about to go away, perhaps


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster as its leader sees it. `members` has every voter, the leader too, by address.
    `has_tried_handover`: this leader, in this term, has tried to hand over because it rests."""

    leader: str
    voters: frozenset[str]
    members: Mapping[str, Member]
    voters_max: int = 5
    dead_voter_grace_ms: int = 10_000
    has_tried_handover: bool = False

    def is_live(self, address: str) -> bool:
        member = self.members[address]
        live_ms = LIVE_MS if address in self.voters else LEARNER_LIVE_MS
        return address == self.leader or (member.lag is not None and member.silent_ms < live_ms)

    def is_dead(self, address: str) -> bool:
        silent_ms = self.members[address].silent_ms
        return address != self.leader and silent_ms >= max(self.dead_voter_grace_ms, LIVE_MS)

    def live(self, voters: frozenset[str]) -> int:
        return sum(self.is_live(address) for address in voters)


class AddVoter(msgspec.Struct, frozen=True):
    address: str
    why: str


class RemoveVoter(msgspec.Struct, frozen=True):
    """Never the leader."""

    address: str
    why: str


class TransferLeadership(msgspec.Struct, frozen=True):
    address: str
    why: str


Step = AddVoter | RemoveVoter | TransferLeadership


class Decision(msgspec.Struct, frozen=True):
    """`step` None: nothing is to be done, or can be. `why` is for people; empty: all is well."""

    step: Step | None
    why: str


def target(registered: int, voters_max: int) -> int:
    """1 → 1, 2 → 1, 3 and 4 → 3, then 5 or what voters_max allows."""
    most = max(1, min(registered, voters_max))
    return most if most % 2 else most - 1


def has_quorum(seen: Seen, voters: frozenset[str]) -> bool:
    return seen.live(voters) > len(voters) // 2


def decide(seen: Seen) -> Decision:
    """The next step. `seen.voters` is committed: one change at a time."""
    if not has_quorum(seen, seen.voters):
        return Decision(None, "no majority of the voters answers: who votes cannot change")
    wanted = target(sum(m.is_registered for m in seen.members.values()), seen.voters_max)
    ready = _ready(seen)
    step = (
        _relieve_leader(seen, ready)
        or _remove_gone_or_dead(seen, wanted, is_replaceable=bool(ready))
        or _remove_surplus(seen, wanted)
        or _add(seen, wanted, ready)
        or _rest_leader(seen)
    )
    return Decision(step, step.why if step is not None else _why_not(seen, wanted))


def may_remove(seen: Seen, address: str) -> str | None:
    """None when `address` can stop voting at once, on an operator's wish; else why not."""
    if address not in seen.voters:
        return None
    name = seen.members[address].name
    if address == seen.leader:
        return f"{name} leads: transfer leadership first"
    if not has_quorum(seen, seen.voters - {address}):
        return f"without the vote of {name} no majority of the voters would answer"
    return None


def may_transfer(seen: Seen, address: str | None) -> str | None:
    """None when leadership can be handed to `address` (None: to whomever heir() says) on an
    operator's wish; else why not."""
    if address is None:
        return None if heir(seen) else "no other voter answers and has the whole log"
    if address == seen.leader:
        return None
    if address not in seen.voters:
        name = seen.members[address].name if address in seen.members else address
        return f"{name} does not vote, so it cannot lead"
    member = seen.members[address]
    if not seen.is_live(address) or member.lag is None:
        return f"{member.name} does not answer"
    if member.lag > LAG_ENTRIES_MAX:
        return f"{member.name} has not caught up: it lacks {member.lag} entries of the log"
    return None


def heir(seen: Seen) -> str | None:
    """Who should lead when this leader does not: a voter that has the log, of those who do not
    rest if there are any, then the one that lacks least."""
    heirs = _heirs(seen)
    return heirs[0].address if heirs else None


def _heirs(seen: Seen) -> list[Member]:
    found = [
        seen.members[address]
        for address in seen.voters - {seen.leader}
        if seen.members[address].is_registered and may_transfer(seen, address) is None
    ]
    return sorted(found, key=lambda member: (member.is_resting, member.lag or 0, member.address))


def _ready(seen: Seen) -> list[Member]:
    """Longest in the cluster first."""
    found = [
        member
        for address, member in seen.members.items()
        if address not in seen.voters
        and member.is_registered
        and seen.is_live(address)
        and member.lag is not None
        and member.lag <= LEARNER_LAG_MAX
    ]
    return sorted(found, key=lambda member: (member.joined_at_ms, member.address))


def _relieve_leader(seen: Seen, ready: list[Member]) -> Step | None:
    """A leader that has left hands over; nobody removes itself."""
    if seen.members[seen.leader].is_registered:
        return None
    why = f"{seen.members[seen.leader].name} leaves the cluster"
    to = heir(seen)
    if to is not None:
        return TransferLeadership(to, why)
    is_alone = not any(
        seen.is_live(address) and seen.members[address].is_registered
        for address in seen.voters - {seen.leader}
    )
    return AddVoter(ready[0].address, why) if ready and is_alone else None


def _rest_leader(seen: Seen) -> Step | None:
    """A leader that drains or is cordoned hands over, once, to one that is not: so it ends. When
    that fails it stays in office: commands wait while leadership is handed over."""
    if not seen.members[seen.leader].is_resting or seen.has_tried_handover:
        return None
    heirs = [member.address for member in _heirs(seen) if not member.is_resting]
    why = f"{seen.members[seen.leader].name} drains or is cordoned"
    return TransferLeadership(heirs[0], why) if heirs else None


def _remove_gone_or_dead(seen: Seen, wanted: int, *, is_replaceable: bool) -> Step | None:
    others = sorted(seen.voters - {seen.leader})
    gone = [address for address in others if not seen.members[address].is_registered]
    dead = [address for address in others if address not in gone and seen.is_dead(address)]
    is_surplus = len(seen.voters) > wanted
    # One dead voter among an odd number costs what its leaving would: then it may as well return.
    is_gain = len(seen.voters) % 2 == 0 or len(dead) > 1
    for address in [*gone, *dead]:
        rest = seen.voters - {address}
        is_spare = is_gain and seen.live(rest) >= LIVE_KEPT_MIN
        may_go = address in gone or is_surplus or is_replaceable or is_spare
        if may_go and has_quorum(seen, rest):
            return RemoveVoter(address, _why_removed(seen, address, is_gone=address in gone))
    return None


def _why_removed(seen: Seen, address: str, *, is_gone: bool) -> str:
    member = seen.members[address]
    if is_gone:
        return f"{member.name or address} is no member of the cluster any more"
    return f"voter {member.name} has been silent for {format_duration(member.silent_ms)}"


def _remove_surplus(seen: Seen, wanted: int) -> Step | None:
    """The silent first, then who joined last."""
    if len(seen.voters) <= wanted:
        return None
    others = [seen.members[address] for address in seen.voters - {seen.leader}]
    others.sort(key=lambda m: (seen.is_live(m.address), -m.joined_at_ms, m.address))
    for member in others:
        if has_quorum(seen, seen.voters - {member.address}):
            return RemoveVoter(member.address, f"{wanted} voters are enough for this many nodes")
    return None


def _add(seen: Seen, wanted: int, ready: list[Member]) -> Step | None:
    count = len(seen.voters)
    if count >= wanted:
        return None
    if count % 2 and (len(ready) < 2 or seen.live(seen.voters) < count):
        return None
    return AddVoter(ready[0].address, f"{count} of {wanted} voters") if ready else None


def _why_not(seen: Seen, wanted: int) -> str:
    silent = sorted(
        seen.members[address].name or address
        for address in seen.voters
        if not seen.is_live(address)
    )
    if silent:
        return f"voters that do not answer, and nobody to replace them yet: {', '.join(silent)}"
    if len(seen.voters) < wanted:
        return f"{len(seen.voters)} of {wanted} voters: waiting for learners that have the log"
    if wanted == 1:
        return ONE_VOTER
    return ""
