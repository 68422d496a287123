"""A secret is nowhere to be read but where its task reads it: everything that Cube writes, answers, logs
and prints is searched for values that were given to it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cube.adapters.task_files import ROOTS
from cube.api.call import Kind
from cube.api.routes import ROUTES
from tests.e2e.harness import ROOT, Node, TestCluster, wait_for

pytestmark = pytest.mark.e2e

CANARIES = {name: f"canary-{name}-{os.urandom(12).hex()}" for name in ("one", "two", "env", "lost")}
TASK = 'cat "$CUBE_SECRETS_DIR/db" | sha256sum; printf %s "$P" | sha256sum; exec sleep 1000'
NEEDLES = {
    form
    for value in CANARIES.values()
    for form in (
        value.encode(), value.encode().hex().encode(), base64.b64encode(value.encode())[:24],
    )
}  # fmt: skip


def found_in(data: bytes) -> list[bytes]:
    return [needle for needle in NEEDLES if needle in data]


def hash_of(name: str) -> str:
    return hashlib.sha256(CANARIES[name].encode()).hexdigest()


def send(node: Node, method: str, path: str, data: bytes, content_type: str) -> bytes:
    """The answer, whatever its status."""
    request = urllib.request.Request(
        f"http://{node.address}{path}", data, {"Content-Type": content_type}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        return error.read()


def give(node: Node, name: str, value: str) -> bytes:
    path = f"/v1/secrets/{name}"
    return send(node, "PUT", path, CANARIES[value].encode(), "application/octet-stream")


def job(name: str = "app", **group: object) -> dict[str, object]:
    base = {
        "driver": "process", "command": ["sh", "-c", TASK], "count": 2,
        "env": {"P": {"secret": "env"}}, "mounts": [{"type": "secret", "source": "db"}],
        "update": {"min_healthy": "0s"}, "restart": {"attempts": 0},
    }  # fmt: skip
    return {"name": name, "type": "service", "groups": {"g": {**base, **group}}}


def answers(cluster: TestCluster) -> Iterator[tuple[str, bytes]]:
    """Every GET route of every node that ends by itself, and what the command line prints."""
    node = cluster.nodes[0]
    names = {
        "job": "app", "task": "app.g.0", "node": "n1", "deployment": "app", "service": "app.g.x",
        "name": "db", "file": "index.html",
    }  # fmt: skip
    paths = [
        route.path.format_map(names) for route in ROUTES
        if route.method == "GET" and not (route.kind is Kind.STREAM or route.kind is Kind.PEER)
    ]  # fmt: skip
    assert "/v1/secrets/db" in paths
    for each in cluster.nodes:
        for path in [*paths, "/v1/tasks/app.g.0/logs"]:
            yield path, send(each, "GET", path, b"", "text/plain")
    for words in (
        "secret ls", "secret show db", "job show app", "job versions app", "task show app.g.0",
        "deployment show app", "why app", "logs app",
    ):  # fmt: skip
        yield words, cluster.cube(*words.split(), at=node).stdout.encode()


def test_no_value_of_a_secret_is_anywhere(cluster: TestCluster, tmp_path: Path) -> None:
    cluster.environment |= {"CUBE_LOGS_LEVEL": "debug", "CUBE_RAFT_SNAPSHOT_EVERY": "100"}
    cluster.form(3)
    n1, n2, n3 = cluster.nodes
    command = [sys.executable, "-m", "cube", "--addr", n3.address, "events", "-f", "-o", "json"]
    with (tmp_path / "events.txt").open("wb") as file:
        events = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    try:
        told = [give(n1, "db", "one"), give(n2, "env", "env"), give(n3, "never", "lost")]
        # Wrong requests that have a value in them: no answer quotes it.
        wrong = json.dumps({"name": "x", "valeu": CANARIES["lost"], "value": 5}).encode()
        told.append(send(n1, "POST", "/v1/secrets", wrong, "application/json"))
        told.append(send(n1, "PUT", "/v1/secrets/a%2Fb", wrong, "application/json"))
        told.append(send(n1, "PUT", "/v1/secrets/x", CANARIES["lost"].encode(), "application/json"))
        _ = n1.call("POST", "/v1/jobs", job())
        await_hashes(cluster, "one")
        told.append(give(n2, "db", "two"))  # rolls the job
        await_hashes(cluster, "two")
        saved = cluster.cube("raft", "snapshot", "save", str(tmp_path / "saved"), at=n2)
        assert saved.returncode == 0, saved.stderr
        for what, data in answers(cluster):
            assert found_in(data) == [], what
        assert found_in(b"".join(told)) == []
    finally:
        events.terminate()
        _ = events.wait()
    for path in tmp_path.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert found_in(path.read_bytes()) == [], path
    assert any(path.name == "events.txt" and path.stat().st_size for path in tmp_path.iterdir())
    node_ids = [item["id"] for item in n1.get("/v1/nodes")["items"]]
    assert sum(len(in_memory(node_id)) for node_id in node_ids) == 2
    _ = n1.call("DELETE", "/v1/jobs/app")
    wait_for(
        "the files in memory are gone",
        lambda: not any(in_memory(node_id) for node_id in node_ids),
    )


def in_memory(node_id: str) -> list[Path]:
    return [
        path
        for root in ROOTS
        for path in Path(root).glob(f"cube-{os.geteuid()}/{node_id}/process/*/*/secrets/db")
    ]


def await_hashes(cluster: TestCluster, name: str) -> None:
    """Both tasks have read this value, and the one of their environment."""

    def have_read() -> bool:
        tasks = cluster.nodes[0].get("/v1/tasks?job=app&state=running")["items"]
        logs = [cluster.cube("logs", task["id"], at=cluster.nodes[0]).stdout for task in tasks]
        return len(logs) == 2 and all(
            hash_of(name) in log and hash_of("env") in log for log in logs
        )

    wait_for(f"both tasks have read {name}", have_read)
