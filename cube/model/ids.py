"""Identities. All are text: an id is only ever compared, shown and looked up.

Sources of the values: adapters make random ones (cube.adapters.entropy); apply derives a task's id
from its plan's seed, so that every replica derives the same.
"""

from __future__ import annotations

import hashlib
from typing import NewType

NodeId = NewType("NodeId", str)  # UUID, made with the node's data directory
JobId = NewType("JobId", str)  # random, made by the proposer; a name may be used again, an id not
TaskId = NewType("TaskId", str)  # 16 hex digits
CommandId = NewType("CommandId", str)  # random, or a hash of actor, method, path, Idempotency-Key
ClusterId = NewType("ClusterId", str)

TASK_ID_BYTES = 8  # 2^64: 1e6 tasks collide with probability 3e-8


class TaskIds:
    """The ids of the tasks that the plan with this seed places. Equal on every replica."""

    def __init__(self, seed: str) -> None:
        self._begun = hashlib.blake2b(f"{seed}/".encode(), digest_size=TASK_ID_BYTES)

    def at(self, ordinal: int) -> TaskId:
        """Of the ordinal-th task."""
        hashed = self._begun.copy()
        hashed.update(b"%d" % ordinal)
        return TaskId(hashed.hexdigest())


def task_id(seed: str, ordinal: int) -> TaskId:
    """The id of the ordinal-th task that the plan with this seed places."""
    return TaskIds(seed).at(ordinal)


def task_name(job: str, group: str, slot: int) -> str:
    """`shop.web.2`: what people call the newest unfinished task of a slot."""
    return f"{job}.{group}.{slot}"
