"""POST /v1/raft/snapshot."""

from __future__ import annotations

from cube.api.saving import SAVES_MAX
from cube.model.errors import Unavailable
from cube.model.savedstate import (
    PREFIX_BYTES,
    DigestOf,
    SavedHeader,
    check,
    decode_head,
    head_bytes,
)
from cube.statemachine import snapshot
from tests.fakes.cluster import START_MS, World, job_spec
from tests.fakes.served import Served, served


async def saved(api: Served) -> tuple[SavedHeader, bytes]:
    async with api.client.post("/v1/raft/snapshot") as response:
        data = await response.read()
    assert response.status == 200, data
    assert response.content_length == len(data)
    assert response.headers["X-Cube-Index"] == str(api.world.state.index)
    length = head_bytes(data[:PREFIX_BYTES])
    return decode_head(data[:length]), data[length:]


async def test_the_whole_state_comes_with_its_digest() -> None:
    world = World()
    world.running(job_spec("shop", web={"count": 40}))
    async with served(world) as api:
        header, data = await saved(api)
        found = DigestOf()
        found.add(data)
        check(header, found)
        state = api.world.state
        assert snapshot.load(data) == state
        assert header.digest == snapshot.digest(state)
        assert (header.cluster_id, header.index, header.term) == ("cluster-1", state.index, 1)
        assert (header.jobs, header.nodes, header.tasks) == (1, 2, 40)
        assert header.saved_at_ms >= START_MS
        assert api.cluster.barriers == 1  # nothing that was committed before is missing
        assert api.shared.saves == 0


async def test_without_a_leader_nothing_is_saved() -> None:
    async with served() as api:
        api.cluster.weather = Unavailable("no leader")
        await api.problem("POST", "/v1/raft/snapshot", 503)
        assert api.shared.saves == 0


async def test_only_so_many_at_once() -> None:
    async with served() as api:
        api.shared.saves = SAVES_MAX
        problem = await api.problem("POST", "/v1/raft/snapshot", 503)
        assert problem["code"] == "overloaded"
        assert api.shared.saves == SAVES_MAX
        api.shared.saves = 0
        await api.problem("POST", "/v1/raft/snapshot", 422, data=b"x")
        assert api.shared.saves == 0
