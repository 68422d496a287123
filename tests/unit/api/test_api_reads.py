"""What users read: shapes as interface.md has them, lists and pages, consistency parameters."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cube.model import commands as c
from cube.model.errors import Unavailable
from cube.model.explain import Explanation, NodeExplanation, Reason
from cube.model.ids import NodeId
from cube.model.lifecycle import Health, NodeStatus, TaskState
from cube.ports.log import Progress
from tests.fakes.cluster import TERM, World, job_spec, node_facts
from tests.fakes.served import Served, served

Json = Any


async def test_status_has_the_shape_of_the_contract() -> None:
    async with served() as api:
        found: Json = await api.get("/v1/status")
        assert set(found) == {
            "cluster_id", "cluster_name", "node", "leader", "role", "term", "commit_index",
            "applied_index", "voters", "members", "quorum", "warnings",
        }  # fmt: skip
        assert found["node"]["name"] == "n1" and found["node"]["version"]
        assert found["leader"]["name"] == "n1" and found["leader"]["http"] == api.address
        assert found["role"] == "leader" and found["quorum"] is True
        assert [voter["name"] for voter in found["voters"]] == ["n1", "n2"]
        assert found["members"] == {"alive": 2, "suspect": 0, "dead": 0, "left": 0}
        api.cluster.leader = None
        found = await api.get("/v1/status")
        assert found["leader"] is None and found["quorum"] is False


async def test_task_node_and_job_have_the_shapes_of_the_contract() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        found: Json = await api.get(f"/v1/tasks/{task.id}")
        assert set(found) == {
            "id", "name", "job", "group", "slot", "version", "attempt", "node_id", "node_name",
            "state", "desired", "health", "driver", "image", "handle", "address", "ports",
            "restarts", "exit_code", "oom_killed", "reason", "message", "created_at", "started_at",
            "finished_at", "history", "fence", "image_digest",
        }  # fmt: skip
        assert found["name"] == "shop.web.0" and found["node_name"] == "n1"
        assert found["address"] == "10.0.0.1" and found["health"] is None
        assert found["ports"]["http"] == {"host": 20000, "target": 20000, "protocol": "tcp"}
        assert [entry["state"] for entry in found["history"]] == ["scheduled", "running"]
        assert found["fence"] == task.fence > 0
        assert found["created_at"].endswith("Z") and found["finished_at"] is None
        node: Json = await api.get("/v1/nodes/n1")
        assert {
            "id", "name", "http_address", "status", "eligible", "draining", "role", "version",
            "labels", "attributes", "drivers", "capacity", "reserved", "used", "tasks",
            "joined_at", "last_seen_at",
        } <= set(node)  # fmt: skip
        assert node["capacity"] == {"cpu": 4.0, "memory": 8 << 30, "disk": 100 << 30}
        assert node["reserved"]["cpu"] == 0.1 and node["tasks"] == 1 and node["role"] == "leader"
        assert node["used"] == {"cpu": 1.0, "memory": 2 << 30, "disk": 10 << 30}
        job: Json = await api.get("/v1/jobs/shop")
        assert set(job) == {
            "name", "type", "version", "status", "spec", "groups", "created_at", "modified_index",
            "digests", "next_run_at", "runs",
        }  # fmt: skip
        assert job["status"] == "running" and job["spec"]["groups"]["web"]["count"] == 1
        assert job["groups"]["web"] == {
            "count": 1, "running": 1, "healthy": 1, "pending": 0, "failed": 0, "completed": 0,
        }  # fmt: skip


async def test_the_index_of_an_answer_is_that_of_the_state_it_was_read_at() -> None:
    async with served() as api:
        async with api.client.get("/v1/nodes") as response:
            body = await response.json()
            assert int(response.headers["X-Cube-Index"]) == body["index"] == api.world.state.index
            assert response.headers["X-Cube-Node"] == api.cluster.node_id()
        async with api.client.get("/v1/jobs/nothing") as response:
            assert int(response.headers["X-Cube-Index"]) == api.world.state.index


async def test_pages_are_complete_and_in_one_order() -> None:
    async with served() as api:
        for name in ("b", "a", "c"):
            api.world.run(job_spec(name, web={"count": 4}, api={"count": 2}))
        api.world.place("a", "web", [0, 2])
        api.world.place("b", "api", [1])
        whole: Json = await api.get("/v1/tasks?limit=1000")
        names = [item["name"] for item in whole["items"]]
        assert whole["next"] is None and len(names) == len(set(names)) == 18
        assert names == sorted(names)
        for limit in (1, 4, 5, 17, 18):
            found: list[str] = []
            cursor = ""
            while True:
                page: Json = await api.get(f"/v1/tasks?limit={limit}{cursor}")
                assert len(page["items"]) <= limit
                found += [item["name"] for item in page["items"]]
                if page["next"] is None:
                    break
                cursor = f"&cursor={page['next']}"
            assert found == names, limit
        jobs: Json = await api.get("/v1/jobs?limit=2")
        assert [job["name"] for job in jobs["items"]] == ["a", "b"]
        rest: Json = await api.get(f"/v1/jobs?limit=2&cursor={jobs['next']}")
        assert [job["name"] for job in rest["items"]] == ["c"] and rest["next"] is None


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("job=a", ["a.api.0", "a.api.1", "a.web.0", "a.web.1"]),
        ("group=web", ["a.web.0", "a.web.1", "b.web.0", "b.web.1"]),
        ("job=a&group=api", ["a.api.0", "a.api.1"]),
        ("node=n2", ["b.web.0"]),
        ("node=n2&job=a", []),
        ("state=running", ["a.web.0"]),
        ("state=scheduled", ["a.web.1", "b.web.0"]),
        ("state=running,scheduled&job=a", ["a.web.0", "a.web.1"]),
        ("state=pending", ["a.api.0", "a.api.1", "b.api.0", "b.api.1", "b.web.1"]),
        ("state=pending&node=n2", []),
        ("job=none", []),
    ],
)
async def test_task_filters(query: str, names: list[str]) -> None:
    async with served() as api:
        for name in ("a", "b"):
            api.world.run(job_spec(name, web={"count": 2}, api={"count": 2}))
        first, _ = api.world.place("a", "web", [0, 1])
        api.world.report(first, TaskState.RUNNING)
        api.world.place("b", "web", [0], "n2")
        found: Json = await api.get(f"/v1/tasks?{query}")
        assert [item["name"] for item in found["items"]] == names
        halves: list[str] = []
        cursor = ""
        while names:
            page: Json = await api.get(f"/v1/tasks?{query}&limit=1{cursor}")
            halves += [item["name"] for item in page["items"]]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert halves == names


async def test_unplaced_slots_are_rows_with_a_reason() -> None:
    async with served() as api:
        api.world.run(job_spec(web={"count": 2}))
        api.world.place("shop", "web", [1])
        api.cluster.explanations = [
            Explanation("shop", "web", (0,), "unplaced", "no node has 9 cores", (),
                        (NodeExplanation(NodeId("x"), "n1", (Reason("cpu", "m", "9", "4"),)),),
                        ("ask for 4",), 1_700_000_000_000)
        ]  # fmt: skip
        row: Json = await api.get("/v1/tasks/shop.web.0")
        assert row["id"] == row["name"] == "shop.web.0"
        assert (row["state"], row["node_id"], row["attempt"]) == ("pending", None, 0)
        assert (row["reason"], row["message"]) == ("unplaced", "no node has 9 cores")
        listed: Json = await api.get("/v1/tasks?job=shop")
        assert listed["items"][0] == row
        everything: Json = await api.get("/v1/tasks")
        assert everything["items"][0]["message"] != row["message"]
        why: Json = await api.get("/v1/jobs/shop/why")
        [found] = why["explanations"]
        assert found["nodes"][0]["reasons"] == [
            {"code": "cpu", "message": "m", "need": "9", "have": "4"}
        ]
        assert found["suggestions"] == ["ask for 4"] and found["since"].startswith("2023-")
        job: Json = await api.get("/v1/jobs/shop")
        assert job["groups"]["web"]["pending"] == 2 and job["status"] == "pending"


async def test_a_name_means_the_newest_task_that_has_not_ended() -> None:
    async with served() as api:
        [first] = api.world.running(job_spec())
        assert (await _id(api, "shop.web.0")) == first.id
        api.world.report(first, TaskState.FAILED, exit_code=1, released=True)
        assert (await _id(api, "shop.web.0")) == first.id  # nothing has taken its place yet
        [second] = api.world.place("shop", "web", [0])
        assert (await _id(api, "shop.web.0")) == second.id
        assert (await _id(api, first.id)) == first.id
        assert (await _id(api, second.id[:12])) == second.id
        api.world.apply(c.StopTask(second.id))
        assert (await _id(api, "shop.web.0")) == second.id  # it is still there
        [third] = api.world.place("shop", "web", [0])
        assert (await _id(api, "shop.web.0")) == third.id


async def _id(api: Served, word: str) -> str:
    found: Json = await api.get(f"/v1/tasks/{word}")
    return str(found["id"])


async def test_an_ambiguous_prefix_is_refused_with_its_candidates() -> None:
    world = World(*(node_facts(f"n{number}", number) for number in (1, 2)))
    async with served(world) as api:
        problem = await api.problem("GET", "/v1/nodes/0000000", 409)
        assert problem["code"] == "ambiguous"
        assert len(problem["candidates"]) == 2  # type: ignore[arg-type]
        node: Json = await api.get("/v1/nodes/00000002")
        assert node["name"] == "n2"


async def test_a_deleted_job_leaves_the_lists_at_once_and_its_tasks_when_they_are_gone() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        async with api.client.delete("/v1/jobs/shop") as response:
            assert response.status == 202
        jobs: Json = await api.get("/v1/jobs")
        assert jobs["items"] == []
        await api.problem("GET", "/v1/jobs/shop", 404)
        tasks: Json = await api.get("/v1/tasks?job=shop")
        assert [(item["id"], item["desired"]) for item in tasks["items"]] == [(task.id, "remove")]
        api.world.run(job_spec(web={"count": 2}))
        both: Json = await api.get("/v1/tasks?job=shop")
        assert len(both["items"]) == 3


async def test_job_filters() -> None:
    async with served() as api:
        api.world.running(job_spec("web-a"))
        api.world.run(job_spec("web-b"))
        api.world.run(job_spec("sum", "batch"))
        assert await _names(api, "") == ["sum", "web-a", "web-b"]
        assert await _names(api, "?type=batch") == ["sum"]
        assert await _names(api, "?status=running") == ["web-a"]
        assert await _names(api, "?status=pending,running&prefix=web-") == ["web-a", "web-b"]


async def _names(api: Served, query: str) -> list[str]:
    found: Json = await api.get(f"/v1/jobs{query}")
    return [item["name"] for item in found["items"]]


async def test_a_rendered_task_is_not_shown_after_it_or_its_node_changed() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        await api.get("/v1/tasks")
        api.world.report(task, TaskState.RUNNING, Health.NONE, message="hello")
        found: Json = await api.get("/v1/tasks")
        assert found["items"][0]["message"] == "hello"
        api.world.apply(c.RegisterNode(node_facts("renamed", 1)))
        found = await api.get("/v1/tasks")
        assert found["items"][0]["node_name"] == "renamed"


async def test_services_are_the_healthy_endpoints() -> None:
    async with served() as api:
        spec = job_spec(web={"count": 2, "checks": [{"type": "tcp", "port": "http"}]})
        first, _ = api.world.running(spec)
        api.world.report(first, TaskState.RUNNING, Health.UNHEALTHY)
        found: Json = await api.get("/v1/services/shop.web.http")
        assert [e["address"] for e in found["endpoints"]] == ["10.0.0.1:20001"]
        listed: Json = await api.get("/v1/services")
        assert listed["items"] == [found]
        discovery: Json = await api.get("/v1/services?format=prometheus")
        assert discovery[0]["targets"] == ["10.0.0.1:20001"]
        assert discovery[0]["labels"]["__meta_cube_job"] == "shop"
        await api.problem("GET", "/v1/services/shop.web.htp", 404)


async def test_consistent_reads_go_through_a_barrier() -> None:
    async with served() as api:
        await api.get("/v1/jobs?consistent=0")
        assert api.cluster.barriers == 0
        await api.get("/v1/jobs?consistent=1")
        assert api.cluster.barriers == 1


async def test_min_index_waits_and_then_says_that_the_node_is_behind() -> None:
    async with served() as api:
        now = api.world.state.index
        await api.get(f"/v1/jobs?min_index={now}")
        problem = await api.problem("GET", f"/v1/jobs?min_index={now + 1}", 503)
        assert problem["code"] == "behind"


async def test_a_blocking_query_answers_when_the_state_has_moved() -> None:
    async with served() as api:
        now = api.world.state.index
        asked = asyncio.create_task(api.get(f"/v1/jobs?index={now}&wait=20s"))
        found: Json = await api.get(f"/v1/jobs?index={now}&wait=30ms")
        assert found["items"] == [] and not asked.done()
        api.world.run(job_spec())
        found = await asyncio.wait_for(asked, 10)
        assert [job["name"] for job in found["items"]] == ["shop"] and found["index"] > now


async def test_livez_and_readyz_answer_before_the_node_has_joined_and_nothing_else_does() -> None:
    async with served() as api:
        assert await api.get("/v1/readyz") == {"status": "ready"}
        api.cluster.leader = None
        assert (await api.problem("GET", "/v1/readyz", 503))["code"] == "not_ready"
        api.cluster.leader, api.cluster.ready = "n1", False
        await api.problem("GET", "/v1/readyz", 503)
        api.cluster.not_joined = "joining through 10.0.0.9:7700"
        assert await api.get("/v1/livez") == {"status": "alive"}
        for path in ("/v1/readyz", "/v1/status", "/v1/jobs", "/tasks", "/v1/events"):
            problem = await api.problem("GET", path, 503)
            assert problem["detail"] == "joining through 10.0.0.9:7700"


async def test_a_down_node_is_shown_as_such() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec(), "n2")
        node_id = api.world.state.node_names["n2"]
        api.world.apply(c.SetNodeStatus(TERM, node_id, NodeStatus.DOWN, "no heartbeat"))
        node: Json = await api.get("/v1/nodes/n2")
        assert (node["status"], node["status_reason"]) == ("down", "no heartbeat")
        assert node["tasks"] == 0
        listed: Json = await api.get("/v1/tasks")
        assert [(t["id"], t["state"]) for t in listed["items"]] == [
            (task.id, "lost"),
            ("shop.web.0", "pending"),
        ]


async def test_metrics_are_prometheus_text() -> None:
    async with served() as api:
        api.world.running(job_spec())
        await api.problem("GET", "/v1/jobs/none", 404)
        async with api.client.get("/metrics") as response:
            text = await response.text()
        assert "cube_raft_is_leader 1\n" in text
        assert 'cube_tasks{job="shop",state="running"} 1\n' in text
        assert 'cube_gossip_members{state="alive"} 2\n' in text
        assert (
            'cube_http_requests_total{method="GET",route="/v1/jobs/{job}",code="404"} 1\n' in text
        )


async def test_the_dashboard_is_served_with_a_policy_and_nothing_else_is() -> None:
    async with served() as api:
        async with api.client.get("/", allow_redirects=False) as response:
            assert response.status == 302 and response.headers["Location"] == "/ui/"
        async with api.client.get("/ui/") as response:
            assert response.status == 200 and response.content_type == "text/html"
            assert "script-src 'self'" in response.headers["Content-Security-Policy"]
            page = await response.text()
        for name in ("ui.js", "ui.css", "cube.svg"):
            assert f"/ui/{name}" in page
            async with api.client.get(f"/ui/{name}") as response:
                assert response.status == 200
        for path in ("/ui/..%2fapp.py", "/ui/%2e%2e%2fapp.py", "/ui/app.py", "/ui/.."):
            async with api.client.get(path) as response:
                assert response.status in (404, 200)
                assert b"make_app" not in await response.read()


async def test_raft_and_gossip_for_operators() -> None:
    async with served() as api:
        raft: Json = await api.get("/v1/raft")
        assert [voter["leader"] for voter in raft["voters"]] == [True, False]
        gossip: Json = await api.get("/v1/gossip")
        assert [member["name"] for member in gossip["items"]] == ["n1", "n2"]
        assert gossip["items"][0]["stats"]["cpu_cores"] == 4


async def test_raft_members_are_told_with_what_the_leader_knows_of_them() -> None:
    async with served() as api:
        api.cluster.seen = (Progress("127.0.0.1:8702", 5, 3, 1_250),)
        raft: Json = await api.get("/v1/raft")
        first, second = raft["voters"]
        assert (first["role"], first["lag"], first["silent_s"]) == ("leader", 0, None)
        assert (second["role"], second["lag"], second["silent_s"]) == ("voter", 3, 1.25)
        assert first["caught_up"] and second["caught_up"]
        # It has not answered this leader yet: nothing is known of its log.
        api.cluster.seen = (Progress("127.0.0.1:8702", 0, 900, 10),)
        raft = await api.get("/v1/raft")
        assert raft["voters"][1]["lag"] is None and raft["voters"][1]["caught_up"] is None
        api.cluster.seen = (Progress("127.0.0.1:8702", 1, 900, 10),)
        raft = await api.get("/v1/raft")
        assert raft["voters"][1]["caught_up"] is False
        # Without a leader there is nobody to ask: the list is of use all the same.
        api.cluster.leader = None
        raft = await api.get("/v1/raft")
        assert [voter["lag"] for voter in raft["voters"]] == [None, None]


async def test_leadership_is_transferred_to_any_voter_or_to_the_one_that_is_named() -> None:
    async with served() as api:
        n2 = api.world.state.node_names["n2"]
        async with api.client.post("/v1/raft/transfer") as response:
            assert response.status == 200
        async with api.client.post("/v1/raft/transfer", json={"node": "n2"}) as response:
            assert response.status == 200
            assert (await response.json())["leader"]["name"] == "n2"
        async with api.client.post("/v1/raft/transfer", json={"node": n2[:8]}) as response:
            assert response.status == 200  # it leads already
        assert api.cluster.transfers == [None, n2]
        await api.problem("POST", "/v1/raft/transfer", 404, json={"node": "n9"})
        await api.problem("POST", "/v1/raft/transfer", 422, json={"nod": "n1"})
        await api.problem("POST", "/v1/raft/transfer", 415, data="n1")
        api.cluster.weather = Unavailable("n1 does not answer")
        await api.problem("POST", "/v1/raft/transfer", 503, json={"node": "n1"})
        assert api.cluster.transfers == [None, n2]


async def test_leadership_goes_to_nobody_who_does_not_vote() -> None:
    async with served() as api:
        api.cluster.voters = ("n1",)
        problem = await api.problem("POST", "/v1/raft/transfer", 409, json={"node": "n2"})
        assert "does not vote" in str(problem["detail"])
        problem = await api.problem("POST", "/v1/raft/transfer", 409)
        assert "no other voter" in str(problem["detail"])
        assert api.cluster.transfers == []
