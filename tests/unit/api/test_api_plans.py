"""Dry runs over HTTP: the real scheduler on a fork of the state, which stays as it is."""

from __future__ import annotations

from typing import Any

import pytest

from cube.model import commands as c
from cube.model.jobrender import render
from cube.model.lifecycle import TaskState
from tests.fakes.cluster import World, job_spec
from tests.fakes.served import Served, read, served

Json = Any


async def planned(
    api: Served, tree: object, status: int = 200, path: str = "/v1/jobs/plan"
) -> Json:
    before = api.world.state
    async with api.client.post(path, json=tree) as response:
        found = await read(response, status)
    assert api.world.state is before
    assert api.cluster.proposed == []
    return found


async def test_a_new_job_and_what_a_run_of_it_would_be_checked_against() -> None:
    async with served() as api:
        found = await planned(api, render(job_spec("shop", web={"count": 3})))
        assert (found["name"], found["version"], found["changed"]) == ("shop", 0, True)
        assert {change["path"]: change["new"] for change in found["changes"]}[
            "groups.web.count"
        ] == 3
        assert all(change["old"] is None for change in found["changes"])
        assert found["groups"] == {
            "web": {"create": 3, "stop": 0, "update_in_place": 0, "replace": 0, "unplaced": 0}
        }
        assert [(one["group"], one["slot"]) for one in found["placements"]] == [
            ("web", 0), ("web", 1), ("web", 2)
        ]  # fmt: skip
        assert {one["node"] for one in found["placements"]} == {"n1", "n2"}
        assert (found["explanations"], found["others"], found["cut"]) == ([], [], "")
        assert found["index"] == api.world.state.index


async def test_each_kind_of_change_is_counted_apart() -> None:
    world = World()
    before: Json = {"web": {"count": 2}, "db": {"count": 2}, "old": {}, "same": {}}
    world.running(job_spec("shop", "service", **before))
    after: Json = {
        "web": {"count": 3, "env": {"A": "1"}},
        "db": {"count": 1},
        "same": {"restart": {"delay": "2s"}},
        "new": {"resources": {"memory": "9GiB"}},
    }
    async with served(world) as api:
        found = await planned(api, render(job_spec("shop", "service", **after)))
        zero = {"create": 0, "stop": 0, "update_in_place": 0, "replace": 0, "unplaced": 0}
        assert found["groups"] == {
            "web": zero | {"create": 1, "replace": 2},
            "db": zero | {"stop": 1, "update_in_place": 1},
            "old": zero | {"stop": 1},
            "same": zero | {"update_in_place": 1},
            "new": zero | {"unplaced": 1},
        }
        assert found["version"] == 1
        changes = {one["path"]: (one["old"], one["new"]) for one in found["changes"]}
        assert changes["groups.web.env.A"] == (None, "1")
        assert changes["groups.db.count"] == (2, 1)
        assert changes["groups.old.command"] == (["true"], None)
        assert changes["groups.same.restart.delay"] == (1.0, 2.0)
        [explained] = found["explanations"]
        assert (explained["group"], explained["kind"]) == ("new", "unplaced")
        assert [one["reasons"][0]["code"] for one in explained["nodes"]] == ["memory", "memory"]
        lost = [one for one in found["moves"] if one["node"] is None]
        assert [(one["group"], one["came_from"]) for one in lost] == [
            ("db", "n1"), ("new", None), ("old", "n1")
        ]  # fmt: skip


async def test_the_same_job_again_changes_nothing_and_a_stopped_one_starts() -> None:
    world = World()
    spec = job_spec("shop")
    world.running(spec)
    async with served(world) as api:
        found = await planned(api, render(spec))
        assert (found["changed"], found["changes"], found["placements"]) == (False, [], [])
        world.apply(c.StopJob("shop"))
        found = await planned(api, render(spec))
        assert (found["changed"], found["changes"]) == (True, [])
        assert found["groups"]["web"]["create"] == 1


async def test_bad_jobs_and_refused_ones() -> None:
    world = World()
    world.running(job_spec("shop"))
    async with served(world) as api:
        await api.problem("POST", "/v1/jobs/plan", 422, json={"name": "x"})
        await api.problem("POST", "/v1/jobs/plan", 415, data=b"x")
        batch = render(job_spec("shop", "batch"))
        problem = await api.problem("POST", "/v1/jobs/plan", 409, json=batch)
        assert problem["code"] == "refused"


async def test_reads_wait_for_what_the_client_has_seen() -> None:
    async with served() as api:
        ahead = f"/v1/jobs/plan?min_index={api.world.state.index + 1}"
        problem = await api.problem("POST", ahead, 503, json=render(job_spec("shop")))
        assert problem["code"] == "behind"


@pytest.mark.parametrize("action", ["drain", "lose"])
async def test_a_node_that_is_to_go(action: str) -> None:
    world = World()
    world.running(job_spec("shop", web={"count": 2}), "n1")
    world.running(job_spec("other"), "n2")
    world.running(job_spec("big", db={"resources": {"memory": "5GiB"}}), "n1")
    [large] = world.running(job_spec("large", db={"resources": {"memory": "5GiB"}}), "n2")
    async with served(world) as api:
        found = await planned(api, {"action": action}, path="/v1/nodes/n1/plan")
        assert (found["node"], found["action"], found["fits"]) == ("n1", action, False)
        jobs = {one["job"]: one for one in found["jobs"]}
        assert set(jobs) == {"shop", "big"}
        assert [(one["came_from"], one["node"]) for one in jobs["shop"]["moves"]] == [
            ("n1", "n2"), ("n1", "n2")
        ]  # fmt: skip
        assert (jobs["shop"]["displaced"], jobs["big"]["displaced"]) == (0, 1)
        assert jobs["big"]["explanations"][0]["kind"] == "unplaced"
        world.apply(c.StopJob("large"))
        world.report(large, TaskState.COMPLETED, released=True)
        found = await planned(api, {"action": action}, path="/v1/nodes/n1/plan")
        assert found["fits"] is True


async def test_bad_questions_about_nodes() -> None:
    async with served() as api:
        for body, path in (
            ({"action": "burn"}, "action"),
            ({"action": "drain", "deadline": "soon"}, "deadline"),
            ({}, ""),
            ({"action": "drain", "dedline": 1}, "dedline"),
        ):
            problem = await api.problem("POST", "/v1/nodes/n1/plan", 422, json=body)
            assert path in str(problem["detail"])
        await api.problem("POST", "/v1/nodes/n9/plan", 404, json={"action": "drain"})
