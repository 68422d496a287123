"""What a peer may say to this member, by what it is to it. The rest is dropped. Pure.

A member never knows for sure who votes: it may be a learner, or have been away while the voters
changed. So Raft's own messages are taken from members that it has not heard of, too, as long as
they cannot depose a leader that it hears (Raft dissertation §4.2.3).
"""

from __future__ import annotations

from typing import Final


class Roles:
    """What a peer is to this member, as far as it knows: a sum of these. (An enum.Flag adds up in
    Python: 5 µs for every message.)"""

    VOTER: Final = 1
    LEARNER: Final = 2  # this member, leading, sends it the log: it is being added
    LEADER: Final = 4  # this member follows it
    GUEST: Final = 8  # a member, and none of the above


ANYONE = Roles.VOTER | Roles.LEARNER | Roles.LEADER | Roles.GUEST
_FROM: dict[str, int] = {
    # A new leader or candidate may be unknown here; see also may_speak().
    "append_entries": ANYONE,
    "request_vote": ANYONE,
    "pre_vote": ANYONE,
    # Answers count from those who were asked.
    "response_vote": Roles.VOTER,
    "pre_vote_ok": Roles.VOTER,
    "next_node_idx": Roles.VOTER | Roles.LEARNER,
    "term_hint": Roles.VOTER | Roles.LEARNER,
    "apply_command_response": Roles.LEADER,
    "timeout_now": Roles.LEADER,
    # Of nodes without a vote, too, whom this member need not have heard of: a node's first command
    # registers it. Refused with a reason where it is handled: its proposer waits.
    "apply_command": ANYONE,
}


# What can depose a leader, or give it more to fear.
_CLAIMS = frozenset(("append_entries", "request_vote", "pre_vote"))


def may_speak(kind: str, roles: int, *, heard_a_leader: bool) -> bool:
    """`heard_a_leader`: one was in office lately as far as this member can tell, perhaps itself.
    Then one who is no voter here and says that it leads, or wants to, has to wait: a real leader
    that this member does not know costs it a few seconds, a false one nothing."""
    roles = roles or Roles.GUEST
    if not roles & _FROM[kind]:
        return False
    is_known = bool(roles & (Roles.VOTER | Roles.LEADER))
    return is_known or kind not in _CLAIMS or not heard_a_leader
