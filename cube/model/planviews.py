"""The JSON shapes of dry runs: what cube.api.plans renders and cube.client reads. See cube.model.views."""

from __future__ import annotations

import msgspec

from cube.model.views import ExplanationView


class ChangeView(msgspec.Struct, frozen=True):
    """One field of a job, by its path in the job file. None: it is not there."""

    path: str
    old: object
    new: object


class GroupEffectView(msgspec.Struct, frozen=True):
    """Slots, each counted once at most; see cube.model.dryrun.GroupEffect."""

    create: int
    stop: int
    update_in_place: int
    replace: int
    unplaced: int


class PlacementView(msgspec.Struct, frozen=True):
    """A new task: its slot, and the name of its node."""

    group: str
    slot: int
    node: str


class MoveView(msgspec.Struct, frozen=True):
    """A slot whose task is another afterwards. `came_from`: the old task's node, None: it had none;
    `node`: the new one's, None: it gets none."""

    group: str
    slot: int
    came_from: str | None
    node: str | None


class JobEffectView(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one job. `displaced`: slots that lose their task and find no place. `fails`:
    why its rollout would fail in the end; "": it would not."""

    job: str
    groups: dict[str, GroupEffectView]
    moves: tuple[MoveView, ...]
    explanations: tuple[ExplanationView, ...]
    displaced: int
    fails: str


class JobPlanView(msgspec.Struct, frozen=True, kw_only=True):
    """`version`: what the job is at now, 0: there is none. `changed`: submitting it would make a new
    version, or start a stopped job. `others`: jobs that would be changed, too. `fails`: why the
    rollout would fail in the end, and what becomes of it then; "": it would not. `cut`: why what comes
    later is not foreseen; empty: it is."""

    name: str
    version: int
    changed: bool
    changes: tuple[ChangeView, ...]
    groups: dict[str, GroupEffectView]
    placements: tuple[PlacementView, ...]
    moves: tuple[MoveView, ...]
    explanations: tuple[ExplanationView, ...]
    others: tuple[JobEffectView, ...]
    warnings: tuple[str, ...]
    fails: str
    cut: str
    index: int


class NodePlanView(msgspec.Struct, frozen=True, kw_only=True):
    """`fits`: every task that has to leave the node finds a place. `jobs`: those that change."""

    node: str
    action: str
    fits: bool
    jobs: tuple[JobEffectView, ...]
    cut: str
    index: int
