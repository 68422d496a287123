"""Wrong input to a real agent: a clear problem, the right code, and nothing changed."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import TestCluster

pytestmark = pytest.mark.e2e

JOB = {
    "name": "x",
    "type": "service",
    "groups": {"g": {"driver": "process", "command": ["sleep", "9"]}},
}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    made = TestCluster(tmp_path_factory.mktemp("bad"), {"CUBE_DRIVERS_DOCKER_ENABLED": "off"})
    made.form(1)
    yield made
    made.stop()


def changed(**group: object) -> bytes:
    return json.dumps({**JOB, "groups": {"g": {**JOB["groups"]["g"], **group}}}).encode()  # type: ignore[index]


def named(name: str) -> bytes:
    return json.dumps({**JOB, "name": name}).encode()


CASES = [
    ("an unknown key", "POST", "/v1/jobs", changed(cuont=2), 422, "count"),
    ("a wrong type", "POST", "/v1/jobs", changed(count="two"), 422, "groups.g.count"),
    (
        "a duplicate port", "POST", "/v1/jobs",
        changed(ports={"a": {"host": 8080}, "b": {"host": 8080}}), 422, "8080",
    ),
    ("an impossible count", "POST", "/v1/jobs", changed(count=-1), 422, "count"),
    ("a count beyond all bounds", "POST", "/v1/jobs", changed(count=10**9), 422, "count"),
    ("a name that escapes a path", "POST", "/v1/jobs", named("../../etc/x"), 422, "name"),
    ("a 10 MB body", "POST", "/v1/jobs", b" " * (10 << 20), 413, ""),
    ("half a body", "POST", "/v1/jobs", changed()[:40], 400, ""),
    ("no JSON at all", "POST", "/v1/jobs", b"\xff\xfe\x00", 400, ""),
    ("a wrong method", "PUT", "/v1/jobs", b"", 405, ""),
    ("a wrong path", "GET", "/v1/jbos", b"", 404, ""),
    ("a wrong job", "GET", "/v1/jobs/nope", b"", 404, "nope"),
    ("a wrong task", "GET", "/v1/tasks/ffff", b"", 404, "ffff"),
    ("a wrong node", "GET", "/v1/nodes/nope", b"", 404, "nope"),
    ("a job that is not there", "POST", "/v1/jobs/nope/stop", b"", 404, "nope"),
    ("an unknown parameter", "GET", "/v1/tasks?jbo=x", b"", 400, "job"),
    ("a live node's removal", "DELETE", "/v1/nodes/n1", b"", 409, "down"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "method", "path", "body", "status", "told"), CASES)
def test_a_clear_problem_and_nothing_changed(
    one: TestCluster, what: str, method: str, path: str, body: bytes, status: int, told: str
) -> None:
    node = one.nodes[0]
    before = node.get("/v1/jobs"), node.get("/v1/tasks")["items"]
    connection = http.client.HTTPConnection("127.0.0.1", node.http, timeout=30)
    headers = {"Content-Type": "application/json"} if body else {}
    try:
        connection.request(method, path, body or None, headers)
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413, what  # it may stop listening to a body that is too large
    answer = connection.getresponse()
    problem = json.load(answer)
    connection.close()
    assert answer.status == status, problem
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert told in json.dumps(problem)
    after = node.get("/v1/jobs"), node.get("/v1/tasks")["items"]
    assert after[1] == before[1]
    assert after[0]["items"] == before[0]["items"]


def test_a_body_cut_off_on_the_way_changes_nothing(one: TestCluster) -> None:
    node = one.nodes[0]
    with socket.create_connection(("127.0.0.1", node.http)) as sent:
        sent.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 5000\r\n\r\n" + changed()
        )
    assert node.get("/v1/jobs")["items"] == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status", "nope"], 4),
        (["why", "nope"], 4),
        (["logs", "nope"], 4),
        (["stop", "nope"], 4),
        (["rm", "nope"], 4),
        (["scale", "nope/g=1"], 4),
        (["task", "show", "nope"], 4),
        (["node", "show", "nope"], 4),
        (["node", "rm", "n1"], 5),
        (["ps", "nope"], 4),
    ],
)
def test_the_command_line_says_not_found(one: TestCluster, arguments: list[str], code: int) -> None:
    done = one.cube(*arguments, code=code)
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_an_invalid_file_is_exit_2_with_every_error(one: TestCluster, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('name = "x"\ntype = "servce"\n[groups.g]\ndriver = "process"\ncuont = 1\n')
    done = one.cube("run", str(file), code=2)
    for part in ("type", "service", "groups.g.cuont", "count", "groups.g.command"):
        assert part in done.stderr
    assert one.nodes[0].get("/v1/jobs")["items"] == []


def test_a_key_that_is_not_honoured_is_named(one: TestCluster) -> None:
    job = (
        b'name="w"\ntype="service"\n[groups.g]\ndriver="process"\ncommand=["sleep","9"]\n'
        b"ports = { http = { target = 80 } }\n"
    )
    done = one.cube("run", "-", "--detach", stdin=job)
    assert "warning: " in done.stderr
    assert "groups.g.ports.http.target" in done.stderr
    one.cube("rm", "w")
