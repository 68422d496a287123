"""/v1/deployments, and the verbs of jobs that begin one."""

from __future__ import annotations

from typing import Any

from cube.model import commands as c
from cube.model.deployment import DeploymentStatus, DeploymentStep
from tests.fakes.cluster import TERM, World, job_spec
from tests.fakes.served import read, served

Json = Any


def settle(world: World, version: int, status: DeploymentStatus, message: str = "") -> None:
    """The leader's verdict."""
    job = world.state.job_named("shop")
    assert job is not None
    verdict = DeploymentStep(job.id, version, status, message)
    world.apply(c.ApplyPlan(TERM, f"verdict-{version}", deployments=(verdict,)))


def update(canaries: int = 0) -> dict[str, object]:
    return {"count": 2, "command": ["two"], "update": {"canaries": canaries}}


async def test_a_deployment_is_shown_listed_and_counted() -> None:
    async with served() as api:
        api.world.running(job_spec(web={"count": 2}))
        found: Json = await api.get("/v1/deployments/shop.v1")
        assert found["id"] == "shop.v1" and found["job"] == "shop"
        assert (found["version"], found["from_version"], found["status"]) == (1, None, "running")
        assert found["groups"]["web"] == {
            "desired": 2, "placed": 2, "healthy": 2, "unhealthy": 0, "canaries": 0,
            "promoted": True,
        }  # fmt: skip
        assert found["deadline_at"] is not None
        assert (await api.get("/v1/deployments/shop")) == found, "a job's name: its newest"
        settle(api.world, 1, DeploymentStatus.SUCCESSFUL)
        api.world.run(job_spec(web=update()))
        items: Json = await api.get("/v1/deployments?job=shop")
        assert [item["id"] for item in items["items"]] == ["shop.v1", "shop.v2"]
        assert [item["status"] for item in items["items"]] == ["successful", "running"]
        assert items["items"][1]["from_version"] == 1
        assert items["items"][1]["groups"]["web"]["placed"] == 0
        assert items["items"][1]["replaces"] is True
        page: Json = await api.get("/v1/deployments?limit=1")
        rest: Json = await api.get(f"/v1/deployments?limit=1&cursor={page['next']}")
        assert [item["id"] for item in rest["items"]] == ["shop.v2"]


async def test_only_the_newest_of_each_job_when_asked() -> None:
    async with served() as api:
        for name in ("a", "b"):
            api.world.run(job_spec(name, web={"count": 2}))
        api.world.run(job_spec("b", web=update()))
        api.world.run(job_spec("c", "batch"))  # has none
        for query, expected in (
            ("latest=1", ["a.v1", "b.v2"]),
            ("latest=0", ["a.v1", "b.v1", "b.v2"]),
            ("latest=1&job=b", ["b.v2"]),
            ("latest=1&job=none", []),
        ):
            found: Json = await api.get(f"/v1/deployments?{query}")
            assert [item["id"] for item in found["items"]] == expected, query
        page: Json = await api.get("/v1/deployments?latest=1&limit=1")
        rest: Json = await api.get(f"/v1/deployments?latest=1&limit=1&cursor={page['next']}")
        assert [item["id"] for item in (*page["items"], *rest["items"])] == ["a.v1", "b.v2"]
        assert rest["next"] is None
        await api.problem("GET", "/v1/deployments?latest=yes", 400)


async def test_deployments_are_steered() -> None:
    async with served() as api:
        api.world.running(job_spec(web={"count": 2}))
        settle(api.world, 1, DeploymentStatus.SUCCESSFUL)
        api.world.run(job_spec(web=update(canaries=1)))
        found: Json = await api.get("/v1/deployments/shop.v2")
        assert found["groups"]["web"]["promoted"] is False
        assert found["awaits_promotion"] is False
        problem = await api.problem("POST", "/v1/deployments/shop.v2/promote", 409)
        assert "0 of 1 canaries" in str(problem["detail"])
        for verb, status in (("pause", "paused"), ("resume", "running"), ("fail", "failed")):
            async with api.client.post(f"/v1/deployments/shop.v2/{verb}") as response:
                found = await read(response)
            assert found["status"] == status
        job: Json = await api.get("/v1/jobs/shop")
        assert job["version"] == 3, "the failed version is taken back"
        back: Json = await api.get("/v1/deployments/shop")
        assert (back["version"], back["rolls_back"]) == (3, 2)
        await api.problem("POST", "/v1/deployments/shop.v2/pause", 409)
        settle(api.world, 3, DeploymentStatus.SUCCESSFUL)
        found = await api.get("/v1/deployments/shop.v2")
        assert found["status"] == "rolled_back"


async def test_rollback_and_restart_are_new_versions() -> None:
    async with served() as api:
        api.world.run(job_spec(web={"count": 2}))
        await api.problem("POST", "/v1/jobs/shop/rollback", 409)
        api.world.run(job_spec(web=update()))
        async with api.client.post("/v1/jobs/shop/rollback") as response:
            back: Json = await read(response)
        assert (back["version"], back["changed"], back["deployment_id"]) == (3, True, "shop.v3")
        async with api.client.post("/v1/jobs/shop/restart") as response:
            again: Json = await read(response)
        assert (again["version"], again["changed"]) == (4, True)
        versions: Json = await api.get("/v1/jobs/shop/versions")
        specs = [item["spec"] for item in versions["items"]]
        assert specs[0] == specs[2] == specs[3] != specs[1]
        await api.problem("POST", "/v1/jobs/shop/rollback", 404, json={"version": 9})
        headers = {"If-Match": '"1"'}
        await api.problem("POST", "/v1/jobs/shop/restart", 412, headers=headers)
        await api.problem("POST", "/v1/jobs/none/restart", 404)
        await api.problem("POST", "/v1/jobs/none/rollback", 404)


async def test_a_batch_job_has_none() -> None:
    async with served() as api:
        api.world.run(job_spec(type_="batch"))
        problem = await api.problem("GET", "/v1/deployments/shop", 404)
        assert "batch jobs have none" in str(problem["hint"])
