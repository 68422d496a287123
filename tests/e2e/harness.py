"""Real agents as processes of their own, driven as a user drives them: the CLI, curl and kill."""

from __future__ import annotations

import io
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cube.agent.cleanup import end_tasks_now
from cube.config import load
from cube.model.errors import CubeError
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "cube" / "examples"
WAIT_S = 60.0  # for anything: a loaded machine is slow, a hang is for ever

T = TypeVar("T")
Json = dict[str, Any]


def wait_for(what: str, condition: Callable[[], T], timeout_s: float = WAIT_S) -> T:
    """The first true value of `condition`; a failure that says what was waited for otherwise."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}; last seen: {value!r}")
        time.sleep(0.05)


@dataclass(eq=False)
class Node:
    """One agent: its ports, data directory and, while it runs, process."""

    name: str
    directory: Path
    http: int
    raft: int
    gossip: int
    process: subprocess.Popen[bytes] | None = None
    host: str = "127.0.0.1"
    trusted: Path | None = None  # data directory with CA and operator's token; None: --insecure

    @property
    def address(self) -> str:
        return f"{self.host}:{self.http}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> Path:
        return self.directory.with_suffix(".log")

    def get(self, path: str) -> Json:
        """A GET of the API. Raises OSError (URLError) while it is not there."""
        return self.call("GET", path)

    def call(self, method: str, path: str, *body: object) -> Json:
        """A request to the API, with a body as JSON if one is given. Raises OSError (HTTPError) when
        it is refused."""
        scheme, context, headers = "http", None, {}
        if self.trusted is not None:
            scheme, context = "https", ssl.create_default_context(cafile=self.trusted / "ca.crt")
            token = (self.trusted / "operator-token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}"}
        data = json.dumps(body[0]).encode() if body else None
        if data is not None:
            headers["Content-Type"] = "application/json"
        url = f"{scheme}://{self.address}{path}"
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=15, context=context) as answer:
                told: Json = json.load(answer)
                return told
        except urllib.error.HTTPError as error:
            text = error.read()
            refused = urllib.error.HTTPError(
                url, error.code, error.msg, error.headers, io.BytesIO(text)
            )
            refused.add_note(text.decode(errors="replace"))  # for tests that did not expect it
            raise refused from None

    def try_get(self, path: str) -> Json | None:
        try:
            return self.get(path)
        except (OSError, ValueError):
            return None

    def is_ready(self) -> bool:
        return self.try_get("/v1/readyz") is not None

    def kill(self) -> None:
        """kill -9, as a power cut would: nothing of it is said or saved any more."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def terminate(self, timeout_s: float = 20.0) -> int:
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(timeout_s)
        self.process = None
        return code


@dataclass
class TestCluster:
    """Some nodes. `environment` is the agents', beside this process's own."""

    __test__ = False

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    is_secure: bool = False  # certificates and tokens; each node at a loopback address of its own
    token: str = ""  # the join token, of a secure cluster

    def add(self, name: str) -> Node:
        http, raft, gossip = free_ports(3)
        node = Node(name, self.directory / name, http, raft, gossip)
        self.nodes.append(node)
        if self.is_secure:
            node.host = f"127.0.0.{len(self.nodes)}"
            node.trusted = self.nodes[0].directory
        return node

    def start(self, node: Node, *join: Node, arguments: Sequence[str] = ()) -> Node:
        """The agent's process has been started."""
        assert node.process is None
        command = [
            sys.executable, "-m", "cube", "agent", "--data-dir", str(node.directory),
            "--name", node.name, "--http", str(node.http), "--raft", str(node.raft),
            "--gossip", str(node.gossip), *arguments,
        ]  # fmt: skip
        command += ["--bind", node.host] if self.is_secure else ["--insecure"]
        environment = {"CUBE_DRIVERS_PROCESS_ENABLED": "on"} if self.is_secure else {}
        if self.token and join:
            command += ["--token", self.token]
        for other in join:
            command += ["--join", other.address]
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env={**os.environ, **environment, **self.environment},
            )  # fmt: skip
        return node

    def form(self, count: int) -> None:
        """`count` ready nodes in one cluster; the first made it, the others joined."""
        first = self.start(self.add("n1"))
        wait_for("the first node is ready", first.is_ready)
        if self.is_secure:
            self.token = self.cube_json("cluster", "join-token", at=first)["token"]
        for number in range(2, count + 1):
            self.start(self.add(f"n{number}"), first)
        for node in self.nodes:
            wait_for(f"{node.name} is ready", node.is_ready)
        wait_for("every node sees every node ready", lambda: self.all_ready(count))
        self.voters(min(5, count if count % 2 else count - 1))

    def voters(self, count: int) -> set[str]:
        """Names of the nodes that vote, once every running node agrees that there are `count`."""

        def agreed() -> set[str] | None:
            seen = [node.try_get("/v1/raft") for node in self.running()]
            names = {
                tuple(sorted(v["name"] for v in told["voters"])) if told else () for told in seen
            }
            found = names.pop()
            return set(found) if not names and len(found) == count else None

        found = wait_for(f"{count} nodes vote", agreed)
        assert found is not None
        return found

    def all_ready(self, count: int) -> bool:
        for node in self.running():
            answer = node.try_get("/v1/nodes")
            if answer is None:
                return False
            items = answer["items"]
            ready = [
                n for n in items if n["status"] == "ready" and n["drivers"]["process"]["healthy"]
            ]
            if len(items) != count or len(ready) != count:
                return False
        return True

    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.process is not None]

    def leader(self) -> Node:
        """As the running nodes agree, and it is one of them."""

        def agreed() -> Node | None:
            seen = {
                json.dumps((node.try_get("/v1/status") or {}).get("leader"))
                for node in self.running()
            }
            if len(seen) != 1:
                return None
            told = json.loads(seen.pop())
            by_address = {node.address: node for node in self.running()}
            return by_address.get(told["http"]) if told else None

        found = wait_for("the nodes agree on a leader", agreed)
        assert found is not None
        return found

    def follower(self) -> Node:
        leader = self.leader()
        return next(node for node in self.running() if node is not leader)

    def stop(self) -> None:
        """No agent, no task of theirs is left."""
        for node in self.running():
            node.kill()
        for node in self.nodes:
            if not node.directory.exists():
                continue
            flags = {"insecure": not self.is_secure, "data_dir": str(node.directory)}
            self.environment.setdefault("CUBE_DRIVERS_PROCESS_ENABLED", "on")
            try:
                end_tasks_now(load(None, self.environment, flags))
            except CubeError as error:
                print(f"{node.name}: {error}")

    def logs(self) -> str:
        """The end of each agent's log, for failures."""
        parts = []
        for node in self.nodes:
            lines = node.log.read_text(errors="replace").splitlines() if node.log.exists() else []
            parts.append(f"--- {node.name}\n" + "\n".join(lines[-40:]))
        return "\n".join(parts)

    # As a user

    def cube(
        self, *arguments: str, at: Node | None = None, code: int | None = 0, stdin: bytes = b"",
        timeout_s: float = 120, data_dir: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """`cube ARGUMENTS` against a node; its exit code must be `code` (None: any). `data_dir`:
        whose token and CA the command line finds; by default the first node's."""
        node = at or self.running()[0]
        done = subprocess.run(
            [sys.executable, "-m", "cube", "--addr", node.address, *arguments],
            cwd=self.directory, input=stdin, capture_output=True, timeout=timeout_s, check=False,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1",
                "CUBE_DATA_DIR": str(data_dir or node.trusted or self.directory / "none"),
            },
        )  # fmt: skip
        result = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )
        assert code is None or result.returncode == code, (
            f"cube {' '.join(arguments)}: exit {result.returncode}, not {code}\n"
            f"{result.stdout}\n{result.stderr}\n{self.logs()}"
        )
        return result

    def cube_json(self, *arguments: str, at: Node | None = None) -> Any:
        return json.loads(self.cube(*arguments, "-o", "json", at=at).stdout)

    def tasks(self, job: str = "", at: Node | None = None) -> list[Json]:
        """Tasks that have not ended."""
        node = at or self.running()[0]
        query = f"?job={job}&limit=1000" if job else "?limit=1000"
        ended = ("completed", "failed", "rejected", "lost")
        items: list[Json] = node.get(f"/v1/tasks{query}")["items"]
        return [task for task in items if task["state"] not in ended]

    def serving(self, job: str, count: int, at: Node | None = None) -> list[Json]:
        """`count` tasks of the job, all running and healthy; waits for it."""

        def all_serve() -> list[Json]:
            try:
                tasks = self.tasks(job, at)
            except OSError:
                return []
            good = [
                t for t in tasks if t["state"] == "running" and t["health"] in (None, "healthy")
            ]
            return good if len(good) == count == len(tasks) else []

        return wait_for(f"{count} tasks of {job} serve", all_serve)


def curl(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def answer_of(url: str) -> str:
    """What it says, once it does: a task without checks counts as running before it listens."""

    def asked() -> str:
        try:
            return curl(url)
        except OSError:
            return ""

    return wait_for(f"{url} answers", asked)


def pid_exists(pid: int | str) -> bool:
    return Path(f"/proc/{pid}").exists()


def same(task: Json) -> tuple[str, str, int]:
    """What must not change about a task that nobody touched."""
    return task["id"], task["handle"], task["attempt"]
