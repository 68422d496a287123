"""What goes wrong: one thing at a time, and healed at the end of its block.

Each takes the cluster, dice and how long it lasts, and tells what it did.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.faults.cluster import Agent, FaultCluster
from tests.faults.networks import Hosts
from tests.faults.registers import ATTEMPT_S, job

PAUSE_S = 5.0
CLOCK_STEP_MS_MAX = 50 * 60_000  # certificates are valid from an hour before they were made
LOSS_PERCENT = 30
_BALLAST = "ballast"
LARGE_JOB = "large"
_LARGE_BYTES = 30_000


@dataclass
class Nemesis:
    """`story`: what it did, for who reads of a failure."""

    cluster: FaultCluster
    dice: random.Random
    lasts_s: float
    story: list[str] = field(default_factory=list)

    def one(self) -> Agent:
        return self.dice.choice(self.cluster.agents)

    def minority(self, first: Agent) -> list[Agent]:
        """As many as may fail, `first` among them."""
        others = [agent for agent in self.cluster.agents if agent is not first]
        count = (len(self.cluster.agents) - 1) // 2
        return [first, *self.dice.sample(others, count - 1)]

    def tell(self, what: str, agents: list[Agent]) -> None:
        self.story.append(f"{what} {' '.join(agent.name for agent in agents)}")

    def last(self) -> None:
        time.sleep(self.lasts_s)

    # Processes

    @contextlib.contextmanager
    def kill(self, agents: list[Agent]) -> Iterator[None]:
        away_s = self.dice.choice([0.0, self.lasts_s])
        self.tell(f"kill for {away_s:g} s", agents)
        for agent in agents:
            agent.kill()
        try:
            time.sleep(away_s)
            yield
        finally:
            for agent in agents:
                self.cluster.start(agent)

    @contextlib.contextmanager
    def pause(self, agents: list[Agent]) -> Iterator[None]:
        self.tell(f"pause for {PAUSE_S:g} s", agents)
        for agent in agents:
            agent.signal(signal.SIGSTOP)
        try:
            time.sleep(PAUSE_S)
            yield
        finally:
            for agent in agents:
                agent.signal(signal.SIGCONT)

    # The network

    @contextlib.contextmanager
    def cut(self, what: str, links: list[tuple[Agent, Agent]]) -> Iterator[None]:
        """What the first of each pair sends does not reach the second."""
        hosts = self._hosts()
        self.story.append(f"{what}: {' '.join(f'{a.name}>{b.name}' for a, b in links)}")
        try:
            for source, target in links:
                hosts.cut(source.number, target.number)
            self.last()
            yield
        finally:
            hosts.heal()

    def isolate(self, agents: list[Agent]) -> contextlib.AbstractContextManager[None]:
        links = self.into(agents) + self.out_of(agents)
        return self.cut("isolated", links)

    def into(self, agents: list[Agent]) -> list[tuple[Agent, Agent]]:
        others = [agent for agent in self.cluster.agents if agent not in agents]
        return [(other, agent) for other in others for agent in agents]

    def out_of(self, agents: list[Agent]) -> list[tuple[Agent, Agent]]:
        return [(agent, other) for other, agent in self.into(agents)]

    @contextlib.contextmanager
    def lose(self) -> Iterator[None]:
        hosts = self._hosts()
        self.story.append(f"{LOSS_PERCENT} % loss between all")
        try:
            hosts.lose(LOSS_PERCENT)
            self.last()
            yield
        finally:
            hosts.heal()

    def _hosts(self) -> Hosts:
        hosts = self.cluster.network
        assert isinstance(hosts, Hosts)
        return hosts

    # Clocks and disks

    @contextlib.contextmanager
    def step_clocks(self, agents: list[Agent]) -> Iterator[None]:
        clocks = [agent.clock for agent in agents if agent.clock is not None]
        assert clocks
        try:
            for _ in range(3):
                for agent, clock in zip(agents, clocks, strict=True):
                    error_ms = self.dice.randint(-CLOCK_STEP_MS_MAX, CLOCK_STEP_MS_MAX)
                    self.tell(f"clock wrong by {error_ms} ms:", [agent])
                    clock.step(error_ms)
                time.sleep(self.lasts_s / 3)
            yield
        finally:
            for clock in clocks:
                clock.step(0)

    @contextlib.contextmanager
    def fill_disk(self, agents: list[Agent]) -> Iterator[None]:
        self.tell("disk full:", agents)
        disks = [agent.disk for agent in agents if agent.disk is not None]
        assert disks
        try:
            for disk in disks:
                _fill(disk.path / _BALLAST)
            self._press(agents)
            self.last()
            yield
        finally:
            for disk in disks:
                (disk.path / _BALLAST).unlink(missing_ok=True)

    def _press(self, agents: list[Agent]) -> None:
        """Each of them has said that its disk failed: an agent has room in advance for many small
        writes, so these are large."""
        others = [agent for agent in self.cluster.agents if agent not in agents]
        numbers = itertools.count()

        def all_say_so() -> bool:
            told = [agent.try_get("/v1/status") for agent in agents]
            if all(status and any("disk" in w for w in status["warnings"]) for status in told):
                return True
            body = job(LARGE_JOB, str(next(numbers)), padding=_LARGE_BYTES)
            with (
                contextlib.suppress(OSError, http.client.HTTPException),
                contextlib.closing(self.dice.choice(others).connection(ATTEMPT_S)) as to,
            ):
                to.ask("POST", "/v1/jobs", body, {"Content-Type": "application/json"})
            return False

        self.cluster.wait_for("a full disk is told", all_say_so)

    @contextlib.contextmanager
    def cut_power(self, agents: list[Agent]) -> Iterator[None]:
        self.tell("power cut:", agents)
        disks = [agent.disk for agent in agents if agent.disk is not None]
        assert disks
        for disk in disks:
            disk.cut_power()
        for agent in agents:
            agent.kill()
        try:
            time.sleep(self.dice.choice([0.0, self.lasts_s]))
            yield
        finally:
            for disk in disks:
                disk.restore_power()
            for agent in agents:
                self.cluster.start(agent)


def _fill(path: os.PathLike[str]) -> None:
    """Nothing more fits beside this file."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with open(path, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 10))


Strike = Callable[[Nemesis], contextlib.AbstractContextManager[None]]


def _leader(nemesis: Nemesis) -> Agent:
    return nemesis.cluster.leader()


def _partial(nemesis: Nemesis) -> contextlib.AbstractContextManager[None]:
    """The leader and one other do not reach each other; whoever else there is reaches both."""
    leader = _leader(nemesis)
    other = nemesis.dice.choice([a for a in nemesis.cluster.agents if a is not leader])
    return nemesis.cut("partial", [(leader, other), (other, leader)])


PROCESSES: dict[str, Strike] = {
    "kill one": lambda n: n.kill([n.one()]),
    "kill the leader": lambda n: n.kill([_leader(n)]),
    "kill all": lambda n: n.kill(n.cluster.agents),
    "pause one": lambda n: n.pause([n.one()]),
    "pause the leader": lambda n: n.pause([_leader(n)]),
}
NETWORK: dict[str, Strike] = {
    "isolate the leader": lambda n: n.isolate(n.minority(_leader(n))),
    "isolate a minority": lambda n: n.isolate(n.minority(n.one())),
    "nobody hears the leader": lambda n: n.cut("mute", n.out_of([_leader(n)])),
    "the leader hears nobody": lambda n: n.cut("deaf", n.into([_leader(n)])),
    "nobody hears one": lambda n: n.cut("mute", n.out_of([n.one()])),
    "one hears nobody": lambda n: n.cut("deaf", n.into([n.one()])),
    "partial": _partial,
    "loss": lambda n: n.lose(),
}
CLOCKS: dict[str, Strike] = {
    "clock of the leader": lambda n: n.step_clocks([_leader(n)]),
    "clocks of all": lambda n: n.step_clocks(n.cluster.agents),
}
DISKS: dict[str, Strike] = {
    "disk of the leader full": lambda n: n.fill_disk([_leader(n)]),
    "disk of one full": lambda n: n.fill_disk([n.one()]),
    "power of one": lambda n: n.cut_power([n.one()]),
    "power of the leader": lambda n: n.cut_power([_leader(n)]),
    "power of all": lambda n: n.cut_power(n.cluster.agents),
}
ALL = PROCESSES | NETWORK | CLOCKS | DISKS
