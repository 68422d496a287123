"""Whole agents in this process: they find each other over IPv6 as over IPv4."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from cube.agent.agent import Agent
from cube.config import build
from cube.model.addresses import join_address
from cube.model.errors import Unavailable
from tests.ports import free_ports

READY_S = 30


@contextlib.asynccontextmanager
async def running(host: str, directory: Path, join: str = "") -> AsyncIterator[Agent]:
    """An agent that is ready."""
    http, raft, gossip = free_ports(3, host)
    flags: dict[str, object] = {
        "insecure": True, "bind": host, "http": http, "raft": raft, "gossip": gossip,
        "data_dir": str(directory), "name": directory.name,
    }  # fmt: skip
    if join:
        flags["join"] = [join]
    tree = {"drivers": {"docker": {"enabled": "off"}, "process": {"enabled": "on"}}}
    agent = Agent(build(tree, {}, flags), is_root=False)
    stop, ready = asyncio.Event(), asyncio.Event()
    life = asyncio.create_task(agent.run(stop, lambda _: ready.set()))
    waiting = asyncio.create_task(ready.wait())
    try:
        async with asyncio.timeout(READY_S):
            await asyncio.wait({life, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            await life
        yield agent
    finally:
        waiting.cancel()
        stop.set()
        await life


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_two_agents_make_a_cluster(host: str, tmp_path: Path) -> None:
    async with (
        running(host, tmp_path / "one") as one,
        running(host, tmp_path / "two", join=one.http_address) as two,
        aiohttp.ClientSession() as session,
    ):
        port = one.http_address.rpartition(":")[2]
        assert one.http_address == join_address(host, int(port))
        async with asyncio.timeout(READY_S):
            while True:
                url = f"http://{two.http_address}/v1/nodes"
                async with session.get(url) as response:
                    nodes = (await response.json())["items"]
                async with session.get(f"http://{two.http_address}/v1/status") as response:
                    alive = (await response.json())["members"]["alive"]
                if {n["status"] for n in nodes} == {"ready"} and len(nodes) == alive == 2:
                    break
                await asyncio.sleep(0.05)
        assert {n["http_address"] for n in nodes} == {one.http_address, two.http_address}
        assert all(n["attributes"]["node.os"] == "linux" for n in nodes)


async def test_an_agent_that_is_to_join_itself_says_so(tmp_path: Path) -> None:
    (http,) = free_ports(1)
    raft, gossip = free_ports(2)
    flags = {
        "insecure": True, "http": http, "raft": raft, "gossip": gossip,
        "data_dir": str(tmp_path), "join": [f"127.0.0.1:{http}"],
    }  # fmt: skip
    agent = Agent(build({}, {}, flags), is_root=False)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(READY_S):
            await agent.run(asyncio.Event(), lambda _: None)
    (error,) = caught.value.exceptions
    assert isinstance(error, Unavailable)
    assert "names only this node" in str(error)


async def test_a_cancelled_agent_is_cancelled(tmp_path: Path) -> None:
    http, raft, gossip = free_ports(3)
    flags = {
        "insecure": True, "http": http, "raft": raft, "gossip": gossip,
        "data_dir": str(tmp_path), "join": ["127.0.0.1:1"],
    }  # fmt: skip
    agent = Agent(build({}, {}, flags), is_root=False)
    life = asyncio.create_task(agent.run(asyncio.Event(), lambda _: None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
