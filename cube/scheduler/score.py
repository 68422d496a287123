"""What a placement costs: smaller is better. Integers once they are compared.

A node's key is `points ‖ cost ‖ rank` in one int64:
- points: wishes that go before the policy. A matching affinity subtracts its weight, each task of the
  group that is already there adds SAME_GROUP_POINTS, having just failed there adds FAILED_HERE_POINTS.
- cost: the policy's own measure, quantised.
- rank: a permutation of the nodes seeded by the job's name, so that equal nodes do not all mean the first.

Both the vectorised scan and a plain loop use these formulas, in the same order of operations, so
that they agree to the last bit: IEEE 754 additions and multiplications are the same in both. `power`
is a table and a polynomial because libm's and numpy's pow differ in the last bit.

Source of epvm: Amir et al., "An Opportunity Cost Approach for Job Assignment in a Scalable Computing
Cluster", IEEE TPDS 11(7), 2000: the cost of a resource is BASE^utilisation, and a job goes where it
makes the sum of costs grow least. (The book's version cancels its cpu term and checks only disk.)
"""

from __future__ import annotations

import hashlib
import math

from cube.model.resources import Resources
from cube.model.spec import GroupSpec, JobType, PlacementPolicy

BASE = 100.0  # how much dearer a full resource is than an empty one; the paper takes the node count
STEPS = 1024  # table entries per unit of utilisation
SHARE_MAX = 2.0  # utilisation is cut here: a node may shrink below what it holds

RANK_BITS = 17
COST_BITS = 26
POINT_BITS = 20
NODES_MAX = 1 << RANK_BITS
COST_MAX = (1 << COST_BITS) - 1
POINTS_MAX = (1 << (POINT_BITS - 1)) - 2  # one less than fits: mirror.NO_PLACE is above them
COST_UNITS = float(1 << 24)  # per unit of a cost that is at most 2 or so
MARGINAL_UNITS = float(
    1 << 19
)  # per normalised marginal cost: at most BASE of them, below COST_MAX

SAME_GROUP_POINTS = 50  # the default weight of one affinity
SAME_GROUP_MAX = 4_000  # counted tasks: keeps points in their bits
FAILED_HERE_POINTS = 100_000  # more than any affinities: elsewhere, if there is an elsewhere

_LOG = math.log(BASE) / STEPS
C1, C2, C3 = _LOG, _LOG * _LOG / 2, _LOG * _LOG * _LOG / 6
TABLE: tuple[float, ...] = tuple(BASE ** (i / STEPS) for i in range(int(SHARE_MAX * STEPS) + 1))


def share(used: int, capacity: int) -> float:
    """Utilisation, 0 when there is no such resource to use."""
    if capacity <= 0:
        return 0.0
    return min(max(used / capacity, 0.0), SHARE_MAX)


def power(utilisation: float) -> float:
    """BASE^utilisation to 11 digits, and the very same digits as mirror.power gives."""
    scaled = utilisation * STEPS
    whole = int(scaled)
    rest = scaled - whole
    return TABLE[whole] * (1.0 + rest * (C1 + rest * (C2 + rest * C3)))


def growth(need: int, capacity: int) -> float:
    """By what factor one task lets the resource's cost grow: BASE^(need / capacity)."""
    return power(share(need, capacity))


def counts_same_group(policy: PlacementPolicy, job_type: JobType) -> bool:
    """Whether tasks of the group that are already on a node make it less wanted.

    A service's replicas are there to survive a node, so epvm spreads them; batch work only wants
    room; binpack and greedy are asked for by people who mean it (max_per_node bounds them)."""
    match policy:
        case PlacementPolicy.SPREAD | PlacementPolicy.ROUNDROBIN:
            return True
        case PlacementPolicy.EPVM:
            return job_type is not JobType.BATCH
        case PlacementPolicy.BINPACK | PlacementPolicy.GREEDY:
            return False


def marginal_unit(asks: list[tuple[float, float]]) -> float:
    """Cost units per unit of marginal cost, from every size class's growth for one ask.

    Normalised by the dearest class on an empty node, so that a small ask is told apart as finely as
    a large one."""
    most = max(((cpu - 1.0) + (memory - 1.0) for cpu, memory in asks), default=0.0)
    return MARGINAL_UNITS / most if most > 0.0 else 0.0


def cost(
    policy: PlacementPolicy,
    used: Resources,
    capacity: Resources,
    need: Resources,
    unit: float,
    active: int,
) -> int:
    """The policy's cost of one more task that needs `need`. `unit` is marginal_unit(); `active` is
    the number of tasks on the node (roundrobin)."""
    match policy:
        case PlacementPolicy.ROUNDROBIN:
            return min(active, COST_MAX)
        case PlacementPolicy.EPVM:
            x = power(share(used.cpu_milli, capacity.cpu_milli))
            y = power(share(used.memory_bytes, capacity.memory_bytes))
            a = (growth(need.cpu_milli, capacity.cpu_milli) - 1.0) * unit
            b = (growth(need.memory_bytes, capacity.memory_bytes) - 1.0) * unit
            return int(min(x * a + y * b, float(COST_MAX)))
        case PlacementPolicy.BINPACK:
            x = power(share(used.cpu_milli, capacity.cpu_milli))
            y = power(share(used.memory_bytes, capacity.memory_bytes))
            a = COST_UNITS / growth(need.cpu_milli, capacity.cpu_milli)
            b = COST_UNITS / growth(need.memory_bytes, capacity.memory_bytes)
            return int(min(a / x + b / y, float(COST_MAX)))
        case PlacementPolicy.SPREAD:
            u = share(used.cpu_milli, capacity.cpu_milli)
            v = share(used.memory_bytes, capacity.memory_bytes)
            a = share(need.cpu_milli, capacity.cpu_milli)
            b = share(need.memory_bytes, capacity.memory_bytes)
            return int(min(((u + v) + (a + b)) * COST_UNITS, float(COST_MAX)))
        case PlacementPolicy.GREEDY:
            u = share(used.cpu_milli, capacity.cpu_milli)
            a = share(need.cpu_milli, capacity.cpu_milli)
            return int(min((u + a) * COST_UNITS, float(COST_MAX)))


def key(points: int, quantised_cost: int, rank: int) -> int:
    points = min(max(points, -POINTS_MAX), POINTS_MAX)
    return (((points << COST_BITS) + quantised_cost) << RANK_BITS) + rank


def permutation(job: str, group: str) -> tuple[int, int]:
    """(offset, odd factor): node number i has rank ((i + offset) · factor) mod NODES_MAX, a
    one-to-one map that differs from job to job. Of the job's name: its id is random, and a dry run
    must foresee what ties come to."""
    digest = hashlib.blake2b(f"{job}/{group}".encode(), digest_size=8).digest()
    offset = int.from_bytes(digest[:4], "big") % NODES_MAX
    return offset, (int.from_bytes(digest[4:], "big") % NODES_MAX) | 1


def rank(number: int, offset: int, factor: int) -> int:
    return (number + offset) * factor % NODES_MAX


def policy_of(group: GroupSpec, default: PlacementPolicy) -> PlacementPolicy:
    return default if group.placement.policy is None else group.placement.policy
