"""A request that is passed on leaves this node only for the one that it is meant for."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from cube.adapters.trust.tls import NodeTls
from cube.api.node_connector import NodeConnector
from cube.model.ids import NodeId
from tests.contract.test_http_join import says, served
from tests.unit.trust.test_node_tls import CLUSTER, Authority


async def get(here: NodeTls, address: str, expected: dict[str, set[NodeId]]) -> str:
    def nodes_at(asked: str) -> set[NodeId]:
        return expected.get(asked, set())

    connector = NodeConnector(here.client, here.peer, nodes_at, limit=10)
    async with aiohttp.ClientSession(connector=connector) as session:
        said = []
        for _ in range(2):  # the second one over the connection that is there
            async with session.get(
                f"https://{address}/v1/internal/ca", headers={"Authorization": "Bearer secret"}
            ) as answer:
                said.append(await answer.text())
        return " ".join(said)


async def test_nothing_is_sent_to_a_node_in_anothers_place(tmp_path: Path) -> None:
    ca = Authority()
    a, b = (NodeTls(ca.node(tmp_path / name, name), CLUSTER) for name in "ab")
    asked: list[str] = []
    answer = says("hello")

    async def remember(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        asked.append(request.headers.get("Authorization", ""))
        return await answer(request)

    async with served(b.server, remember, remember) as address:
        assert await get(a, address, {address: {NodeId("b")}}) == "hello hello"
        assert asked == ["Bearer secret", "Bearer secret"]
        for wrong in ({address: {NodeId("c")}}, {"127.0.0.1:1": {NodeId("b")}}, {}):
            with pytest.raises(aiohttp.ClientConnectionError, match="node b answers at"):
                await get(a, address, wrong)
    assert len(asked) == 2
