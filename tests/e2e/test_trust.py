"""Nodes that prove who they are, and users who do: real agents without --insecure."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.harness import EXAMPLES, ROOT, Node, TestCluster, curl, same, wait_for

pytestmark = pytest.mark.e2e

HELLO = str(EXAMPLES / "hello.toml")


@pytest.fixture
def secure(cluster: TestCluster) -> TestCluster:
    cluster.is_secure = True
    return cluster


def status_of(url: str, context: ssl.SSLContext, token: str = "") -> int:
    """HTTP status of a GET. Raises OSError when TLS refuses."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=15, context=context) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


def ended(node: Node) -> int:
    """The exit code of an agent that gives up."""
    assert node.process is not None
    code = node.process.wait(60)
    node.process = None
    return code


def test_a_cluster_that_trusts_nobody_without_proof(secure: TestCluster) -> None:
    secure.form(3)
    first, second = secure.nodes[:2]
    assert first.log.read_text().count(secure.token) == 1
    # The command line finds CA and token where the first agent left them; other users do not.
    assert "healthy" in secure.cube("run", HELLO, at=second).stderr
    before = {same(task) for task in secure.serving("hello", 3)}
    nothing = secure.directory / "nothing"
    refused = secure.cube("ps", at=second, code=7, data_dir=nothing)
    assert "cannot reach" in refused.stderr
    ca = ("--cacert", str(first.directory / "ca.crt"))
    assert "asks for an API token" in secure.cube(*ca, "ps", code=6, data_dir=nothing).stderr
    # Whoever can read a node's data directory may read what the node may, and no more.
    assert "hello.web.0" in secure.cube("ps", at=second, data_dir=second.directory).stdout
    secure.cube("stop", "hello", at=second, data_dir=second.directory, code=6)
    # Roles
    made = secure.cube_json("token", "create", "--role", "viewer", "--description", "for a wall")
    viewer = (*ca, "--token", made["token"])
    assert "hello.web.0" in secure.cube(*viewer, "ps", data_dir=nothing).stdout
    assert "viewer" in secure.cube(*viewer, "stop", "hello", code=6, data_dir=nothing).stderr
    secure.cube("token", "rm", made["id"])
    secure.cube(*viewer, "ps", code=6, data_dir=nothing)
    assert made["id"] not in secure.cube("token", "ls").stdout
    # Logs go from node to node
    task = next(t for t in secure.serving("hello", 3) if t["node_name"] != "n2")
    curl(f"http://{task['address']}:{task['ports']['http']['host']}/")
    wait_for(
        "its output comes through another node",
        lambda: "GET /" in secure.cube("logs", task["name"], at=second).stdout,
    )
    # What needs a role goes with a ticket: the token stays at the node that was asked.
    said = secure.cube("exec", task["name"], "--", "echo", "beside it", at=second).stdout
    assert said == "beside it\n"
    wait_for(
        "all nodes know who ran it",
        lambda: all(
            "(operator, made with the cluster) ran echo with 1 argument, from 127.0.0.1"
            in secure.cube("task", "show", task["name"], at=node).stdout
            for node in secure.nodes
        ),
    )
    secure.cube("task", "signal", task["name"], "SIGCONT", at=second)
    # The leader dies; what it knew, all know.
    leader = secure.leader()
    leader.kill()
    survivor = secure.running()[0]
    survivor_token = secure.cube_json("cluster", "join-token", at=survivor)["token"]
    assert survivor_token == secure.token
    kept = {t for t in before if t in {same(x) for x in secure.tasks("hello", at=survivor)}}
    assert len(kept) >= 2
    secure.start(leader)
    wait_for("it is back", leader.is_ready)


def test_who_has_no_token_does_not_join(secure: TestCluster) -> None:
    secure.form(1)
    first, token = secure.nodes[0], secure.token
    for wrong, exit_code, said in (
        ("", 2, "join token"),
        (token[:-4] + "0000", 1, "not valid"),
        ("CUBE-1-x", 2, "damaged"),
    ):
        secure.token = wrong
        joiner = secure.start(secure.add(f"j{exit_code}{len(wrong)}"), first)
        assert ended(joiner) == exit_code
        assert said in joiner.log.read_text()
        secure.nodes.remove(joiner)
    # Another cluster's token: the secret is not sent, and the agent goes on asking.
    secure.token = f"CUBE-1-{'0' * 64}-{'0' * 32}"
    joiner = secure.start(secure.add("other"), first)
    wait_for("it says why", lambda: "the token was not sent" in joiner.log.read_text())
    joiner.kill()
    # A token that was rotated is worth nothing.
    rotated = secure.cube_json("cluster", "join-token", "--rotate")["token"]
    assert rotated != token
    secure.token = token
    assert ended(secure.start(secure.add("late"), first)) == 1
    # With the new one, the very data directory that was refused gets in.
    secure.token = rotated
    secure.start(secure.nodes[-1], first)
    wait_for("it joined", secure.nodes[-1].is_ready)


def test_a_removed_node_is_refused_everywhere(secure: TestCluster) -> None:
    secure.form(3)
    gone = secure.follower()
    gone.kill()
    rest = secure.running()
    wait_for(
        "it is declared down",
        lambda: any(
            n["status"] == "down" for n in (rest[0].try_get("/v1/nodes") or {"items": []})["items"]
        ),
    )
    secure.cube("node", "rm", gone.name, at=rest[0])
    term = rest[0].get("/v1/status")["term"]
    secure.start(gone)
    wait_for("it is told", lambda: "was removed" in gone.log.read_text())
    context = ssl.create_default_context(cafile=gone.directory / "ca.crt")
    context.load_cert_chain(gone.directory / "node.crt", gone.directory / "node.key")
    assert status_of(f"https://{rest[0].address}/v1/nodes", context) == 403
    assert rest[0].get("/v1/status")["term"] == term


def test_strangers_get_nothing(secure: TestCluster) -> None:
    secure.form(1)
    first = secure.nodes[0]
    known = ssl.create_default_context(cafile=first.directory / "ca.crt")
    base = f"https://{first.address}"
    assert status_of(f"{base}/v1/livez", known) == 200
    assert status_of(f"{base}/v1/jobs", known) == 401
    assert status_of(f"{base}/v1/jobs", known, "cube_00000000_" + "0" * 64) == 401
    assert status_of(f"{base}/v1/internal/bootstrap", known) == 400
    with pytest.raises(OSError, match="certificate verify failed"):
        status_of(f"{base}/v1/livez", ssl.create_default_context())
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://{first.address}/v1/livez", timeout=15)
    # Started with --insecure, the same data directory is refused.
    first.kill()
    secure.is_secure = False
    assert ended(secure.start(first)) == 1
    assert "made without --insecure" in first.log.read_text()
    # The secrets are in files that are ours alone, and nowhere else.
    secrets = [
        (first.directory / "operator-token").read_text().strip().rpartition("_")[2],
        secure.token.rpartition("-")[2],
    ]
    for path in first.directory.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o77 == 0, path
            if path.name not in ("operator-token",):
                data = path.read_bytes()
                for secret in secrets:
                    assert secret.encode() not in data, path
                    assert bytes.fromhex(secret) not in data, path


def test_bootstrap_expect_with_a_shared_secret(secure: TestCluster, tmp_path: Path) -> None:
    nodes = [secure.add(f"n{i}") for i in (1, 2, 3)]
    shared = tmp_path / "secret"
    subprocess.run(
        [sys.executable, "-m", "cube", "cluster", "new-secret", str(shared)], cwd=ROOT, check=True
    )
    assert shared.stat().st_mode & 0o777 == 0o600
    config = tmp_path / "cube.toml"
    join = json.dumps([node.address for node in nodes])
    config.write_text(f'[cluster]\nbootstrap_expect = 3\njoin = {join}\nsecret_file = "{shared}"\n')
    stranger_secret = tmp_path / "other"
    stranger_secret.write_text("x" * 64)
    stranger = tmp_path / "stranger.toml"
    stranger.write_text(config.read_text().replace(str(shared), str(stranger_secret)))
    secure.start(nodes[0], arguments=["--config", str(stranger)])
    for node in nodes[1:]:
        secure.start(node, arguments=["--config", str(config)])
    wait_for("they know each other by the secret",
        lambda: f"waiting for {nodes[0].address}" in nodes[1].log.read_text())  # fmt: skip
    assert not (nodes[1].directory / "node.crt").exists()
    nodes[0].kill()
    secure.start(nodes[0], arguments=["--config", str(config)])
    made = wait_for("one of them made the cluster", lambda: [
        node for node in nodes if (node.directory / "operator-token").exists()
    ])  # fmt: skip
    assert len(made) == 1
    for node in nodes:
        node.trusted = made[0].directory
    for node in nodes:
        wait_for(f"{node.name} is ready", node.is_ready)
    wait_for("all see all", lambda: secure.all_ready(3))
    assert len({node.get("/v1/status")["cluster_id"] for node in nodes}) == 1
    # A fourth host joins with the same secret and no token.
    later = secure.add("n4")
    later.trusted = made[0].directory
    config.write_text(f'[cluster]\nsecret_file = "{shared}"\n')
    secure.start(later, nodes[0], arguments=["--config", str(config)])
    wait_for("it joined", later.is_ready)


def test_gossip_keys_are_rotated_while_all_goes_on(secure: TestCluster) -> None:
    secure.form(3)
    before = [(node.directory / "keys.json").read_bytes() for node in secure.nodes]
    assert len(set(before)) == 1
    secure.cube("cluster", "rotate-keys", at=secure.nodes[1])

    def is_rotated() -> bool:
        now = {(node.directory / "keys.json").read_bytes() for node in secure.nodes}
        if len(now) != 1:
            return False
        keys = json.loads(now.pop())["gossip_keys"]
        return len(keys) == 1 and keys != json.loads(before[0])["gossip_keys"]

    wait_for("all have the new key and no other", is_rotated, 120)
    assert secure.all_ready(3)
