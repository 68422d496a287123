"""/v1/secrets and /v1/configs: values go in; those of secrets never come out."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cube.api.auth import Role
from cube.api.routes import ROUTES
from cube.model.stored import VALUE_BYTES_MAX
from tests.fakes.served import Served, served

BYTES = "application/octet-stream"
JOB = {
    "name": "web", "type": "service",
    "groups": {
        "g": {"driver": "process", "command": ["x"], "env": {"P": {"secret": "db"}}},
    },
}  # fmt: skip


@pytest.fixture
async def api() -> AsyncIterator[Served]:
    async with served() as found:
        yield found


async def call(
    api: Served, method: str, path: str, *, data: bytes | None = None, json: Any = None,
    **headers: str,
) -> tuple[int, Any]:  # fmt: skip
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if data is not None:
        named.setdefault("Content-Type", BYTES)
    async with api.client.request(method, path, data=data, json=json, headers=named) as response:
        if response.content_type == BYTES:
            return response.status, await response.read()
        return response.status, await response.json(content_type=None)


async def test_a_secret_is_set_listed_shown_and_removed(api: Served) -> None:
    status, made = await call(api, "PUT", "/v1/secrets/db", data=b"canary")
    assert (status, made["version"], made["changed"], made["jobs"]) == (201, 1, True, [])
    status, made = await call(api, "PUT", "/v1/secrets/db", data=b"canary")
    assert (status, made["version"], made["changed"]) == (200, 1, False)
    _, _ = await call(api, "POST", "/v1/jobs", json=JOB)
    status, made = await call(api, "PUT", "/v1/secrets/db", data=b"canary2")
    assert (status, made["version"], made["jobs"], made["job_count"]) == (200, 2, ["web"], 1)
    status, shown = await call(api, "GET", "/v1/secrets/db")
    assert (shown["name"], shown["version"], shown["size"]) == ("db", 2, 7)
    assert shown["used_by"] == ["web"]
    assert [one["version"] for one in shown["versions"]] == [1, 2]
    _, listed = await call(api, "GET", "/v1/secrets")
    assert listed["items"] == [shown]
    _, versions = await call(api, "GET", "/v1/jobs/web/versions")
    assert [one["uses"] for one in versions["items"]] == [{"secret/db": 1}, {"secret/db": 2}]
    assert versions["items"][1]["reason"] == "secret db is at version 2"
    _, deployments = await call(api, "GET", "/v1/deployments?job=web")
    assert "secret db is at version 2" in str(deployments)
    _, _ = await call(api, "POST", "/v1/deployments/web.v2/fail")
    _, failed = await call(api, "GET", "/v1/deployments/web.v2")
    assert failed["message"] == "secret db is at version 2: failed by hand"
    status, refused = await call(api, "DELETE", "/v1/secrets/db")
    assert (status, refused["code"]) == (409, "refused")
    assert "used by web" in refused["detail"]
    _, _ = await call(api, "DELETE", "/v1/jobs/web")
    status, removed = await call(api, "DELETE", "/v1/secrets/db")
    assert (status, removed["changed"]) == (200, True)
    status, _ = await call(api, "DELETE", "/v1/secrets/db")
    assert status == 404
    assert "canary" not in str((shown, listed, versions, deployments, refused))
    assert b"canary" not in repr(api.world.state).encode()


async def test_a_plan_says_which_values_are_newer(api: Served) -> None:
    _ = await call(api, "PUT", "/v1/secrets/db", data=b"1")
    _ = await call(api, "POST", "/v1/jobs", json=JOB)
    _ = await call(api, "PUT", "/v1/secrets/db", data=b"2")
    _ = await call(api, "POST", "/v1/jobs/web/rollback", json={"version": 1})
    status, plan = await call(api, "POST", "/v1/jobs/plan", json=JOB)
    assert (status, plan["changed"]) == (200, True)
    assert plan["changes"] == [{"path": "secrets.db", "old": 1, "new": 2}]


async def test_a_job_that_names_no_secret_that_is_there_is_refused(api: Served) -> None:
    status, refused = await call(api, "POST", "/v1/jobs", json=JOB)
    assert (status, refused["code"]) == (409, "refused")
    assert "there is no secret db; `cube secret set db` makes it" in refused["detail"]


async def test_json_takes_text_or_base64(api: Served) -> None:
    for name, body in (
        ("text", {"value": "päss"}),
        ("data", {"data": base64.b64encode("päss".encode()).decode()}),
    ):
        status, _ = await call(api, "POST", "/v1/secrets", json={"name": name, **body})
        assert status == 201
        status, made = await call(api, "PUT", f"/v1/secrets/{name}", json=body)
        assert (status, made["changed"]) == (200, False)
    sizes = [one.newest.size_bytes for one in api.world.state.stored.values()]
    assert sizes == [5, 5]


async def test_a_config_is_read_back_byte_for_byte(api: Served) -> None:
    for value in (b"one\n", b"\x00two"):
        _ = await call(api, "PUT", "/v1/configs/app.toml", data=value)
    assert await call(api, "GET", "/v1/configs/app.toml/value") == (200, b"\x00two")
    assert await call(api, "GET", "/v1/configs/app.toml/value?version=1") == (200, b"one\n")
    status, refused = await call(api, "GET", "/v1/configs/app.toml/value?version=7")
    assert status == 404
    assert "it has 1, 2" in refused["detail"]
    status, _ = await call(api, "PUT", "/v1/configs/empty", data=b"")
    assert status == 201
    assert (await call(api, "GET", "/v1/secrets"))[1]["items"] == []
    assert (await call(api, "GET", "/v1/secrets/app.toml"))[0] == 404


async def test_who_names_a_version_gets_no_other(api: Served) -> None:
    path = "/v1/secrets/db"
    status, _ = await call(api, "PUT", path, data=b"1", If_None_Match="*")
    assert status == 201
    status, _ = await call(api, "PUT", path, data=b"2", If_None_Match="*")
    assert status == 412
    status, _ = await call(api, "PUT", path, data=b"2", If_Match='"1"')
    assert status == 200


async def test_a_repeated_request_happens_once_and_leaves_no_hash_to_guess_at(api: Served) -> None:
    path, key = "/v1/secrets/db", {"Idempotency_Key": "k"}
    first = await call(api, "PUT", path, data=b"1234", **key)
    _ = await call(api, "PUT", path, data=b"5678")
    assert await call(api, "PUT", path, data=b"1234", **key) == first
    status, refused = await call(api, "PUT", path, data=b"9999", **key)
    assert (status, refused["code"]) == (409, "key_reused")
    digests = {kept.digest for kept in api.world.state.outcomes.values()}
    from cube.api.call import _hash

    assert _hash(b"1234") not in digests


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "words"),
    [
        ("PUT", "/v1/secrets/a%2Fb", {"data": b"canary"}, 422, "letters, digits"),
        ("PUT", "/v1/secrets/x", {"data": b""}, 422, "empty"),
        ("PUT", "/v1/secrets/x", {"data": bytes(VALUE_BYTES_MAX + 1)}, 422, "at most 65536"),
        ("PUT", "/v1/configs/x", {"data": bytes(VALUE_BYTES_MAX + 1)}, 422, "at most 65536"),
        ("PUT", "/v1/secrets/x", {"data": b"canary", "Content_Type": "text/plain"}, 415, "octet"),
        ("PUT", "/v1/secrets/x", {"json": {}}, 422, "one of the two"),
        ("PUT", "/v1/secrets/x", {"json": {"value": "canary", "data": ""}}, 422, "one of the two"),
        ("PUT", "/v1/secrets/x", {"json": {"data": "canary!"}}, 422, "data"),
        ("PUT", "/v1/secrets/x", {"json": {"vaule": "canary"}}, 422, "value"),
        ("POST", "/v1/secrets", {"json": {"value": "canary"}}, 422, "name"),
        ("POST", "/v1/secrets", {"json": {"name": "a b", "value": "canary"}}, 422, "letters"),
        ("POST", "/v1/secrets", {"data": b'{"name": "x", "value": "canary',
                                 "Content_Type": "application/json"}, 400, "JSON"),
        ("GET", "/v1/secrets/x", {}, 404, "no such secret"),
        ("GET", "/v1/secrets/x/value", {}, 404, ""),
        ("DELETE", "/v1/configs/x", {}, 404, "no such config"),
    ],
)  # fmt: skip
async def test_a_bad_request_is_refused_without_what_was_in_it(
    api: Served, method: str, path: str, sent: dict[str, Any], status: int, words: str
) -> None:
    found, problem = await call(api, method, path, **sent)
    assert found == status, problem
    assert words in problem["detail"] + problem["hint"]
    assert "canary" not in str(problem)
    assert not api.world.state.stored


def test_who_runs_jobs_sets_secrets_and_who_only_looks_does_not() -> None:
    roles = {
        (route.method, route.path): route.role for route in ROUTES
        if route.path.startswith(("/v1/secrets", "/v1/configs"))
    }  # fmt: skip
    assert {key: role for key, role in roles.items() if key[0] == "GET"} == dict.fromkeys(
        (key for key in roles if key[0] == "GET"), Role.VIEWER
    )
    assert {role for key, role in roles.items() if key[0] != "GET"} == {Role.DEPLOYER}
    assert ("GET", "/v1/configs/{name}/value") in roles
    assert not any("secrets" in path and "value" in path for _, path in roles)
