"""One round: clients at work, one nemesis in the middle, and what must be true afterwards."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.e2e.harness import wait_for
from tests.faults import clocks
from tests.faults.cluster import Agent, FaultCluster, Json
from tests.faults.lincheck import Operation, Read, Verdict, check
from tests.faults.nemeses import ALL, LARGE_JOB, Nemesis
from tests.faults.networks import Hosts, why_no_hosts
from tests.faults.registers import Workload, register
from tests.raft import disks
from tests.raft.disks import directory_for_disks

KEYS = 5
BEFORE_S = 0.5
FAULT_S = 3.0
AFTER_S = 1.0
CONVERGE_S = 60.0  # a loaded machine; what the campaigns measure is told beside
LOOK_S = 0.1
# Shorter than clients wait: what an agent says of a write that it gave up (503, 504) must be true.
WRITE_TIMEOUT = "1s"


@contextlib.contextmanager
def on_hosts(count: int, *, is_bare: bool = False) -> Iterator[FaultCluster]:
    """A cluster of `count` nodes, each on a host of its own, with a disk and a clock that can fail
    unless it is bare. Nothing is left of it."""
    with directory_for_disks() as directory:
        if not is_bare:
            clocks.build(directory)
        cluster = FaultCluster(
            directory,
            Hosts(count),
            {"CUBE_CLUSTER_WRITE_TIMEOUT": WRITE_TIMEOUT},
            disks=not is_bare,
            clocks=None if is_bare else directory,
        )
        try:
            cluster.form(count)
            yield cluster
        finally:
            cluster.close()


def why_no_hosts_with_everything() -> str:
    """Why this machine cannot do every nemesis; empty when it can."""
    reason = why_no_hosts() or clocks.why_no_clocks()
    if not reason:
        with directory_for_disks() as directory:
            reason = disks.why_unavailable(directory)
    return reason


@dataclass
class Result:
    seed: int
    nemesis: str
    story: list[str]
    counts: Counter[str]
    undecided: int
    converged_s: float  # from the moment everything was healed


class Watch:
    """Who was seen to lead in which term, asked of every agent all the while."""

    def __init__(self, agents: list[Agent]) -> None:
        self.leaders: dict[int, set[str]] = {}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._look, args=(agent,), daemon=True) for agent in agents
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _look(self, agent: Agent) -> None:
        while not self._over.wait(LOOK_S):
            status = agent.try_get("/v1/status")
            if status is not None and status["role"] == "leader":
                self.leaders.setdefault(status["term"], set()).add(status["node"]["name"])

    def check(self) -> None:
        for term, names in self.leaders.items():
            assert len(names) == 1, f"term {term} had several leaders: {sorted(names)}"

    @property
    def term_max(self) -> int:
        return max(self.leaders, default=0)


@dataclass
class Round:
    """run() raises AssertionError when something is not as it must be."""

    cluster: FaultCluster
    nemesis: str
    seed: int
    fault_s: float = FAULT_S
    keys: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = [f"r{self.seed}-{number}" for number in range(KEYS)]

    def run(self) -> Result:
        nemesis = Nemesis(self.cluster, random.Random(self.seed), self.fault_s)
        workload = Workload(self.cluster, self.keys, self.seed)
        watch = Watch(self.cluster.agents)
        try:
            try:
                workload.start()
                watch.start()
                time.sleep(BEFORE_S)
                with ALL[self.nemesis](nemesis):
                    pass
                healed = time.monotonic()
                self._converge(watch.term_max)
                converged_s = time.monotonic() - healed
                time.sleep(AFTER_S)
            finally:
                workload.stop()
                watch.stop()
            self._converge(watch.term_max, is_quiet=True)
            self.cluster.check_alive()
            self.cluster.check_logs()
            watch.check()
            history = workload.history + final_reads(self.cluster.agents, self.keys)
            undecided = _check_history(history, workload)
            self._agree()
        except AssertionError as error:
            told = "; ".join(nemesis.story)
            raise AssertionError(
                f"seed {self.seed}, {self.nemesis} ({told}): {error}\n{self.cluster.told()}"
            ) from None
        self._clear()
        return Result(
            self.seed, self.nemesis, nemesis.story, workload.counts, undecided, converged_s
        )

    def _converge(self, term_min: int, *, is_quiet: bool = False) -> None:
        """Every node is ready, all say the same of leader and term, and have applied what was
        committed when this was asked; when all is quiet, exactly the same."""
        statuses: list[Json | None] = []
        commit_min = 0

        def agreed() -> bool:
            nonlocal commit_min
            statuses[:] = [agent.try_get("/v1/status") for agent in self.cluster.agents]
            good = [status for status in statuses if status is not None]
            commit_min = commit_min or max((s["commit_index"] for s in good), default=0)
            if len(good) < len(statuses) or not all(s["quorum"] and s["leader"] for s in good):
                return False
            logs = {(s["commit_index"], s["applied_index"]) for s in good}
            has_log = (
                len(logs) == 1 if is_quiet else min(applied for _, applied in logs) >= commit_min
            )
            told = {(s["leader"]["id"], s["term"]) for s in good}
            return has_log and len(told) == 1 and [s["role"] for s in good].count("leader") == 1

        try:
            wait_for("all nodes agree on leader, term and log", agreed, CONVERGE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {statuses}") from None
        term = statuses[0]["term"] if statuses[0] else 0
        assert term >= term_min, f"the term went back from {term_min} to {term}"
        for agent in self.cluster.agents:
            self.cluster.wait_ready(agent)

    def _agree(self) -> None:
        """Nodes that have applied the same entries say the same of all jobs."""

        def same() -> bool:
            told = set()
            for agent in self.cluster.agents:
                with contextlib.closing(agent.connection(10)) as connection:
                    status, body, sent = connection.ask("GET", "/v1/jobs?limit=1000")
                    assert status == 200, body
                    told.add((sent["X-Cube-Index"], json.dumps(body["items"])))
            indexes = {index for index, _ in told}
            assert len(told) == len(indexes), f"nodes differ at one index: {told}"
            return len(told) == 1

        wait_for("all nodes tell of the same jobs", same, CONVERGE_S)

    def _clear(self) -> None:
        """The registers are gone, as far as that is to be had: the next round has its own."""
        with contextlib.closing(self.cluster.agents[0].connection(10)) as connection:
            for key in [*self.keys, LARGE_JOB]:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    connection.ask("DELETE", f"/v1/jobs/{key}")


def final_reads(agents: list[Agent], keys: list[str]) -> list[Operation]:
    """Every register as every node tells it in the end, consistent and local: a part of the history,
    so that what was acknowledged and is gone shows. All is quiet."""
    found = []
    for agent in agents:
        with contextlib.closing(agent.connection(10)) as connection:
            for key in keys:
                for query in ("?consistent=1", ""):
                    call = time.monotonic()
                    status, body, _ = connection.ask("GET", f"/v1/jobs/{key}{query}")
                    assert status in (200, 404), f"final read of {key} at {agent.name}: {body}"
                    seen = Read(register(status, body))
                    found.append(Operation(-1, key, seen, call, time.monotonic()))
    return found


def _check_history(history: list[Operation], workload: Workload) -> int:
    """How many registers are undecided. Raises AssertionError."""
    wrong = workload.wrong
    assert not wrong, "\n".join(wrong[:5])
    findings = check(history)
    bad = [finding for finding in findings if finding.verdict is Verdict.BAD]
    assert not bad, "\n".join(f"{one.key} is not linearizable: {one.why}" for one in bad)
    assert workload.acknowledged() > 0, "nothing was acknowledged in this round"
    return sum(finding.verdict is Verdict.UNDECIDED for finding in findings)
