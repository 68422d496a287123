"""What a dry run says: what would come of one command, had it been given now."""

from __future__ import annotations

import msgspec

from cube.model.explain import Explanation
from cube.model.outcome import Outcome


class GroupEffect(msgspec.Struct, frozen=True):
    """Slots of one group, each counted once at most: in what is not counted, nothing changes.

    `create`: a task where none was. `stop`: a slot that is not wanted any more. `update_in_place`:
    the same task, of another version. `replace`: another task. `unplaced`: wanted, and no place.
    """

    create: int = 0
    stop: int = 0
    update_in_place: int = 0
    replace: int = 0
    unplaced: int = 0

    @property
    def changes(self) -> bool:
        """Some task would begin, end or be of another version."""
        return bool(self.create or self.stop or self.update_in_place or self.replace)


class Move(msgspec.Struct, frozen=True):
    """One slot whose task is another afterwards. Names of nodes; `came_from` "": it had none;
    `node` "": it gets none."""

    group: str
    slot: int
    came_from: str
    node: str


class JobEffect(msgspec.Struct, frozen=True):
    """Groups in which something changes or that have slots without a place, by name; moves by group
    and slot. `displaced`: slots that had a task and end without a place. `fails`: why its rollout
    would fail in the end, if so; that it is taken back then is not in the rest."""

    job: str
    groups: dict[str, GroupEffect]
    moves: tuple[Move, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    displaced: int = 0
    fails: str = ""


class DryRun(msgspec.Struct, frozen=True):
    """`outcome`: what the command itself would be answered; a refusal: the rest is empty. `jobs`: by
    name, those the command is about and others that it changes. `cut`: why the simulation ended
    before everything was at rest; empty when it was. `index`: of the state it began at."""

    outcome: Outcome
    index: int
    jobs: tuple[JobEffect, ...] = ()
    cut: str = ""
