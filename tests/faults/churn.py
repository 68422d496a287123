"""Nodes join, die, return and are removed, at random, while clients write; a majority of the voters is
alive at every step. Nobody says who votes: the cluster looks after that itself."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.faults.cluster import Agent, FaultCluster, Json
from tests.faults.lincheck import Operation, Verdict, Write, check
from tests.faults.networks import Loopback
from tests.faults.registers import Workload
from tests.faults.rounds import final_reads
from tests.raft.disks import directory_for_disks

FIRST = 3
NODES_MIN, NODES_MAX = 3, 7  # members, the dead too
VOTERS_MAX = 5
PAUSE_S_MAX = 2.5  # between events: some while voters still change, some after
GAP_S_MAX = 1.5  # between acknowledged writes, beyond the elections in it
GAP_TOLD_S = 0.7
LOOK_S = 0.02
_KINDS = {"join": 3, "death": 4, "return": 4, "removal": 2}
ENVIRONMENT = {"CUBE_CLUSTER_DEAD_VOTER_GRACE": "2s", "CUBE_CLUSTER_NODE_GRACE": "2s"}


@contextlib.contextmanager
def on_loopback() -> Iterator[FaultCluster]:
    """A cluster of FIRST nodes that gives dead nodes and voters two seconds."""
    with directory_for_disks() as directory:
        cluster = FaultCluster(directory, Loopback(), ENVIRONMENT)
        try:
            cluster.form(FIRST)
            yield cluster
        finally:
            cluster.close()


class LeaderWatch:
    """When somebody led: intervals in which nobody was known to, and in how many terms."""

    def __init__(self, cluster: FaultCluster) -> None:
        self.leaderless: list[tuple[float, float]] = []
        self.terms: set[int] = set()
        self._cluster = cluster
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> LeaderWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        last: Agent | None = None
        seen_at = time.monotonic()
        while not self._over.wait(LOOK_S):
            asked_at = time.monotonic()
            for agent in sorted(self._cluster.running(), key=lambda one: one is not last):
                status = agent.try_get("/v1/status", 0.5)
                if status is None or status["role"] != "leader" or not status["quorum"]:
                    continue
                if status["term"] not in self.terms:
                    # From when the old one was last known until the new one was first asked for.
                    self.terms.add(status["term"])
                    self.leaderless.append((seen_at, time.monotonic()))
                last, seen_at = agent, asked_at
                break

    def beyond(self, begin: float, end: float) -> float:
        """How much of this interval somebody led."""
        out = sum(max(0.0, min(end, b) - max(begin, a)) for a, b in self.leaderless)
        return max(0.0, end - begin - out)


@dataclass
class Churn:
    """run() raises AssertionError when something is not as it must be."""

    cluster: FaultCluster
    seed: int
    pause_s_max: float = PAUSE_S_MAX
    events: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    gaps_beyond_elections_s: list[float] = field(default_factory=list)
    elections: int = 0
    acknowledged: int = 0

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self._began = time.monotonic()
        self._removed: set[Agent] = set()

    def run(self, events: int) -> None:
        keys = [f"churn-{self.seed}-{number}" for number in range(8)]
        workload = Workload(self.cluster, keys, self.seed, members_change=True)
        watch = LeaderWatch(self.cluster)
        try:
            with watch:
                workload.start()
                for _ in range(events):
                    self._event()
                    time.sleep(self._dice.uniform(0.0, self.pause_s_max))
                for agent in self._dead():
                    self._return(agent)
                self._settle()
                self.cluster.check_logs()
        except AssertionError as error:
            raise AssertionError(f"seed {self.seed}: {error}\n{self.cluster.told()}") from None
        finally:
            workload.stop()
            self._measure(workload.history, watch)
        assert not workload.wrong, workload.wrong[:5]
        history = workload.history + final_reads(self.cluster.running(), keys)
        bad = [one for one in check(history) if one.verdict is not Verdict.GOOD]
        assert not bad, [f"{one.key}: {one.verdict} {one.why}" for one in bad]

    # Events

    def _event(self) -> None:
        possible = {
            "join": len(self._members()) < NODES_MAX,
            "death": bool(self._mortal()),
            "return": bool(self._dead()),
            "removal": bool(self._dead()) and len(self._members()) > NODES_MIN,
        }
        kinds = [kind for kind in _KINDS if possible[kind]]
        kind = self._dice.choices(kinds, [_KINDS[kind] for kind in kinds])[0]
        self.events[kind] += 1
        match kind:
            case "join":
                self._join()
            case "death":
                mortal = self._mortal()
                if mortal:  # who votes may have changed since a moment ago
                    self._kill(self._dice.choice(mortal))
            case "return":
                self._return(self._dice.choice(self._dead()))
            case _:
                self._remove(self._dice.choice(self._dead()))
        self.cluster.check_alive()

    def _join(self) -> None:
        agent = self.cluster.add()
        self._tell("join", agent)
        self.cluster.start(agent, *self.cluster.running())
        self.cluster.wait_ready(agent)

    def _kill(self, agent: Agent) -> None:
        self._tell("kill", agent)
        agent.kill()

    def _return(self, agent: Agent) -> None:
        self._tell("return", agent)
        self.cluster.start(agent)
        self.cluster.wait_ready(agent)

    def _remove(self, agent: Agent) -> None:
        """As an operator would: once it is down."""
        self._tell("remove", agent)
        keys = (f"rm-{number}" for number in itertools.count())

        def is_removed() -> bool:
            through = self._dice.choice(self.cluster.running())
            listed = through.try_get("/v1/nodes?consistent=1", 5)
            if listed is None:
                return False
            node = next((n for n in listed["items"] if n["name"] == agent.name), None)
            if node is None:
                return True
            if node["status"] == "down":
                headers = {"Idempotency-Key": f"{next(keys)}-{node['id']}"}
                with contextlib.suppress(OSError), contextlib.closing(through.connection(10)) as to:
                    to.ask("DELETE", f"/v1/nodes/{node['id']}", None, headers)
            return False

        self.cluster.wait_for(f"{agent.name} is removed", is_removed)
        self._removed.add(agent)

    def _tell(self, what: str, agent: Agent) -> None:
        self.story.append(f"{time.monotonic() - self._began:.2f} {what} {agent.name}")

    # Who is there

    def _members(self) -> list[Agent]:
        return [agent for agent in self.cluster.agents if agent not in self._removed]

    def _dead(self) -> list[Agent]:
        return [agent for agent in self._members() if not agent.runs]

    def _mortal(self) -> list[Agent]:
        """Whose death leaves a majority of the voters alive, whatever change is under way."""
        voters = self._voters()
        live = {agent.name for agent in self.cluster.running()}

        def survives(agent: Agent) -> bool:
            left = len(voters & (live - {agent.name}))
            return left > len(voters) // 2 and len(live) > 2

        return [agent for agent in self.cluster.running() if survives(agent)]

    def _voters(self) -> set[str]:
        """Names, as the leader has them, once those that run agree who leads and who votes."""
        found: set[str] = set()

        def agreed() -> bool:
            told = [agent.try_get("/v1/raft") for agent in self.cluster.running()]
            sets = {tuple(sorted(v["name"] for v in one["voters"])) for one in told if one}
            leaders = {(one["leader"] or {}).get("id") for one in told if one}
            found.clear()
            found.update(*sets)
            return None not in told and len(sets) == 1 and len(leaders) == 1 and None not in leaders

        self.cluster.wait_for("all agree who votes", agreed)
        return found

    def _settle(self) -> None:
        """All members run and are ready, and as many vote as should."""
        members = self._members()
        most = min(len(members), VOTERS_MAX)
        target = most if most % 2 else most - 1
        for agent in members:
            self.cluster.wait_ready(agent)
        self.cluster.wait_for(f"{target} vote", lambda: len(self._voters()) == target)

        def all_listed() -> bool:
            for agent in members:
                listed: Json = agent.try_get("/v1/nodes") or {"items": []}
                if {(n["name"], n["status"]) for n in listed["items"]} != {
                    (one.name, "ready") for one in members
                }:
                    return False
            return True

        self.cluster.wait_for("every node lists every member, ready", all_listed)

    def _measure(self, history: list[Operation], watch: LeaderWatch) -> None:
        ends = sorted(one.end for one in history if isinstance(one.action, Write))
        self.acknowledged = len(ends)
        self.elections = len(watch.terms) - 1
        for begin, end in itertools.pairwise(ends):
            self.gaps_s.append(end - begin)
            self.gaps_beyond_elections_s.append(watch.beyond(begin, end))
            if end - begin > GAP_TOLD_S:
                at = begin - self._began
                self.story.append(
                    f"{at:.2f} no write for {end - begin:.2f} s, "
                    f"of which somebody led for {self.gaps_beyond_elections_s[-1]:.2f} s"
                )
        self.story.sort(key=lambda line: float(line.split()[0]))
