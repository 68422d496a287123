"""What users change: codes, preconditions, idempotency, weather; and everything a client can get wrong."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
from typing import Any

import pytest

from cube.model import commands as c
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.lifecycle import Desired, NodeStatus
from tests.fakes.cluster import TERM, World, job_spec
from tests.fakes.served import Served, read, served

Json = Any

HELLO = b"""
name = "hello"
type = "service"
[groups.web]
count = 2
driver = "process"
command = ["true"]
[groups.web.ports.http]
"""
TREE: Json = {
    "name": "hello",
    "type": "service",
    "groups": {
        "web": {"count": 2, "driver": "process", "command": ["true"], "ports": {"http": {}}}
    },
}
TOML = {"Content-Type": "application/toml"}


async def submit(api: Served, status: int, data: bytes = HELLO, **headers: str) -> Json:
    sent = {**TOML, **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with api.client.post("/v1/jobs", data=data, headers=sent) as response:
        return await read(response, status)


async def test_a_job_is_created_left_alone_and_updated() -> None:
    async with served() as api:
        created = await submit(api, 201)
        assert created == {
            "name": "hello", "version": 1, "changed": True, "deployment_id": "hello.v1",
            "index": api.world.state.index, "warnings": [],
        }  # fmt: skip
        again = await submit(api, 200)
        assert (again["version"], again["changed"]) == (1, False)
        async with api.client.post("/v1/jobs", json=TREE) as response:
            same: Json = await read(response, 200)
        assert same["changed"] is False
        changed = await submit(api, 200, HELLO.replace(b"count = 2", b"count = 3"))
        assert (changed["version"], changed["changed"]) == (2, True)
        versions: Json = await api.get("/v1/jobs/hello/versions")
        assert [v["version"] for v in versions["items"]] == [1, 2]
        assert versions["items"][1]["spec"]["groups"]["web"]["count"] == 3


async def test_what_is_not_honoured_yet_is_answered_with_a_warning() -> None:
    async with served() as api:
        port = b"target = 8080\n"
        answer = await submit(api, 201, HELLO + port)
        assert len(answer["warnings"]) == 1
        assert "groups.web.ports.http.target" in answer["warnings"][0]


async def test_validate_changes_nothing() -> None:
    async with served() as api:
        before = api.world.state
        async with api.client.post("/v1/jobs/validate", data=HELLO, headers=TOML) as response:
            found: Json = await read(response)
        assert found["valid"] is True and found["name"] == "hello"
        assert found["spec"]["groups"]["web"]["restart"]["policy"] == "always"
        assert api.world.state is before
        await api.problem("POST", "/v1/jobs/validate", 422, json={"name": "x"})


async def test_preconditions_guard_against_races() -> None:
    async with served() as api:
        await submit(api, 412, If_Match='"1"')
        await submit(api, 201, If_None_Match="*")
        await submit(api, 412, If_None_Match="*")
        async with api.client.get("/v1/jobs/hello") as response:
            etag = response.headers["ETag"]
        await submit(api, 412, HELLO.replace(b"2", b"4"), If_Match='"7"')
        await submit(api, 200, HELLO.replace(b"2", b"4"), If_Match=etag)
        body = {"group": "web", "count": 1}
        path = "/v1/jobs/hello/scale"
        await api.problem("POST", path, 412, json=body, headers={"If-Match": '"1"'})
        async with api.client.post(path, json=body, headers={"If-Match": '"2"'}) as response:
            assert response.status == 200
        for bad in ({"If-Match": "3"}, {"If-None-Match": '"3"'}, {"If-Match": '"0"'}):
            await api.problem("POST", path, 400, json=body, headers=bad)
        await api.problem("DELETE", "/v1/jobs/hello", 400, headers={"If-Match": '"3"'})


async def test_a_key_makes_a_retry_happen_once_and_serves_no_other_request() -> None:
    async with served() as api:
        first = await submit(api, 201, Idempotency_Key="k1")
        again = await submit(api, 201, Idempotency_Key="k1")
        assert again == first
        problem = await submit(api, 409, HELLO.replace(b"2", b"3"), Idempotency_Key="k1")
        assert problem["code"] == "key_reused"
        body = {"group": "web", "count": 7}
        headers = {"Idempotency-Key": "k1"}  # another path: another request
        async with api.client.post("/v1/jobs/hello/scale", json=body, headers=headers) as response:
            assert response.status == 200
        async with api.client.delete("/v1/jobs/hello", headers=headers) as response:
            assert response.status == 202
        async with api.client.delete("/v1/jobs/hello", headers=headers) as response:
            assert response.status == 202
        await api.problem("DELETE", "/v1/jobs/hello", 404)
        bad = {"Idempotency-Key": "k" * 129}
        await api.problem("POST", "/v1/jobs", 400, data=HELLO, headers={**TOML, **bad})


async def test_a_repeated_removal_gets_the_first_answer() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec(), "n2")
        headers = {"Idempotency-Key": "a"}
        async with api.client.delete(f"/v1/tasks/{task.id}", headers=headers) as response:
            first: Json = await read(response, 202)
        assert first["changed"] is True
        node_id = api.world.state.node_names["n2"]
        api.world.apply(c.SetNodeStatus(TERM, node_id, NodeStatus.DOWN))
        async with api.client.delete(f"/v1/nodes/{node_id}", headers=headers) as response:
            await read(response, 200)
        assert task.id not in api.world.state.tasks
        for path, status in ((f"/v1/nodes/{node_id}", 200), (f"/v1/tasks/{task.id}", 202)):
            async with api.client.delete(path, headers=headers) as response:
                again: Json = await read(response, status)
            assert again["changed"] is True
            await api.problem("DELETE", path, 404)


async def test_stop_start_scale_and_delete() -> None:
    async with served() as api:
        api.world.running(job_spec(web={"count": 2}))
        async with api.client.post("/v1/jobs/shop/stop") as response:
            stopped: Json = await read(response)
        assert (stopped["name"], stopped["changed"], stopped["version"]) == ("shop", True, 1)
        job: Json = await api.get("/v1/jobs/shop")
        assert job["status"] == "stopping"
        async with api.client.post("/v1/jobs/shop/stop", json={}) as response:
            assert (await response.json())["changed"] is False
        async with api.client.post("/v1/jobs/shop/start") as response:
            assert (await response.json())["changed"] is True
        async with api.client.post("/v1/jobs/shop/scale", json={"group": "web", "count": 5}) as r:
            scaled: Json = await read(r)
        assert (scaled["version"], scaled["changed"], scaled["deployment_id"]) == (
            2, True, "shop.v2",
        )  # fmt: skip
        for verb in ("stop", "start"):
            await api.problem("POST", f"/v1/jobs/none/{verb}", 404)
        for body, status in (
            ({"group": "api", "count": 1}, 404),
            ({"group": "web", "count": -1}, 422),
            ({"group": "web", "count": 10**9}, 422),
            ({"group": "web", "count": "3"}, 422),
            ({"group": "web"}, 422),
            ({"group": "web", "count": 1, "cuont": 2}, 422),
        ):
            await api.problem("POST", "/v1/jobs/shop/scale", status, json=body)


async def test_stopping_a_task() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec(web={"count": 1}))
        async with api.client.delete("/v1/tasks/shop.web.0") as response:
            stopped: Json = await read(response, 202)
        assert (stopped["id"], stopped["changed"]) == (task.id, True)
        assert api.world.state.tasks[task.id].desired is Desired.STOP
        api.world.run(job_spec("other"))
        problem = await api.problem("DELETE", "/v1/tasks/other.web.0", 409)
        assert "not placed" in str(problem["detail"])


async def test_nodes_are_drained_cordoned_labelled_and_removed() -> None:
    async with served() as api:
        for path, body in (
            ("drain", {"deadline": "5m"}),
            ("eligibility", {"eligible": False}),
            ("labels", {"zone": "a", "rack/row": "7"}),
        ):
            async with api.client.put(f"/v1/nodes/n2/{path}", json=body) as response:
                changed: Json = await read(response)
            assert (changed["name"], changed["changed"]) == ("n2", True)
        node: Json = await api.get("/v1/nodes/n2")
        assert node["draining"] and not node["eligible"]
        assert node["labels"] == {"zone": "a", "rack/row": "7"}
        async with api.client.put(
            "/v1/nodes/n2/drain", data=b"null", headers={"Content-Type": "application/json"}
        ) as response:
            await read(response)
        node = await api.get("/v1/nodes/n2")
        assert not node["draining"]
        problem = await api.problem("DELETE", "/v1/nodes/n2", 409)
        assert problem["code"] == "refused"
        for path, bad in (
            ("drain", {"deadline": None}), ("drain", {"deadline": "soon"}), ("drain", {"dead": 1}),
            ("eligibility", {}), ("eligibility", {"eligible": 1}),
            ("labels", {"zone": 3}), ("labels", {"a b": "x"}), ("labels", {"a": "x" * 300}),
            ("labels", {f"k{n}": "" for n in range(65)}), ("labels", ["zone"]),
        ):  # fmt: skip
            await api.problem("PUT", f"/v1/nodes/n2/{path}", 422, json=bad)


async def test_weather_is_said_and_nothing_is_claimed() -> None:
    async with served() as api:
        api.cluster.weather = Unavailable("no leader is known")
        problem = await submit(api, 503)
        assert problem["code"] == "unavailable" and problem["detail"] == "no leader is known"
        async with api.client.post("/v1/jobs", data=HELLO, headers=TOML) as response:
            assert response.headers["Retry-After"] == "1"
        await api.problem("GET", "/v1/jobs?consistent=1", 503)
        api.cluster.weather = OutcomeUnknown("the leader went away")
        problem = await submit(api, 504)
        assert problem["code"] == "outcome_unknown" and "Idempotency-Key" in problem["hint"]


BAD_JOBS: list[tuple[str, Json, str]] = [
    ("unknown key", {"groups": {"web": {"ports": {"http": {"hst": 1}}}}}, "/groups/web/ports/http/hst"),
    ("wrong type", {"groups": {"web": {"count": "three"}}}, "/groups/web/count"),
    ("duplicate port", {"groups": {"web": {"ports": {"a": {"host": 80}, "b": {"host": 80}}}}},
     "/groups/web/ports/b/host"),
    ("impossible count", {"groups": {"web": {"count": 10**7}}}, "/groups/web/count"),
    ("negative count", {"groups": {"web": {"count": -1}}}, "/groups/web/count"),
    ("escaping name", {"name": "../../etc/passwd"}, "/name"),
    ("escaping name", {"name": "a/b"}, "/name"),
    ("empty name", {"name": ""}, "/name"),
    ("unknown type", {"type": "servise"}, "/type"),
    ("no groups", {"groups": {}}, "/groups"),
]  # fmt: skip


def merged(tree: Json, patch: Json) -> Json:
    if not isinstance(tree, dict) or not isinstance(patch, dict) or not patch:
        return patch
    return {**tree, **{key: merged(tree.get(key), value) for key, value in patch.items()}}


@pytest.mark.parametrize(("what", "patch", "pointer"), BAD_JOBS)
async def test_a_bad_job_is_refused_by_path(what: str, patch: Json, pointer: str) -> None:
    async with served() as api:
        problem: Json = await api.problem("POST", "/v1/jobs", 422, json=merged(TREE, patch))
        assert problem["code"] == "invalid_job"
        assert pointer in [error["pointer"] for error in problem["errors"]], problem["errors"]


async def test_all_errors_of_a_job_are_answered_at_once_with_hints() -> None:
    async with served() as api:
        tree = merged(TREE, {"typ": 1, "priority": 1000, "groups": {"web": {"imgae": "x"}}})
        problem: Json = await api.problem("POST", "/v1/jobs", 422, json=tree)
        assert len(problem["errors"]) == 3
        by_path = {error["path"]: error for error in problem["errors"]}
        assert "image" in by_path["groups.web.imgae"]["hint"]


BAD_REQUESTS: list[tuple[str, str, int, dict[str, Any], str]] = [
    ("POST", "/v1/jobs", 400, {"data": b'{"name": "x", "gro', "json": ...}, "bad_body"),
    ("POST", "/v1/jobs", 400, {"data": b"name = ", "toml": ...}, "bad_body"),
    ("POST", "/v1/jobs", 400, {"data": b"", "json": ...}, "bad_body"),
    ("POST", "/v1/jobs", 400, {"data": b"\xff\xfe", "json": ...}, "bad_body"),
    ("POST", "/v1/jobs", 400, {"data": b"[" * 100_000, "json": ...}, "bad_body"),
    ("POST", "/v1/jobs", 422, {"data": b"[]", "json": ...}, "invalid_job"),
    ("POST", "/v1/jobs", 422, {"data": b"", "toml": ...}, "invalid_job"),
    ("POST", "/v1/jobs", 413, {"data": b"#" * 600_000, "toml": ...}, "too_large"),
    ("POST", "/v1/jobs", 413, {"data": io.BytesIO(b" " * 10_000_000), "json": ...}, "too_large"),
    ("POST", "/v1/jobs", 415, {"data": HELLO}, "unsupported_media_type"),
    ("POST", "/v1/jobs", 415, {"data": HELLO, "headers": {"Content-Type": "text/plain"}},
     "unsupported_media_type"),
    ("POST", "/v1/jobs", 422, {"data": b"a: b", "headers": {"Content-Type": "application/yaml"}},
     "invalid_job"),
    ("POST", "/v1/jobs", 422, {"data": b"a: [", "headers": {"Content-Type": "text/yaml"}},
     "invalid_job"),
    ("POST", "/v1/jobs/plan", 413,
     {"data": b"#" * 600_000, "headers": {"Content-Type": "application/x-yaml"}}, "too_large"),
    ("POST", "/v1/jobs", 415,
     {"data": b"x", "headers": {**TOML, "Content-Encoding": "br"}}, "unsupported_encoding"),
    ("POST", "/v1/jobs/hello/scale", 415, {"data": b"{}"}, "unsupported_media_type"),
    ("POST", "/v1/jobs/hello/scale", 400, {"data": b"{", "json": ...}, "bad_body"),
    ("POST", "/v1/jobs/hello/stop", 422, {"data": b'{"now": true}', "json": ...}, "invalid"),
    ("PUT", "/v1/jobs", 405, {}, "method_not_allowed"),
    ("DELETE", "/v1/status", 405, {}, "method_not_allowed"),
    ("PATCH", "/v1/jobs/hello", 405, {}, "method_not_allowed"),
    ("PROPFIND", "/v1/jobs/hello", 405, {}, "method_not_allowed"),
    ("GET", "/v1/nothing", 404, {}, "no_route"),
    ("GET", "/v2/jobs", 404, {}, "no_route"),
    ("GET", "/v1/jobs/none", 404, {}, "not_found"),
    ("GET", "/v1/jobs/..%2f..%2fetc%2fpasswd", 404, {}, "not_found"),
    ("GET", "/v1/jobs/%00%ff", 404, {}, "not_found"),
    ("GET", "/v1/tasks/0123456789abcdef", 404, {}, "not_found"),
    ("GET", "/v1/tasks/hello.web.-1", 404, {}, "not_found"),
    ("GET", "/v1/tasks/hello.web.99999999999999999999", 404, {}, "not_found"),
    ("GET", "/v1/tasks/" + "x" * 5_000, 404, {}, "not_found"),
    ("GET", "/v1/nodes/none", 404, {}, "not_found"),
    ("GET", "/v1/tasks?node=none", 404, {}, "not_found"),
    ("GET", "/v1/tasks?jbo=hello", 400, {}, "unknown_parameter"),
    ("GET", "/v1/tasks?job=a&job=b", 400, {}, "bad_parameter"),
    ("GET", "/v1/tasks?state=runing", 400, {}, "bad_parameter"),
    ("GET", "/v1/tasks?limit=0", 400, {}, "bad_parameter"),
    ("GET", "/v1/tasks?limit=1001", 400, {}, "bad_parameter"),
    ("GET", "/v1/tasks?limit=ten", 400, {}, "bad_parameter"),
    ("GET", "/v1/tasks?limit=%D9%A3", 400, {}, "bad_parameter"),
    ("GET", "/v1/tasks?cursor=AAAA", 400, {}, "bad_parameter"),
    ("GET", "/v1/tasks?cursor=%C3%A9", 400, {}, "bad_parameter"),
    ("GET", "/v1/jobs?cursor=" + "A" * 2_000, 400, {}, "bad_parameter"),
    ("GET", "/v1/jobs?consistent=perhaps", 400, {}, "bad_parameter"),
    ("GET", "/v1/jobs?index=-1", 400, {}, "bad_parameter"),
    ("GET", "/v1/jobs?index=1&wait=soon", 400, {}, "bad_parameter"),
    ("GET", "/v1/jobs?wait=5s", 400, {}, "bad_parameter"),
    ("GET", "/v1/events?topic=weather", 400, {}, "bad_parameter"),
    ("GET", "/v1/events?since=yesterday", 400, {}, "bad_parameter"),
    ("GET", "/v1/livez?index=1", 400, {}, "unknown_parameter"),
    ("POST", "/v1/jobs/hello/rollback", 422, {"json": {"version": 0}}, "invalid"),
    ("POST", "/v1/jobs/hello/rollback", 422, {"json": {"version": "x"}}, "invalid"),
    ("GET", "/v1/deployments/hello.v7", 404, {}, "not_found"),
    ("GET", "/v1/deployments/helo.v1", 404, {}, "not_found"),
    ("GET", "/v1/tasks/x/exec", 400, {}, "bad_request"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "status", "sent", "code"), BAD_REQUESTS)
async def test_a_bad_request_is_a_clear_problem_and_changes_nothing(
    method: str, path: str, status: int, sent: dict[str, Any], code: str
) -> None:
    sent = dict(sent)
    for word, content_type in (("json", "application/json"), ("toml", "application/toml")):
        if sent.get(word) is ...:
            del sent[word]
            sent["headers"] = {"Content-Type": content_type}
    world = World()
    world.run(job_spec("hello"))
    async with served(world) as api:
        problem = await api.problem(method, path, status, **sent)
        assert problem["code"] == code and problem["detail"] and problem["request_id"]
        assert api.cluster.proposed == []
        await api.get("/v1/status")  # and the node goes on


async def test_unknown_parameters_are_named_with_what_was_meant() -> None:
    async with served() as api:
        problem = await api.problem("GET", "/v1/tasks?stat=running", 400)
        assert "stat" in str(problem["detail"]) and problem["hint"] == "did you mean state?"


async def test_a_wrong_method_names_the_right_ones() -> None:
    async with served() as api, api.client.put("/v1/jobs") as response:
        assert response.headers["Allow"] == "GET, POST"
        assert response.content_type == "application/problem+json"


async def test_ten_megabytes_are_refused_without_being_read_into_memory() -> None:
    """With http.client, which sends everything before it reads: the answer must still arrive."""
    async with served() as api:

        def post(chunked: bool) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", api.server.port or 0, timeout=10)
            body: Any = b"x" * 10_000_000
            if chunked:
                body = iter([body[:1_000_000]] * 10)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", "/v1/jobs", body, TOML, encode_chunked=chunked)
            response = connection.getresponse()
            found = response.status, response.read()
            connection.close()
            return found

        for chunked in (False, True):
            status, body = await asyncio.to_thread(post, chunked)
            assert status == 413 and b"too_large" in body


async def test_a_body_that_stops_half_way_times_out() -> None:
    async with served() as api:
        before = api.world.state
        reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
        writer.write(
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/toml\r\n"
            b"Content-Length: 500\r\n\r\n" + HELLO[:40]
        )
        answer = await asyncio.wait_for(reader.read(4096), 10)
        assert b" 408 " in answer.splitlines()[0] and b"body_timeout" in answer
        writer.close()
        await writer.wait_closed()
        assert api.world.state is before


async def test_a_connection_cut_in_the_body_changes_nothing() -> None:
    async with served() as api:
        before = api.world.state
        _, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
        writer.write(
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/toml\r\n"
            b"Content-Length: 500\r\n\r\n" + HELLO
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await api.get("/v1/status")
        assert api.world.state is before and api.cluster.proposed == []


async def test_a_bug_is_answered_without_its_insides(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as api:
        api.cluster.explain = None  # type: ignore[assignment, method-assign]
        api.world.run(job_spec())
        problem = await api.problem("GET", "/v1/jobs/shop/why", 500)
        assert problem["code"] == "internal" and "NoneType" not in str(problem)
        assert "request_failed" in caplog.text and str(problem["request_id"]) in caplog.text


async def test_request_ids_are_taken_over_when_they_are_sane() -> None:
    async with served() as api:
        for given, kept in (("abc-1", True), ("x y", False), ("a" * 65, False)):
            async with api.client.get("/v1/jobs/none", headers={"X-Request-Id": given}) as response:
                body = await response.json()
                assert (response.headers["X-Request-Id"] == given) is kept
                assert body["request_id"] == response.headers["X-Request-Id"]


async def test_depends_on_other_jobs_is_warned_about_and_refused_in_a_circle() -> None:
    async with served() as api:
        waits = (
            b'name = "%s"\ntype = "service"\n[groups.g]\ndriver = "process"\ncommand = ["true"]\n'
        )
        waits += b'depends_on = ["%s/g"]\n'
        answer = await submit(api, 201, waits % (b"a", b"b"))
        assert answer["warnings"] == [
            "groups.g.depends_on: there is no job b yet; the group waits until it comes"
        ]
        problem = await submit(api, 409, waits % (b"b", b"a"))
        assert problem["code"] == "refused"
        assert problem["detail"] == "depends_on would be a cycle: b/g → a/g → b/g"
        assert api.world.state.job_named("b") is None
