"""score.py for many nodes at once: the same operations in the same order, so the same numbers."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from cube.model.resources import Resources
from cube.model.spec import PlacementPolicy
from cube.scheduler import score

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_TABLE = np.array(score.TABLE, dtype=np.float64)


class Ask(msgspec.Struct, frozen=True):
    """What decides a node's cost and fitness for tasks that are alike, and nothing else."""

    driver: str
    constraints: tuple[Any, ...]
    permissions: tuple[str, ...]
    need: Resources
    policy: PlacementPolicy


def power(utilisation: Floats) -> Floats:
    """score.power for many: the same operations in the same order."""
    scaled = utilisation * score.STEPS
    whole = scaled.astype(np.int64)
    rest = scaled - whole
    grown: Floats = _TABLE[whole] * (1.0 + rest * (score.C1 + rest * (score.C2 + rest * score.C3)))
    return grown


def share(used: Ints, capacity: Ints) -> Floats:
    """score.share for many."""
    safe = np.where(capacity > 0, capacity, 1)
    cut: Floats = np.minimum(np.maximum(used / safe, 0.0), score.SHARE_MAX)
    return np.where(capacity > 0, cut, 0.0)


def policy_cost(
    ask: Ask,
    unit: float,
    used: Ints,
    capacity: Ints,
    powers: tuple[Floats, Floats],
    growth: tuple[Floats, Floats],
) -> Ints:
    """score.cost for many. `powers` are those of the present use, `growth` those of the need."""
    x, y = powers
    need = ask.need
    raw: Floats
    match ask.policy:
        case PlacementPolicy.EPVM:
            raw = x * ((growth[0] - 1.0) * unit) + y * ((growth[1] - 1.0) * unit)
        case PlacementPolicy.BINPACK:
            raw = (score.COST_UNITS / growth[0]) / x + (score.COST_UNITS / growth[1]) / y
        case PlacementPolicy.SPREAD:
            u, v = share(used[0], capacity[0]), share(used[1], capacity[1])
            a = share(np.full(used[0].shape, need.cpu_milli), capacity[0])
            b = share(np.full(used[1].shape, need.memory_bytes), capacity[1])
            raw = ((u + v) + (a + b)) * score.COST_UNITS
        case PlacementPolicy.GREEDY:
            u = share(used[0], capacity[0])
            a = share(np.full(used[0].shape, need.cpu_milli), capacity[0])
            raw = (u + a) * score.COST_UNITS
        case PlacementPolicy.ROUNDROBIN:
            raise AssertionError("roundrobin's cost is a count")
    cut: Ints = np.minimum(raw, float(score.COST_MAX)).astype(np.int64)
    return cut
