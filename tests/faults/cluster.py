"""Agents as real processes, each on a host of its own where the test has such: the one place that
knows how an agent is started and how to talk to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.e2e.harness import ROOT, wait_for
from tests.faults.clocks import Clock
from tests.faults.networks import Network
from tests.raft.disks import Disk

Json = dict[str, Any]
ASK_S = 1.0  # for the test's own questions: a paused agent answers none
READY_S = 60.0
TOLD_LINES = 15  # of each agent's log, when something went wrong
# In the first node's data directory.
CA_FILE, OPERATOR_TOKEN_FILE = "ca.crt", "operator-token"
_JOIN_TOKEN = re.compile(r"--token (CUBE-1-\S+)")
# What an agent logs of a bug, and of nothing else.
_BUG = re.compile(r"^Traceback|\bCRITICAL\b|\bERROR asyncio\b")
_ENVIRONMENT = {"CUBE_DRIVERS_DOCKER_ENABLED": "off", "PYTHONUNBUFFERED": "1"}


@dataclass
class Trust:
    """What a user of a cluster off loopback has: what its first node printed and left behind."""

    founder: Agent

    @cached_property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.founder.directory / CA_FILE))

    @cached_property
    def headers(self) -> dict[str, str]:
        token = (self.founder.directory / OPERATOR_TOKEN_FILE).read_text().strip()
        return {"Authorization": f"Bearer {token}"}

    @cached_property
    def join_token(self) -> str:
        printed = _JOIN_TOKEN.search(self.founder.log.read_text())
        assert printed is not None
        return printed[1]


class Connection(http.client.HTTPConnection):
    """To one agent, kept. Raises OSError, http.client.HTTPException."""

    def __init__(self, agent: Agent, timeout_s: float) -> None:
        super().__init__(agent.address, agent.http, timeout=timeout_s)
        self._agent = agent
        self._timeout_s = timeout_s

    def connect(self) -> None:
        agent = self._agent
        made = agent.network.dial(agent.address, agent.http, self._timeout_s)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = made
        if agent.trust is not None:
            try:
                self.sock = agent.trust.tls.wrap_socket(made, server_hostname=agent.address)
            except BaseException:
                self.close()
                raise

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Json | None = None
    ) -> tuple[int, Json, http.client.HTTPMessage]:
        """Status, body and headers of the answer."""
        trust = self._agent.trust
        self.request(method, path, body, {**(headers or {}), **(trust.headers if trust else {})})
        answer = self.getresponse()
        found = json.loads(answer.read() or b"{}")
        return answer.status, found, answer.msg


@dataclass(eq=False)
class Agent:
    """One agent: where it runs and, while it runs, its process. `number` counts from 1."""

    number: int
    network: Network
    directory: Path  # of its data
    log: Path
    http: int
    raft: int
    gossip: int
    disk: Disk | None = None
    clock: Clock | None = None
    trust: Trust | None = None  # none on loopback: there everything is --insecure
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return f"n{self.number}"

    @property
    def address(self) -> str:
        return self.network.address(self.number)

    @property
    def where(self) -> str:
        return f"{self.address}:{self.http}"

    @property
    def runs(self) -> bool:
        return self.process is not None

    def connection(self, timeout_s: float = ASK_S) -> Connection:
        return Connection(self, timeout_s)

    def try_get(self, path: str, timeout_s: float = ASK_S) -> Json | None:
        """The answer to a GET, when there is a good one."""
        try:
            with contextlib.closing(self.connection(timeout_s)) as connection:
                status, body, _ = connection.ask("GET", path)
        except (OSError, http.client.HTTPException, ValueError):
            return None
        return body if status == 200 else None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9. One that does not run stays so."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class FaultCluster:
    """Agents of one cluster, on `network`. With `disks`, each has a disk that can fill up and lose
    power; with `clocks` (a directory that has been built), a wall clock that can be wrong."""

    directory: Path
    network: Network
    environment: dict[str, str] = field(default_factory=dict)
    disks: bool = False
    clocks: Path | None = None
    agents: list[Agent] = field(default_factory=list)

    def add(self) -> Agent:
        number = len(self.agents) + 1
        name = f"n{number}"
        disk = Disk(self.directory / name, 96) if self.disks else None
        agent = Agent(
            number,
            self.network,
            self.directory / name / "data",
            self.directory / f"{name}.log",
            *self.network.ports(),
            disk=disk,
            clock=Clock(self.clocks, name) if self.clocks else None,
        )
        self.agents.append(agent)
        if not self.network.is_loopback:
            agent.trust = self.agents[0].trust or Trust(agent)
        return agent

    def start(self, agent: Agent, *join: Agent) -> None:
        """Its process has been started; with `join`, as a new member of their cluster."""
        assert agent.process is None
        environment = os.environ | _ENVIRONMENT | self.environment
        if agent.clock is not None:
            environment |= agent.clock.environment
        with agent.log.open("ab") as log:
            agent.process = subprocess.Popen(
                self.network.wrap(agent.number, self._command(agent, join)),
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env=environment,
            )  # fmt: skip

    def _command(self, agent: Agent, join: tuple[Agent, ...]) -> list[str]:
        command = [
            sys.executable, "-m", "cube", "agent",
            "--data-dir", str(agent.directory), "--name", agent.name,
            "--http", str(agent.http), "--raft", str(agent.raft), "--gossip", str(agent.gossip),
        ]  # fmt: skip
        if agent.trust is None:
            command += ["--insecure"]
        else:
            command += ["--bind", agent.address, "--advertise", agent.address]
            command += ["--token", agent.trust.join_token] if join else []
        for other in join:
            command += ["--join", other.where]
        return command

    def form(self, count: int) -> None:
        """`count` ready nodes in one cluster, and as many of them vote as should."""
        first = self.add()
        self.start(first)
        self.wait_ready(first)
        for _ in range(count - 1):
            self.start(self.add(), first)
        for agent in self.agents:
            self.wait_ready(agent)
        voters = count if count % 2 else count - 1
        self.wait_for(f"{voters} vote", lambda: self._is_formed(count, voters))

    def _is_formed(self, nodes: int, voters: int) -> bool:
        for agent in self.running():
            told = agent.try_get("/v1/raft")
            if told is None or len(told["voters"]) != voters:
                return False
            listed = agent.try_get("/v1/nodes")
            if listed is None or [n["status"] for n in listed["items"]] != ["ready"] * nodes:
                return False
        return True

    def running(self) -> list[Agent]:
        return [agent for agent in self.agents if agent.runs]

    def wait_ready(self, agent: Agent) -> None:
        self.wait_for(f"{agent.name} is ready", lambda: agent.try_get("/v1/readyz") is not None)

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        """The condition is true. Raises AssertionError with what the agents said last; at once when
        one of them has ended by itself."""

        def checked() -> object:
            self.check_alive()
            return condition()

        try:
            wait_for(what, checked, READY_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None

    def check_alive(self) -> None:
        for agent in self.running():
            code = agent.process.poll() if agent.process else None
            assert code is None, f"{agent.name} ended by itself, with code {code}"

    def check_logs(self) -> None:
        """No agent has logged a bug of its own."""
        for agent in self.agents:
            text = agent.log.read_text(errors="replace") if agent.log.exists() else ""
            found = [line for line in text.splitlines() if _BUG.search(line)]
            assert not found, f"{agent.name} logged: {found[:5]}"

    def leader(self) -> Agent:
        """As the running nodes agree."""
        found: list[Agent] = []

        def agreed() -> bool:
            statuses = [agent.try_get("/v1/status") for agent in self.running()]
            if not all(status and status["leader"] for status in statuses):
                return False
            leaders = {status["leader"]["http"] for status in statuses if status}
            found[:] = [agent for agent in self.running() if leaders == {agent.where}]
            return bool(found)

        self.wait_for("the nodes agree on a leader", agreed)
        return found[0]

    def told(self) -> str:
        """What each agent says of itself, and the end of its log."""
        parts = []
        for agent in self.agents:
            lines = agent.log.read_text(errors="replace").splitlines() if agent.log.exists() else []
            status = agent.try_get("/v1/status") if agent.runs else "does not run"
            parts.append("\n".join([f"--- {agent.name}: {status}", *lines[-TOLD_LINES:]]))
        return "\n".join(parts)

    def close(self) -> None:
        """No agent, disk or host is left."""
        for agent in self.agents:
            agent.kill()
        for agent in self.agents:
            if agent.disk is not None:
                agent.disk.remove()
        self.network.close()
        shutil.rmtree(self.directory, ignore_errors=True)
