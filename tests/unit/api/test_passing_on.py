"""What another node gets to see of a user whose request is passed on to it, and takes for one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
from aiohttp import WSMsgType
from multidict import CIMultiDictProxy

from cube.adapters.trust.tickets import Ed25519Tickets, token_key
from cube.api.auth import FORWARDED
from cube.api.tickets import TICKET, TICKET_CHARS_MAX, TICKET_MS, Ticket, write_ticket
from cube.model import commands as c
from cube.model.errors import Unavailable
from cube.model.ids import NodeId
from cube.model.lifecycle import NodeStatus
from cube.model.sessions import ExecCaller
from cube.model.trust import TokenRole, secret_hash
from tests.fakes.cluster import TERM, World, job_spec
from tests.fakes.served import Served, served
from tests.unit.api.passing import create_token, passed_on_access
from tests.unit.api.test_api_auth import IDS, SECRET, bearer
from tests.unit.api.test_api_exec import command, heard
from tests.unit.api.test_api_streams import eventually, lines

Headers = CIMultiDictProxy[str]


@contextlib.asynccontextmanager
async def two_guarded() -> AsyncIterator[tuple[Served, Served, list[Headers]]]:
    """With what the second one has heard."""
    world, seen = World(), list[Headers]()
    async with (
        served(world, "n1", access=passed_on_access()) as first,
        served(world, "n2", access=passed_on_access(seen.append)) as second,
    ):
        for role in TokenRole:
            world.apply(create_token(role))
        for one in (first, second):
            one.clock.now = world.state.now_ms
        yield first, second, seen


async def test_no_token_reaches_another_node_whatever_is_passed_on() -> None:
    async with two_guarded() as (first, second, seen):
        [task] = first.world.running(job_spec(), "n2")
        lines(second, "x\n")
        second.local_tasks.volumes["old"] = True
        operator = bearer(IDS["operator"])
        asked = [
            ("GET", f"/v1/tasks/{task.id}/logs", None),
            ("GET", f"/v1/tasks/{task.id}/stats", None),
            ("GET", "/v1/nodes/n2/stats", None),
            ("GET", "/v1/nodes/n2/volumes", None),
            ("POST", f"/v1/tasks/{task.id}/signal", {"signal": "HUP"}),
            ("DELETE", "/v1/nodes/n2/volumes/old", None),
        ]
        for method, path, body in asked:
            async with first.client.request(method, path, json=body, headers=operator) as response:
                assert response.status == 200, (path, await response.text())
        async with command(first, task.id, "say", "x", "0", headers=operator) as socket:
            assert len(await heard(socket)) == 3
        assert len(seen) == len(asked) + 1
        assert second.local_tasks.volumes == {}
        for headers in seen:
            told = str(headers)
            assert "Authorization" not in headers and SECRET.hex() not in told
        # Where a node may ask for itself, not even that: who asks is none of the other's business.
        assert [TICKET in headers for headers in seen] == [False] * 4 + [True] * 3
        [caller] = second.local_tasks.callers
        assert caller == ExecCaller(f"token:{IDS['operator']}", "operator", "", "127.0.0.1", "n1")


def ticket(first: Served, second: Served, asked: str, **changes: object) -> dict[str, str]:
    """What the first node sends to the second, were it to lie in `changes`."""
    made = Ticket(
        token=IDS["operator"], by=first.cluster.id, to=second.cluster.id, method="POST", path=asked,
        made_at_ms=second.shared.now_ms(),
    )  # fmt: skip
    secret = changes.pop("secret", SECRET)
    assert isinstance(secret, bytes)
    made = msgspec.structs.replace(made, **changes)
    return {
        FORWARDED: first.cluster.id,
        TICKET: write_ticket(Ed25519Tickets(), secret, made),
        "Content-Type": "application/json",
    }


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({}, 200, ""),
        ({"made_at_ms": -TICKET_MS}, 200, ""),
        ({"secret": b"x" * 32}, 403, "not signed"),
        ({"token": IDS["viewer"]}, 403, "the role deployer"),  # it is of the same secret here
        ({"token": "0000000e"}, 401, "was removed"),
        ({"by": NodeId("another")}, 403, "another request"),
        ({"to": NodeId("another")}, 403, "another request"),
        ({"method": "DELETE"}, 403, "another request"),
        ({"path": "/v1/tasks/x/signal"}, 403, "another request"),
        ({"made_at_ms": -TICKET_MS - 1_000}, 403, "clocks"),
        ({"made_at_ms": TICKET_MS + 1_000}, 403, "clocks"),
    ],
)
async def test_a_ticket_is_good_for_one_request_of_one_node_to_another(
    changes: dict[str, object], status: int, said: str
) -> None:
    async with two_guarded() as (first, second, _):
        [task] = first.world.running(job_spec(), "n2")
        if isinstance(shift := changes.get("made_at_ms"), int):
            changes = {**changes, "made_at_ms": second.shared.now_ms() + shift}
        path = f"/v1/tasks/{task.id}/signal"
        headers = ticket(first, second, path, **changes)
        async with second.client.post(path, data=b'{"signal":"HUP"}', headers=headers) as response:
            told = await response.text()
            assert (response.status, said in told) == (status, True), told
        assert len(second.local_tasks.signals) == (status == 200)


@pytest.mark.parametrize(
    "text", ["", ".", "a.b", "a", "e30=.", "e30=.AAAA", "x" * (TICKET_CHARS_MAX + 1), "W1td.e30="]
)
async def test_what_is_no_ticket_is_refused(text: str) -> None:
    async with two_guarded() as (first, second, _):
        headers = {FORWARDED: first.cluster.id, TICKET: text}
        await second.problem("GET", "/v1/nodes", 403, headers=headers)


async def test_a_ticket_is_worth_nothing_without_a_nodes_certificate() -> None:
    async with two_guarded() as (first, second, _):
        [task] = first.world.running(job_spec(), "n2")
        path = f"/v1/tasks/{task.id}/signal"
        headers = ticket(first, second, path)
        del headers[FORWARDED]
        await second.problem("POST", path, 401, data=b'{"signal":"HUP"}', headers=headers)
        headers = ticket(first, second, path)
        first.world.apply(c.SetNodeStatus(TERM, first.cluster.id, NodeStatus.DOWN))
        first.world.apply(c.RemoveNode(first.cluster.id))
        await second.problem("POST", path, 403, data=b'{"signal":"HUP"}', headers=headers)


async def test_a_token_of_an_older_version_gets_its_key_when_it_is_needed_first() -> None:
    async with two_guarded() as (first, second, _):
        [task] = first.world.running(job_spec(), "n2")
        old = c.CreateToken("0000000f", secret_hash(SECRET), TokenRole.OPERATOR)
        first.world.apply(old)
        path, body = f"/v1/tasks/{task.id}/signal", {"signal": "HUP"}
        for _ in range(2):
            async with first.client.post(path, json=body, headers=bearer("0000000f")) as response:
                assert response.status == 200, await response.text()
        kept = [body for body in first.cluster.proposed if isinstance(body, c.KeepTokenKey)]
        assert kept == [c.KeepTokenKey("0000000f", token_key(SECRET))]
        assert first.world.state.trust.tokens["0000000f"].key == token_key(SECRET)
        assert len(second.local_tasks.signals) == 2
        first.world.apply(c.CreateToken("0000001f", secret_hash(SECRET), TokenRole.OPERATOR))
        first.cluster.weather = Unavailable("no leader")
        sent = {"json": body, "headers": bearer("0000001f")}
        found = await first.problem("POST", path, 503, **sent)
        assert found["code"] == "unavailable"


async def test_a_node_that_does_not_know_the_key_yet_is_asked_again() -> None:
    async with two_guarded() as (first, second, _):
        [task] = first.world.running(job_spec(), "n2")
        first.world.apply(c.CreateToken("0000000f", secret_hash(SECRET), TokenRole.OPERATOR))
        path = f"/v1/tasks/{task.id}/signal"
        headers = ticket(first, second, path, token="0000000f")
        found = await second.problem("POST", path, 503, data=b'{"signal":"HUP"}', headers=headers)
        assert found["code"] == "behind"


async def test_what_a_node_passed_on_ends_when_it_is_removed() -> None:
    async with two_guarded() as (first, second, _):
        [task] = first.world.running(job_spec(), "n2")
        async with command(first, task.id, "hang", headers=bearer(IDS["operator"])) as socket:
            assert (await socket.receive()).type is WSMsgType.TEXT
            [(_, _, session)] = second.local_tasks.sessions
            first.world.apply(c.SetNodeStatus(TERM, first.cluster.id, NodeStatus.DOWN))
            first.world.apply(c.RemoveNode(first.cluster.id))
            assert [one["problem"]["code"] for one in await heard(socket)] == ["forbidden"]
            await eventually(lambda: session.is_closed)


async def test_who_was_asked_ends_it_too_should_the_other_node_lag() -> None:
    async with two_guarded() as (first, second, _):
        [task] = first.world.running(job_spec(), "n2")
        made = create_token(TokenRole.OPERATOR, SECRET, "0000001c")
        first.world.apply(msgspec.structs.replace(made, lifetime_ms=60_000))
        for one in (first, second):
            one.clock.now = first.world.state.now_ms
        async with command(first, task.id, "hang", headers=bearer("0000001c")) as socket:
            assert (await socket.receive()).type is WSMsgType.TEXT
            first.clock.now += 100_000
            assert [one["problem"]["code"] for one in await heard(socket)] == ["unauthenticated"]
            [(_, _, session)] = second.local_tasks.sessions
            await eventually(lambda: session.is_closed)
