"""What removed nodes left is ended after each removal, and again later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Set

import msgspec
import pytest

from cube.model.cluster import ClusterState
from cube.model.errors import DriverFailed
from cube.model.ids import NodeId
from cube.services.orphans import LOOK_S, Orphans
from tests.virtual_time import run_virtual

ME, ONE, OTHER = NodeId("me"), NodeId("one"), NodeId("other")


class Feed:
    def __init__(self) -> None:
        self.state = ClusterState()
        self._came = asyncio.Condition()

    async def changed(self, after_index: int) -> ClusterState:
        async with self._came:
            await self._came.wait_for(lambda: self.state.index > after_index)
        return self.state

    async def publish(self, *removed: NodeId) -> None:
        trust = self.state.trust
        if removed:
            nodes = dict.fromkeys((*trust.removed_nodes, *removed), 0)
            trust = msgspec.structs.replace(trust, removed_nodes=nodes)
        index = self.state.index + 1
        self.state = msgspec.structs.replace(self.state, index=index, trust=trust)
        async with self._came:
            self._came.notify_all()
        await asyncio.sleep(0.01)


class Recorder:
    def __init__(self) -> None:
        self.asked: list[set[NodeId]] = []
        self.is_down = False

    async def reap(self, removed: Set[NodeId]) -> int:
        self.asked.append(set(removed))
        if self.is_down:
            raise DriverFailed("engine_down", "x", transient=True)
        return 1


def test_each_removal_is_followed_by_a_look_and_others_by_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cube.services.orphans")

    async def main() -> None:
        feed, engine, host = Feed(), Recorder(), Recorder()
        engine.is_down = True  # does not keep the other driver from its work, nor end the loop
        orphans = Orphans(feed, ME, {"docker": engine, "process": host})
        task = asyncio.create_task(orphans.run())
        await feed.publish()
        await feed.publish(ME)
        assert host.asked == [], "nobody but this node was removed"
        await feed.publish(ONE)
        await feed.publish()
        await feed.publish(OTHER)
        await feed.publish()
        assert host.asked == engine.asked == [{ONE}, {ONE, OTHER}]
        await asyncio.sleep(2.5 * LOOK_S)
        assert host.asked[2:] == engine.asked[2:] == [{ONE, OTHER}] * 2
        task.cancel()
        said = [record.getMessage() for record in caplog.records]
        assert sum(line.startswith("orphans_left driver=docker") for line in said) == 1
        assert sum(line == "orphans_ended driver=process count=1" for line in said) == 4

    run_virtual(main())
