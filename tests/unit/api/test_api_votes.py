"""Votes over the API: a removed node's goes first; learners and warnings are shown."""

from __future__ import annotations

from typing import Any

import pytest

from cube.adapters.http_peers import HttpPeers
from cube.model import commands as c
from cube.model.errors import Unavailable
from cube.model.ids import NodeId
from cube.model.lifecycle import NodeStatus
from cube.ports.remote import Redirected
from tests.fakes.cluster import TERM
from tests.fakes.served import Served, read, served

Json = dict[str, Any]


def down(api: Served, name: str) -> NodeId:
    node_id = api.world.state.node_names[name]
    api.world.apply(c.SetNodeStatus(TERM, node_id, NodeStatus.DOWN))
    return node_id


async def test_a_node_loses_its_vote_before_it_is_removed() -> None:
    async with served() as api:
        node_id = down(api, "n2")
        api.cluster.weather = Unavailable("without the vote of n2 no majority would answer")
        problem = await api.problem("DELETE", "/v1/nodes/n2", 503)
        assert "no majority" in str(problem["detail"])
        assert api.cluster.proposed == []  # its vote is needed: it stays a member
        api.cluster.weather = None
        async with api.client.delete("/v1/nodes/n2") as response:
            changed: Json = await read(response)  # type: ignore[assignment]
        assert changed["changed"]
        assert api.cluster.votes_removed == [node_id]
        assert node_id not in api.world.state.nodes


async def test_a_node_that_is_up_keeps_its_vote() -> None:
    async with served() as api:
        await api.problem("DELETE", "/v1/nodes/n2", 409)
        assert api.cluster.votes_removed == []


async def test_a_node_asks_the_leader_to_take_a_vote() -> None:
    peers = HttpPeers()
    async with served() as api:
        await peers.remove_vote(api.address, NodeId("n9"))
        assert api.peers.votes_removed == ["n9"]
        await api.problem("POST", "/v1/internal/remove_vote", 422, json={"node": "n9"})
    await peers.close()


async def test_a_node_asks_the_leader_to_hand_over_and_how_far_the_others_are() -> None:
    peers = HttpPeers()
    async with served() as api:
        await peers.transfer(api.address, NodeId("n9"))
        await peers.transfer(api.address, None)
        assert api.peers.transfers == ["n9", None]
        (one,) = await peers.progress(api.address)
        assert (one.address, one.lag, one.silent_ms) == ("127.0.0.1:8702", 3, 40)
        api.peers.leads, api.peers.leader = False, "127.0.0.1:9"
        api.cluster.leader = "n2"
        for ask in (lambda: peers.transfer(api.address, None), lambda: peers.progress(api.address)):
            with pytest.raises(Redirected):
                await ask()
    await peers.close()


async def test_warnings_are_shown() -> None:
    async with served() as api:
        api.cluster.told = ("one voter",)
        status: Json = await api.get("/v1/status")  # type: ignore[assignment]
        assert status["warnings"] == ["one voter"]
        raft: Json = await api.get("/v1/raft")  # type: ignore[assignment]
        assert raft["learners"] == []
