"""JSON shapes about the cluster as a whole: api renders them, client reads them."""

from __future__ import annotations

import msgspec


class SettingsView(msgspec.Struct, frozen=True):
    """What all nodes agree on. `policy`: of groups that name none."""

    policy: str
    preemption: bool
    rebalance: bool


class SettingsChanged(msgspec.Struct, frozen=True):
    """The answer to a change: what holds now."""

    settings: SettingsView
    changed: bool
    index: int
