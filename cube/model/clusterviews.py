"""JSON shapes about the cluster as a whole: api renders them, client reads them."""

from __future__ import annotations

import msgspec


class SettingsView(msgspec.Struct, frozen=True):
    """What all nodes agree on. `policy`: of groups that name none. `finished_*`: which ended tasks are
    remembered (model.cluster.ClusterSettings); durations as they may be written."""

    policy: str
    preemption: bool
    rebalance: bool
    finished_per_slot: int
    finished_for: str
    finished_beyond: str


class SettingsChanged(msgspec.Struct, frozen=True):
    """The answer to a change: what holds now."""

    settings: SettingsView
    changed: bool
    index: int


class RebalanceMoveView(msgspec.Struct, frozen=True):
    """`crowding`: by how much the sum of squared numbers of the group's tasks per zone or node falls;
    `use`: by how much the sum of squared shares of cpu and memory does."""

    task: str
    from_node: str
    to_node: str
    crowding: int
    use: float


class RebalanceView(msgspec.Struct, frozen=True):
    """What would be moved in the end if nothing else changed, the greatest gain first. `running`: a
    round is under way. `cut`: there may be more."""

    running: bool
    moves: tuple[RebalanceMoveView, ...]
    cut: bool


class RebalanceStarted(msgspec.Struct, frozen=True):
    """`changed` false: a round was under way already."""

    changed: bool
    index: int
