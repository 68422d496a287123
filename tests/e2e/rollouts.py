"""Rollouts of a service in Docker under load, and leaders that die in the midst of them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.harness import Json, Node, TestCluster, wait_for
from tests.e2e.load import Load

COUNT = 6
PARALLELISM = 2
JOB = "shop"
SERVICE = "shop.web.http"
ROLLOUT_S = 180.0  # 12 on an idle machine
LOOK_S = 0.02


def service(word: str, order: str = "start-first", **changes: object) -> Json:
    """A job of COUNT web servers. `word` makes it another version; `changes` are of its group."""
    group: Json = {
        "count": COUNT,
        "driver": "docker",
        "image": "busybox",
        "command": ["httpd", "-f", "-p", "8080", "-h", "/etc"],
        "env": {"WORD": word},
        "shutdown_delay": "1s",
        "stop_signal": "SIGKILL",  # what the first process of a container heeds; and nothing is kept
        "resources": {"cpu": 0.02, "memory": "16MiB"},
        "ports": {"http": {"target": 8080}},
        "checks": [{"type": "http", "port": "http", "path": "/hostname", "interval": "1s"}],
        "update": {
            "order": order,
            "parallelism": PARALLELISM,
            "min_healthy": "1s",
            "deadline": "2m",
        },
        **changes,
    }
    return {"name": JOB, "type": "service", "groups": {"web": group}}


def load_of(cluster: TestCluster) -> Load:
    return Load(cluster, SERVICE, "/hostname")


@contextlib.contextmanager
def docker_nodes(directory: Path, host: str, count: int) -> Iterator[TestCluster]:
    """A cluster of `count` nodes whose agents share one Docker Engine. Nothing is left of it."""
    cluster = TestCluster(directory, {"CUBE_DRIVERS_DOCKER_HOST": host})
    try:
        cluster.form(count)
        wait_for("every node's engine answers", lambda: docker_ready(cluster))
        yield cluster
    finally:
        cluster.stop()


def docker_ready(cluster: TestCluster) -> bool:
    answer = cluster.running()[0].try_get("/v1/nodes")
    return answer is not None and all(n["drivers"]["docker"]["healthy"] for n in answer["items"])


def submit(cluster: TestCluster, job: Json, at: Node | None = None) -> int:
    """The version that it got."""
    version: int = (at or cluster.running()[0]).call("POST", "/v1/jobs", job)["version"]
    return version


def rolled_out(cluster: TestCluster, version: int, count: int = COUNT) -> list[Json]:
    """That version of the service is rolled out; its tasks."""
    told = deployment_over(cluster, version)
    assert told["status"] == "successful", told
    tasks = cluster.serving(JOB, count)
    assert len({task["slot"] for task in tasks}) == count
    return tasks


def deployment_over(cluster: TestCluster, version: int, at: Node | None = None) -> Json:
    """The deployment, once it is decided, and what it took back is back."""
    node = at or cluster.running()[0]

    def told() -> Json | None:
        found = node.try_get(f"/v1/deployments/{JOB}.v{version}")
        is_over = found is not None and found["status"] in ("successful", "rolled_back")
        return found if is_over else None

    found = wait_for(f"the deployment of version {version} is over", told, ROLLOUT_S)
    assert found is not None
    return found


def is_serving(task: Json) -> bool:
    served: bool = task["state"] == "running" and task["health"] == "healthy"
    return served and task["desired"] == "run"


# Leaders that die


@dataclass(frozen=True)
class Seen:
    """How far the rollout of a version is, in tasks: of that version that serve, and that are on
    their way; older ones that are on their way out."""

    new: int
    coming: int
    going: int


@dataclass(frozen=True)
class Point:
    """When the leader dies. `returns`: it is back as soon as another leads, as where a service manager
    starts it again; otherwise once all is over, when others have taken its tasks over."""

    name: str
    is_reached: Callable[[Seen], bool]
    returns: bool = True


POINTS = (
    Point("at once after submission", lambda seen: True),
    Point("the first two are on their way", lambda seen: seen.coming == 2, returns=False),
    Point("one serves", lambda seen: seen.new >= 1),
    Point("the first old one goes", lambda seen: seen.going >= 1, returns=False),
    Point("two serve, the next are on their way", lambda seen: seen.new >= 2 and seen.coming >= 1),
    Point("three serve", lambda seen: seen.new >= 3, returns=False),
    Point("three serve, old ones go", lambda seen: seen.new >= 3 and seen.going >= 1),
    Point("four serve", lambda seen: seen.new >= 4),
    Point("four serve, the last are on their way", lambda seen: seen.new >= 4 and seen.coming >= 1),
    Point("all serve", lambda seen: seen.new == COUNT, returns=False),
)


@dataclass(frozen=True)
class Death:
    """What came of a leader's death at that point, in ms from then on. `promised`: fewer endpoints
    there must never be; those of a node that stays dead are lost with it."""

    point: str
    returns: bool
    leader_ms: int
    end_ms: int
    promised: int
    lowest: int
    requests: int
    failures: list[str]


def kill_leader_at(
    cluster: TestCluster,
    point: Point,
    word: str,
    order: str = "start-first",
    hangs: bool = False,
) -> Death:
    """A new version is rolled out under load; the leader dies in it (or hangs, and knows nothing of
    it afterwards), and is back when this returns. Raises AssertionError when it is not rolled out."""
    wait_for("all nodes are ready", lambda: cluster.all_ready(len(cluster.nodes)))
    leader = cluster.leader()
    others = [node for node in cluster.nodes if node is not leader]
    leader_id = leader.get("/v1/status")["node"]["id"]
    promised = COUNT if order == "start-first" else COUNT - PARALLELISM
    with load_of(cluster) as load, _dead_leader(cluster, leader, hangs) as death:
        version = submit(cluster, service(word, order), at=others[0])
        at_death = _wait_for_point(others[0], version, point)
        death.begin()
        began = time.monotonic()
        wait_for("another leads", lambda: _led_by(others, leader_id))
        leader_ms = _since_ms(began)
        if point.returns:
            death.end()
        told = deployment_over(cluster, version, at=others[0])
        end_ms = _since_ms(began)
        assert told["status"] == "successful", told
        tasks = cluster.serving(JOB, COUNT, at=others[0])
        assert {task["version"] for task in tasks} == {version}
    if not point.returns:
        promised -= sum(task["node_id"] == leader_id for task in at_death if is_serving(task))
    return Death(
        point=point.name,
        returns=point.returns,
        leader_ms=leader_ms,
        end_ms=end_ms,
        promised=promised,
        lowest=load.lowest,
        requests=load.requests,
        failures=load.failures,
    )


class _DeadLeader:
    def __init__(self, cluster: TestCluster, node: Node, hangs: bool) -> None:
        self._cluster = cluster
        self._node = node
        self._hangs = hangs
        self._is_dead = False

    def begin(self) -> None:
        self._is_dead = True
        if self._hangs:
            os.kill(self._node.pid, signal.SIGSTOP)
        else:
            self._node.kill()

    def end(self) -> None:
        if self._is_dead and self._hangs:
            os.kill(self._node.pid, signal.SIGCONT)
        elif self._is_dead:
            self._cluster.start(self._node)
        self._is_dead = False


@contextlib.contextmanager
def _dead_leader(cluster: TestCluster, node: Node, hangs: bool) -> Iterator[_DeadLeader]:
    death = _DeadLeader(cluster, node, hangs)
    try:
        yield death
    finally:
        death.end()
    wait_for("it is ready again", node.is_ready)


def _wait_for_point(node: Node, version: int, point: Point) -> list[Json]:
    """The tasks when it was reached."""
    deadline = time.monotonic() + ROLLOUT_S
    while time.monotonic() < deadline:
        tasks: list[Json] = node.get(f"/v1/tasks?job={JOB}&limit=1000")["items"]
        unended = [task for task in tasks if task["finished_at"] is None]
        new = [task for task in unended if task["version"] == version]
        serving = sum(is_serving(task) for task in new)
        going = sum(task["version"] < version and task["desired"] != "run" for task in unended)
        if point.is_reached(Seen(serving, len(new) - serving, going)):
            return tasks
        time.sleep(LOOK_S)
    raise AssertionError(f"the rollout never was where {point.name}")


def _led_by(nodes: list[Node], dead_id: str) -> str | None:
    """The id of a leader that one of them knows, and that is not the dead one."""
    for node in nodes:
        leader = (node.try_get("/v1/status") or {}).get("leader")
        if leader and leader["id"] != dead_id:
            found: str = leader["id"]
            return found
    return None


def _since_ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


# Tasks that crash at once


def crash_loop(count: int) -> Json:
    """As bad as a job file can say."""
    no_pause = {"delay": "100ms", "max_delay": "100ms"}
    group = {
        "count": count,
        "driver": "process",
        "command": ["false"],
        "resources": {"cpu": 0.01, "memory": "4MiB"},
        "restart": {"attempts": 3, **no_pause},
        "reschedule": no_pause,
    }
    return {"name": "crash", "type": "service", "groups": {"g": group}}


def entries(cluster: TestCluster) -> int:
    """How many the log has had so far."""
    index: int = cluster.running()[0].get("/v1/status")["commit_index"]
    return index
