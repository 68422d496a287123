"""Volumes over HTTP: who has which, and that only what nobody has can be removed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cube.model import commands as c
from cube.model.errors import DriverFailed
from cube.model.lifecycle import NodeStatus, TaskState
from tests.fakes.cluster import TERM, World, job_spec
from tests.fakes.served import Served, read, served

Json = Any
ROOT = Path(__file__).resolve().parents[3]
DB: dict[str, object] = {"driver": "docker", "image": "db", "ports": {}, "mounts": [
    {"type": "volume", "source": "data", "target": "/data"}]}  # fmt: skip


def with_shop(world: World, node: str = "n1") -> None:
    world.run(job_spec("shop", db=DB))
    (task,) = world.place("shop", "db", [0], node)
    world.report(task, TaskState.RUNNING)


async def remove(api: Served, status: int, name: str = "data", node: str = "n1") -> Json:
    async with api.client.delete(f"/v1/nodes/{node}/volumes/{name}") as response:
        return await read(response, status)


async def test_the_volumes_of_all_slots_are_listed_with_who_uses_them() -> None:
    async with served() as api:
        with_shop(api.world)
        page: Json = await api.get("/v1/volumes?limit=1")
        (one,) = page["items"]
        assert one.pop("created_at").endswith("Z")
        assert one == {
            "name": "data", "node_id": api.cluster.id, "node_name": "n1", "node_status": "ready",
            "job": "shop", "group": "db", "slot": 0, "tasks": ["shop.db.0"],
        }  # fmt: skip
        api.world.apply(c.StopJob("shop"))
        (task,) = api.world.state.tasks.values()
        api.world.report(task, TaskState.COMPLETED, released=True)
        again: Json = await api.get("/v1/volumes")
        assert again["items"][0]["tasks"] == []


async def test_what_a_slot_has_is_not_removed() -> None:
    async with served() as api:
        with_shop(api.world)
        api.local_tasks.volumes["data"] = True
        found = await remove(api, 409)
        assert found["detail"] == "volume data on n1 belongs to shop.db.0"
        assert found["hint"].startswith("cube rm shop gives it up")
        api.world.apply(c.StopJob("shop"))
        await remove(api, 409)
        assert api.local_tasks.volumes == {"data": True}
        there: Json = await api.get("/v1/nodes/n1/volumes")
        assert there == {"node": "n1", "items": [{"name": "data", "claims": ["shop.db.0"]}]}


async def test_what_nobody_has_is_removed_once() -> None:
    async with served() as api:
        api.local_tasks.volumes["data"] = True
        there: Json = await api.get("/v1/nodes/n1/volumes")
        assert there["items"] == [{"name": "data", "claims": []}]
        assert await remove(api, 200) == {"node": "n1", "name": "data"}
        assert api.local_tasks.volumes == {}
        assert "has no volume" in (await remove(api, 404))["detail"]
        await remove(api, 404, "x" * 300)
        await remove(api, 404, node="n9")


async def test_what_a_container_has_is_refused_with_what_to_try() -> None:
    async with served() as api:
        api.local_tasks.failure = DriverFailed(
            "volume_in_use", "a container has data", transient=True
        )
        found = await remove(api, 409)
        assert (found["detail"], "try again" in found["hint"]) == (
            "a container has data on n1",
            True,
        )
        api.local_tasks.failure = DriverFailed("engine_down", "no answer", transient=True)
        await remove(api, 502)


async def test_a_node_that_is_down_is_not_asked() -> None:
    async with served() as api:
        down = api.world.state.node_names["n2"]
        async with api.client.get("/v1/nodes/n2/volumes") as response:
            await read(response, 503)  # its address is nobody's
        api.world.apply(c.SetNodeStatus(TERM, down, NodeStatus.DOWN, "gone"))
        async with api.client.get("/v1/nodes/n2/volumes") as response:
            found = await read(response, 503)
        assert "n2 is down" in str(found)
        headers = {"X-Cube-Forwarded": api.cluster.id}
        async with api.client.get("/v1/nodes/n2/volumes", headers=headers) as response:
            assert response.status == 503


async def cube(api: Served, *arguments: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "cube", "--addr", api.address, "volume", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


async def test_on_the_command_line() -> None:
    async with served() as api:
        down = api.world.state.node_names["n2"]
        api.world.apply(c.SetNodeStatus(TERM, down, NodeStatus.DOWN, "gone"))
        assert "no volumes" in (await cube(api, "ls"))[2]
        with_shop(api.world)
        api.local_tasks.volumes.update(data=True, old=True)
        code, shown, notes = await cube(api, "ls")
        assert code == 0
        assert [line.split()[:4] for line in shown.splitlines()] == [
            ["VOLUME", "NODE", "BELONGS", "TO"],
            ["data", "n1", "shop.db.0", "shop.db.0"],
            ["old", "n1", "–", "–"],
        ]
        assert "n2 is down; what is on its disk is not shown" in notes
        assert "1 volume belongs to no job any more. next: cube volume rm NAME" in notes
        assert (await cube(api, "ls", "-o", "name"))[1].split() == ["data", "old"]
        code, _, told = await cube(api, "rm", "data")
        assert (code, "belongs to shop.db.0" in told) == (5, True)
        code, _, told = await cube(api, "rm", "nothing")
        assert (code, "there is no volume nothing" in told) == (4, True)
        code, _, told = await cube(api, "rm", "old")
        assert (code, "volume old on n1 is gone" in told) == (0, True)
        assert api.local_tasks.volumes == {"data": True}
