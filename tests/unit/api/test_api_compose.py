"""Compose files in request bodies: a job like any other, with what it says in vain, or every error."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest

from tests.fakes.served import Served, read, served

Json = Any

EXAMPLE = (files("cube") / "examples" / "compose.yaml").read_bytes()
YAML = {"Content-Type": "application/yaml; charset=utf-8"}


async def post(api: Served, path: str, status: int, data: bytes) -> Json:
    async with api.client.post(path, data=data, headers=YAML) as response:
        return await read(response, status)


async def test_a_compose_file_is_a_job() -> None:
    async with served() as api:
        created = await post(api, "/v1/jobs", 201, EXAMPLE)
        assert (created["name"], created["version"]) == ("blog", 1)
        assert any(warning.startswith("services: web: no limit") for warning in created["warnings"])
        assert (await post(api, "/v1/jobs", 200, EXAMPLE))["changed"] is False
        shown: Json = await api.get("/v1/jobs/blog")
        async with api.client.post("/v1/jobs", json=shown["spec"]) as response:
            same: Json = await read(response, 200)
        assert same["changed"] is False


async def test_it_is_validated_and_planned_without_a_change() -> None:
    async with served() as api:
        before = api.world.state
        found = await post(api, "/v1/jobs/validate", 200, EXAMPLE)
        assert found["spec"]["groups"]["web"]["count"] == 2
        assert found["warnings"]
        planned = await post(api, "/v1/jobs/plan", 200, EXAMPLE)
        assert planned["warnings"] == found["warnings"]
        assert set(planned["groups"]) == {"db", "web"}
        assert api.world.state is before


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/validate", "/v1/jobs/plan"])
async def test_errors_have_pointers_into_the_compose_file(path: str) -> None:
    text = b"""
name: shop
services:
  web:
    image: nginx:${TAG}
    env_file: .env
    deploy: { replicas: many, resources: { limits: { memory: 1m } } }
    tty: true
"""
    async with served() as api:
        before = api.world.state
        found = await post(api, path, 422, text)
        assert found["code"] == "invalid_job"
        assert {error["pointer"] for error in found["errors"]} == {
            "/services/web/image",
            "/services/web/env_file",
            "/services/web/deploy/replicas",
            "/services/web/deploy/resources/limits/memory",
            "/services/web/tty",
        }
        assert all(error["path"].startswith("services.web.") for error in found["errors"])
        assert api.world.state is before
