"""The book's curl lines, and what nodes ask of each other."""

from __future__ import annotations

from typing import Any

import pytest

from cube.adapters.http_peers import HttpPeers
from cube.model.errors import Unavailable
from cube.model.ids import NodeId
from cube.model.lifecycle import TaskState
from cube.ports.cluster import LogRequest
from cube.ports.log import Ask
from cube.ports.remote import Redirected
from tests.fakes.cluster import job_spec
from tests.fakes.served import read, served

Json = Any

TASK_ID = "266592cd-960d-4091-981c-8c25c44b1018"
EVENT: Json = {
    "ID": "6be4cb6b-61d1-40cb-bc7b-9cacefefa60c",
    "State": 2,
    "Task": {
        "ID": TASK_ID,
        "Name": "test-chapter-9",
        "State": 1,
        "Image": "sun4ikmh/echo:v2",
        "Cpu": 0.1,
        "Memory": 64 << 20,
        "Disk": 0,
        "ExposedPorts": {"7777/tcp": {}},
        "PortBindings": {"7777/tcp": "7777"},
        "RestartPolicy": "always",
        "HealthCheck": "/health",
    },
}
STATES = {"pending": 0, "scheduled": 1, "running": 2, "completed": 3, "failed": 4}


async def test_a_task_of_the_book_lives_and_is_deleted() -> None:
    async with served() as api:
        async with api.client.post("/tasks", json=EVENT) as response:
            made: Json = await read(response, 201)
        assert (made["ID"], made["State"], made["Image"]) == (TASK_ID, 0, "sun4ikmh/echo:v2")
        async with api.client.post("/tasks", json=EVENT) as response:
            await read(response, 201)
        assert len(api.world.state.jobs) == 1
        api.world.next_port = 7777  # what the task asks for
        [task] = api.world.place("test-chapter-9", "main", [0])
        listed: Json = None
        for state, number in ((TaskState.SCHEDULED, 1), (TaskState.RUNNING, 2)):
            api.world.report(task, state)
            [listed] = _list(await api.get("/tasks"))
            assert (listed["ID"], listed["State"]) == (TASK_ID, number)
        assert listed["PortBindings"] == {"7777/tcp": "7777"} and listed["ContainerID"] == "4242"
        async with api.client.delete(f"/tasks/{TASK_ID}") as response:
            assert response.status == 204 and await response.read() == b""
        assert await api.get("/tasks") == []
        await api.problem("DELETE", f"/tasks/{TASK_ID}", 404)


def _list(value: object) -> list[Json]:
    assert isinstance(value, list)
    return value


async def test_the_book_sees_every_task_and_stops_any() -> None:
    async with served() as api:
        first, second = api.world.running(job_spec(web={"count": 2}))
        api.world.report(second, TaskState.FAILED)
        found = {row["Name"]: (row["ID"], row["State"]) for row in _list(await api.get("/tasks"))}
        assert found == {"shop.web.0": (first.id, 2), "shop.web.1": (second.id, 4)}
        async with api.client.delete(f"/tasks/{first.id}") as response:
            assert response.status == 204
        assert api.world.state.tasks[first.id].desired.value == "stop"


async def test_bad_tasks_of_the_book_are_refused_in_its_words() -> None:
    async with served() as api:
        api.world.run(job_spec("taken"))
        for task, status, word in (
            ({"Image": 3}, 422, "Image"),
            ({"Imge": "x"}, 422, "Imge"),
            ({"Cpu": -1}, 422, "Cpu"),
            ({"PortBindings": {"7777/tcp": "x"}}, 422, "7777"),
            ({"Name": "taken"}, 409, "taken"),
        ):
            sent = {**EVENT, "Task": {**EVENT["Task"], **task}}
            problem = await api.problem("POST", "/tasks", status, json=sent)
            assert word in str(problem), problem
        await api.problem("POST", "/tasks", 415, data=b"{}")
        await api.problem("POST", "/tasks", 422, json=[])
        json = {"Content-Type": "application/json"}
        await api.problem("POST", "/tasks", 400, data=b"{", headers=json)


async def test_nodes_and_stats_in_the_spelling_of_the_book() -> None:
    async with served() as api:
        api.world.running(job_spec())
        nodes = _list(await api.get("/nodes"))
        assert [(node["Name"], node["TaskCount"]) for node in nodes] == [("n1", 1), ("n2", 0)]
        assert nodes[0]["Memory"] == 8 << 30 and nodes[0]["MemoryAllocated"] == 64 << 20
        stats: Json = await api.get("/stats")
        assert stats["MemStats"]["MemTotal"] == 8 << 20 and stats["TaskCount"] == 1


JOINER = {
    "node_id": "n9", "name": "n9", "raft_address": "127.0.0.1:1", "gossip_address": "127.0.0.1:2",
    "http_address": "127.0.0.1:3", "version": "0.1.0",
}  # fmt: skip


async def test_a_node_joins_through_the_leader() -> None:
    async with served() as api:
        async with api.client.post("/v1/internal/join", json=JOINER) as response:
            grant: Json = await read(response)
        assert grant["cluster_id"] == "cluster-1" and grant["voters"] == ["127.0.0.1:8701"]
        for body in ({"node_id": "n9"}, {"node_id": "n9", "log_index": 7}):
            async with api.client.post("/v1/internal/heartbeat", json=body) as response:
                await read(response)
        assert api.peers.heartbeats == [("n9", None), ("n9", 7)]
        assert api.peers.leases == []
        body = {"node_id": "n9", "log_index": 7, "wants_lease": True}
        async with api.client.post("/v1/internal/heartbeat", json=body) as response:
            noted: Json = await read(response)
        assert noted["lease_index"] == 41
        assert api.peers.leases == ["n9"]
        bootstrap: Json = await api.get("/v1/internal/bootstrap")
        assert bootstrap["cluster_id"] == "cluster-1"
        await api.problem("POST", "/v1/internal/join", 422, json={"node_id": "n9"})
        await api.problem("POST", "/v1/internal/heartbeat", 422, json={"node": "n9"})


async def test_another_node_says_who_leads_when_it_knows() -> None:
    async with served() as api:
        api.cluster.leader, api.peers.leads = "n2", False
        for path, body in (
            ("join", JOINER), ("heartbeat", {"node_id": "n9"}),
        ):  # fmt: skip
            api.peers.leader = "127.0.0.1:7702"
            problem = await api.problem("POST", f"/v1/internal/{path}", 409, json=body)
            assert (problem["code"], problem["leader"]) == ("not_leader", "127.0.0.1:7702")
            api.peers.leader = None
            problem = await api.problem("POST", f"/v1/internal/{path}", 503, json=body)
            assert "leader" not in problem


async def test_a_node_follows_the_log_of_another() -> None:
    peers = HttpPeers()
    request = LogRequest(
        node_id=NodeId("n9"), was_member=True, ask=Ask(7, 2, "2 127.0.0.1:1 1", 4, 3), wait_ms=9
    )
    async with served() as api:
        assert await peers.log(api.address, request) == b"entries"
        assert api.peers.asked == [request]
        api.peers.answer = Redirected("127.0.0.1:7702")
        with pytest.raises(Redirected):
            await peers.log(api.address, request)
        api.peers.answer = Unavailable("this node was removed from this cluster")
        with pytest.raises(Unavailable, match="was removed"):
            await peers.log(api.address, request)
        for query in (
            "",
            "?node=n9&after=1",
            "?node=n9&after=x&term=1",
            "?node=n9&after=-1&term=1",
        ):
            await api.problem("GET", f"/v1/internal/log{query}", 400)
    await peers.close()


async def test_nodes_are_answered_before_this_one_has_joined() -> None:
    async with served() as api:
        api.cluster.not_joined = "waiting for 3 nodes"
        await api.get("/v1/internal/bootstrap")
