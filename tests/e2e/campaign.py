"""Random faults and random changes against a real cluster, and what must be true after each round.

The truth is read from /proc, not from Cube: every slot that should run has exactly one process, and
nothing else of this campaign's jobs runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cube.client.client import Client
from cube.client.errors import ClientError
from tests.e2e.harness import Json, Node, TestCluster, wait_for

NODES = 3
COUNT_MAX = 4
JOBS_MAX = 6
CONVERGE_S = 60.0  # node_grace, reschedule, a loaded machine


def job_file(name: str, count: int) -> bytes:
    group = {
        "count": count,
        "driver": "process",
        "command": ["sleep", "100000"],
        "resources": {"cpu": 0.01, "memory": "4MiB"},
    }
    return json.dumps({"name": name, "type": "service", "groups": {"g": group}}).encode()


def processes(jobs: set[str]) -> Counter[str]:
    """How many processes run for each task name of these jobs."""
    found: Counter[str] = Counter()
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            environment = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        values = dict(item.partition(b"=")[::2] for item in environment)
        if values.get(b"CUBE_JOB", b"").decode() in jobs:
            found[values[b"CUBE_TASK_NAME"].decode()] += 1
    return found


@dataclass
class Campaign:
    """`wanted`: job → count, as far as it was acknowledged. `doubtful`: jobs with a change of which
    nobody knows whether it happened; the cluster's own word counts for them."""

    cluster: TestCluster
    seed: int
    wanted: dict[str, int] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    ever: set[str] = field(default_factory=set)
    story: list[str] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self._number = 0

    def run(self, rounds: int) -> None:
        for number in range(rounds):
            self.story.append(f"round {number}")
            fault = self.dice.choice(self.faults())
            with fault():
                for _ in range(self.dice.randrange(1, 4)):
                    self.change()
            began = time.monotonic()
            self.converge()
            self.recovery_s.append(time.monotonic() - began)

    # Faults: each is healed at the end of its block

    def faults(self) -> list[Callable[[], contextlib.AbstractContextManager[None]]]:
        return [self.kill_leader, self.kill_one, self.kill_two, self.kill_all, self.pause_leader,
                self.pause_one, self.stop_leader]  # fmt: skip

    def kill_leader(self) -> contextlib.AbstractContextManager[None]:
        return self._down([self.cluster.leader()], "kill")

    def kill_one(self) -> contextlib.AbstractContextManager[None]:
        return self._down([self.dice.choice(self.cluster.nodes)], "kill")

    def kill_two(self) -> contextlib.AbstractContextManager[None]:
        return self._down(self.dice.sample(self.cluster.nodes, 2), "kill")

    def kill_all(self) -> contextlib.AbstractContextManager[None]:
        return self._down(list(self.cluster.nodes), "kill")

    def stop_leader(self) -> contextlib.AbstractContextManager[None]:
        return self._down([self.cluster.leader()], "terminate")

    def pause_leader(self) -> contextlib.AbstractContextManager[None]:
        return self._paused(self.cluster.leader())

    def pause_one(self) -> contextlib.AbstractContextManager[None]:
        return self._paused(self.dice.choice(self.cluster.nodes))

    @contextlib.contextmanager
    def _down(self, nodes: list[Node], how: str) -> Iterator[None]:
        away_s = self.dice.choice([0.0, 1.0, 8.0])
        self.story.append(f"{how} {' '.join(node.name for node in nodes)} for {away_s} s")
        for node in nodes:
            if how == "kill":
                node.kill()
            else:
                assert node.terminate() == 0
        try:
            yield
            time.sleep(away_s)
        finally:
            for node in nodes:
                self.cluster.start(node)

    @contextlib.contextmanager
    def _paused(self, node: Node) -> Iterator[None]:
        away_s = self.dice.choice([1.0, 8.0])
        self.story.append(f"pause {node.name} for {away_s} s")
        os.kill(node.pid, signal.SIGSTOP)
        try:
            yield
            time.sleep(away_s)
        finally:
            os.kill(node.pid, signal.SIGCONT)

    # Changes

    def change(self) -> None:
        """One write through a random node that runs. Refused or failed writes are no change; of an
        unknown outcome the cluster will tell."""
        nodes = self.cluster.running()
        if not nodes:
            return
        node = self.dice.choice(nodes)
        kind = self.dice.choice(["new", "scale", "scale", "stop", "start", "rm"])
        name = self.dice.choice(sorted(self.wanted)) if self.wanted else ""
        if kind == "new" or not name:
            if len(self.wanted) >= JOBS_MAX:
                return
            kind, self._number = "new", self._number + 1
            name = f"c{self.seed}-{self._number}"
            self.ever.add(name)
        count = self.dice.randrange(COUNT_MAX + 1)
        client = Client([node.address], timeout_s=12)
        try:
            match kind:
                case "new":
                    client.submit(job_file(name, count), "application/json")
                case "scale":
                    client.scale(name, "g", count)
                case "stop":
                    client.stop_job(name)
                case "start":
                    client.start_job(name)
                case _:
                    client.delete_job(name)
        except ClientError as error:
            self.story.append(
                f"  {kind} {name} {count} at {node.name}: {type(error).__name__} {error}"
            )
            self.doubtful.add(name)
        else:
            self.story.append(f"  {kind} {name} {count} at {node.name}: done")
            self._note(kind, name, count)
        finally:
            client.close()

    def _note(self, kind: str, name: str, count: int) -> None:
        if kind in ("new", "scale"):
            self.wanted[name] = count
        elif kind == "rm":
            self.wanted.pop(name, None)
            self.doubtful.discard(name)
        else:
            # What count it comes back with is the job's spec's: ask.
            self.doubtful.add(name)
            if kind == "stop":
                self.wanted[name] = 0

    # What must be true

    def converge(self) -> None:
        for node in self.cluster.nodes:
            wait_for(f"{node.name} is ready\n{self._told()}", node.is_ready, CONVERGE_S)
        wait_for(
            f"all nodes ready\n{self._told()}", lambda: self.cluster.all_ready(NODES), CONVERGE_S
        )
        self._settle_doubts()
        wait_for(f"exactly what is wanted runs\n{self._told()}", self._is_true, CONVERGE_S)
        for node in self.cluster.nodes:
            known = {job["name"] for job in node.get("/v1/jobs?consistent=1&limit=1000")["items"]}
            missing = set(self.wanted) - known
            assert not missing, f"{node.name} lost {missing}\n{self._told()}"

    def _settle_doubts(self) -> None:
        node = self.cluster.nodes[0]
        jobs: list[Json] = node.get("/v1/jobs?consistent=1&limit=1000")["items"]
        known = {job["name"]: job for job in jobs}
        for name in sorted(self.doubtful):
            job = known.get(name)
            if job is None:
                self.wanted.pop(name, None)
            elif job["status"] in ("stopped", "stopping"):
                self.wanted[name] = 0
            else:
                self.wanted[name] = job["spec"]["groups"]["g"]["count"]
        self.doubtful.clear()

    def _is_true(self) -> bool:
        expected = Counter(
            {f"{name}.g.{slot}": 1 for name, count in self.wanted.items() for slot in range(count)}
        )
        if processes(self.ever) != expected:
            return False
        for node in self.cluster.nodes:
            tasks = [t for t in self.cluster.tasks(at=node) if t["job"] in self.ever]
            running = Counter(t["name"] for t in tasks if t["state"] == "running")
            if running != expected or len(tasks) != len(expected):
                return False
        return True

    def _told(self) -> str:
        return f"seed {self.seed}\n" + "\n".join(self.story[-40:])
