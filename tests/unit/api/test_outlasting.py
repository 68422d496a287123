"""What lasts ends soon after its token: output, events, snapshots, and questions that wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import ClientPayloadError, ClientResponse

from cube.api import saving
from cube.model import commands as c
from cube.model.launch import LogChunk
from cube.model.trust import TokenRole
from tests.fakes.cluster import START_MS, World, job_spec
from tests.fakes.served import SETTINGS, Served, served
from tests.unit.api.passing import create_token, passed_on_access
from tests.unit.api.test_api_auth import IDS, SECRET, bearer
from tests.unit.api.test_api_streams import eventually

PATIENCE_S = 10
End = Callable[[Served], None]


def remove(api: Served) -> None:
    api.world.apply(c.RemoveToken(IDS["operator"]))


def expire(api: Served) -> None:
    api.clock.now += 10_000_000


def demote(api: Served) -> None:
    """Of the same name, and of a role that may less: not what an id ever becomes, but what is checked."""
    remove(api)
    api.world.apply(create_token(TokenRole.VIEWER, SECRET, IDS["operator"]))


@contextlib.asynccontextmanager
async def guarded(node: str = "n1", world: World | None = None) -> AsyncIterator[Served]:
    async with served(world, node, access=passed_on_access()) as api:
        if IDS["operator"] not in api.world.state.trust.tokens:
            made = create_token(TokenRole.OPERATOR)
            api.world.apply(msgspec.structs.replace(made, lifetime_ms=5_000_000))
        api.clock.now = api.world.state.now_ms
        yield api


async def rest_of(response: ClientResponse) -> tuple[bytes, bool]:
    """And whether it ended as if it were whole."""
    got = b""
    async with asyncio.timeout(PATIENCE_S):
        try:
            async for piece in response.content.iter_any():
                got += piece
        except ClientPayloadError:
            return got, False
    return got, True


@pytest.mark.parametrize("end", [remove, expire])
@pytest.mark.parametrize("is_talking", [False, True], ids=["quiet", "talking"])
@pytest.mark.parametrize("where", ["n1", "n2"])
async def test_output_that_is_followed(end: End, is_talking: bool, where: str) -> None:
    async with guarded() as first, guarded("n2", first.world) as second:
        [task] = first.world.running(job_spec(), where)
        there = first if where == "n1" else second
        path = f"/v1/tasks/{task.id}/logs?follow=1"
        async with first.client.get(path, headers=bearer(IDS["operator"])) as response:
            assert response.status == 200
            await eventually(lambda: there.local_tasks.followers == 1)
            talking = asyncio.create_task(_talk(there)) if is_talking else None
            end(first)
            _, is_whole = await rest_of(response)
            assert not is_whole  # half a log must not look like all of it
            if talking is not None:
                talking.cancel()
        await eventually(lambda: there.local_tasks.followers == 0)


async def _talk(api: Served) -> None:
    while True:
        api.local_tasks.say(LogChunk("stdout", b"x\n", START_MS))
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("end", [remove, expire])
async def test_events(end: End) -> None:
    async with guarded() as api:
        async with api.client.get("/v1/events", headers=bearer(IDS["operator"])) as response:
            assert (await response.content.readline()) == b": events\n"
            end(api)
            api.world.run(job_spec("secret-job"))
            got, _ = await rest_of(response)
            assert b"secret-job" not in got
        async with api.client.get("/v1/events", headers=bearer(IDS["operator"])) as response:
            assert response.status == 401


@pytest.mark.parametrize("end", [remove, demote])
async def test_a_snapshot(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader takes its time: it does not get the rest."""
    whole = saving.encoded

    def encoded(*given: Any, **named: Any) -> Any:
        header, pieces = whole(*given, **named)
        return header, pieces + [bytes(saving.PIECE_BYTES)] * 1_000  # more than sockets hold

    monkeypatch.setattr(saving, "encoded", encoded)
    async with guarded() as api:
        headers = bearer(IDS["operator"])
        async with api.client.post("/v1/raft/snapshot", headers=headers) as response:
            assert response.status == 200
            end(api)
            got, is_whole = await rest_of(response)
            assert not is_whole and len(got) < 1_000 * saving.PIECE_BYTES
        await eventually(lambda: api.shared.saves == 0)


async def test_a_question_that_waits_for_a_change() -> None:
    async with guarded() as api:
        path = f"/v1/jobs?index={api.world.state.index + 1}&wait=60s"

        async def ask() -> int:
            async with api.client.get(path, headers=bearer(IDS["operator"])) as response:
                return response.status

        asked = asyncio.create_task(ask())
        await eventually(lambda: bool(api.shared.lasting))
        remove(api)
        api.world.run(job_spec("secret-job"))
        async with asyncio.timeout(PATIENCE_S):
            assert await asked == 401


async def test_who_is_not_asked_for_tokens_is_not_cut_off() -> None:
    settings = msgspec.structs.replace(SETTINGS, stream_poll_ms=1)
    async with served(settings=settings) as api, api.client.get("/v1/events") as response:
        api.clock.now += 10_000_000_000
        api.world.run(job_spec("shop"))
        while b"shop" not in await response.content.readline():
            pass
