"""What a seed stands for: so that a round that failed can be run again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.faults.cluster import FaultCluster
from tests.faults.nemeses import ALL
from tests.faults.rounds import Result, Round

FAULT_S_MIN, FAULT_S_MAX = 0.5, 6.0  # shorter and longer than elections and timeouts
FIVES_PERCENT = 25


@dataclass(frozen=True)
class Planned:
    seed: int
    nodes: int
    nemesis: str
    fault_s: float

    def run(self, cluster: FaultCluster) -> Result:
        """Raises AssertionError."""
        return Round(cluster, self.nemesis, self.seed, self.fault_s).run()


def plan(seed: int, nodes: int | None = None, nemesis: str | None = None) -> Planned:
    """The round of this seed; `nodes` and `nemesis` in place of what it says."""
    dice = random.Random(f"round {seed}")
    found = 5 if dice.randrange(100) < FIVES_PERCENT else 3
    chosen = dice.choice(list(ALL))
    fault_s = dice.uniform(FAULT_S_MIN, FAULT_S_MAX)
    return Planned(seed, nodes or found, nemesis or chosen, fault_s)
