"""Commands beside tasks over a WebSocket: here, through another node, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError

from cube.adapters.fake_sessions import PIECE_BYTES, WAITING_MAX
from cube.api.errors import problem_in_short
from cube.model import commands as c
from cube.model.errors import DriverFailed
from cube.model.lifecycle import NodeStatus, TaskState
from cube.model.trust import TokenRole
from tests.fakes.cluster import TERM, World, job_spec
from tests.fakes.served import SETTINGS, Served, served
from tests.unit.api.passing import create_token, passed_on_access
from tests.unit.api.test_api_auth import IDS, bearer
from tests.unit.api.test_api_streams import eventually, two_nodes

PATIENCE_S = 10


@contextlib.asynccontextmanager
async def command(
    api: Served, task: str, *argv: str, headers: dict[str, str] | None = None, **order: object
) -> AsyncIterator[ClientWebSocketResponse]:
    async with api.client.ws_connect(f"/v1/tasks/{task}/exec", headers=headers) as socket:
        await socket.send_str(json.dumps({"argv": argv, **order}))
        async with asyncio.timeout(PATIENCE_S):
            yield socket


async def heard(socket: ClientWebSocketResponse) -> list[Any]:
    """All messages to the end: bytes, or the JSON of a text."""
    return [
        message.data if message.type is WSMsgType.BINARY else json.loads(message.data)
        async for message in socket
    ]


async def test_output_and_exit_code_come_from_any_node() -> None:
    async with two_nodes() as (first, second):
        [task] = first.world.running(job_spec(), "n2")
        for api in (first, second):
            async with command(api, task.id[:6], "say", "hello", "3") as socket:
                assert await heard(socket) == [
                    {"started": True}, b"\x01hello\n", {"ended": True, "exit_code": 3},
                ]  # fmt: skip
        async with command(first, "shop.web.0", "/no/such/command") as socket:
            told = await heard(socket)
            assert told[1][:1] == b"\x02" and told[2]["exit_code"] == 127
        assert first.local_tasks.sessions == []
        assert all(session.is_closed for _, _, session in second.local_tasks.sessions)
        assert {actor for _, actor, _ in second.local_tasks.sessions} == {"anonymous"}


async def test_input_its_end_and_sizes_go_to_the_command() -> None:
    async with two_nodes() as (first, _):
        [task] = first.world.running(job_spec(), "n2")
        async with command(first, task.id, "copy") as socket:
            await socket.send_bytes(b"one")
            await socket.send_bytes(b"two")
            await socket.send_str('{"end_input":true}')
            told = await heard(socket)
            assert b"".join(m[1:] for m in told if isinstance(m, bytes)) == b"onetwo"
            assert told[-1] == {"ended": True, "exit_code": 0}
        async with command(first, task.id, "size", tty=True, rows=10, columns=20) as socket:
            assert (await socket.receive()).type is WSMsgType.TEXT
            assert (await socket.receive()).data == b"\x0110 20\n"
            await socket.send_str('{"resize":[30,40]}')
            assert (await socket.receive()).data == b"\x0130 40\n"


async def test_who_does_not_take_the_output_makes_the_command_wait() -> None:
    async with two_nodes() as (first, second):
        [task] = first.world.running(job_spec(), "n2")
        everything = 512 << 20
        async with command(first, task.id, "pour", str(everything)) as socket:
            await eventually(lambda: bool(second.local_tasks.sessions))
            session = second.local_tasks.sessions[0][2]
            held = WAITING_MAX * PIECE_BYTES
            await eventually(lambda: session.written_bytes > held)
            written = -1
            while written != session.written_bytes:  # until it stands still
                written = session.written_bytes
                await asyncio.sleep(0.3)
            # What the sockets of three hops hold, and no more.
            assert written < 64 << 20
            assert (await socket.receive()).type is WSMsgType.TEXT
            assert (await socket.receive()).data[:2] == b"\x01x"
        await eventually(lambda: session.is_closed)


async def test_a_client_that_goes_ends_the_command_wherever_it_waits() -> None:
    async with two_nodes() as (first, second):
        [task] = first.world.running(job_spec(), "n2")
        for argv in (("hang",), ("copy",), ("pour", str(1 << 30))):
            async with command(first, task.id, *argv) as socket:
                await socket.receive()
            session = second.local_tasks.sessions[-1][2]
            await eventually(lambda s=session: s.is_closed)  # type: ignore[misc]
        await eventually(lambda: not first.shared.lasting and not second.shared.lasting)


async def test_a_command_ends_with_its_task_and_that_is_said() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        async with command(api, task.id, "hang") as socket:
            await socket.receive()
            api.world.report(task, TaskState.FAILED)
            api.local_tasks.task_over.set()
            [last] = await heard(socket)
        assert last["exit_code"] == 137 and "has ended" in last["reason"]


async def test_a_node_that_goes_down_meanwhile_ends_the_conversation() -> None:
    async with two_nodes() as (first, _):
        [task] = first.world.running(job_spec(), "n2")
        async with command(first, task.id, "hang") as socket:
            await socket.receive()
            node_id = first.world.state.node_names["n2"]
            first.world.apply(c.SetNodeStatus(TERM, node_id, NodeStatus.DOWN))
            assert await heard(socket) == []  # no exit code: the client must not invent one


ORDERS = [
    ("{", "invalid"),
    ('{"argv":[]}', "invalid"),
    ('{"argv":["a\\u0000b"]}', "invalid"),
    ('{"argv":["a"],"rows":0}', "invalid"),
    ('{"argv":["a"],"colums":3}', "invalid"),
    (json.dumps({"argv": ["x" * 140_000]}), "invalid"),
    (b"bytes", "bad_body"),
]


@pytest.mark.parametrize(("order", "code"), ORDERS)
async def test_an_order_that_is_none_is_refused(order: str | bytes, code: str) -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        async with api.client.ws_connect(f"/v1/tasks/{task.id}/exec") as socket:
            await (socket.send_str(order) if isinstance(order, str) else socket.send_bytes(order))
            [told] = await heard(socket)
            assert told["problem"]["code"] == code
        assert api.local_tasks.sessions == []


async def test_no_order_is_waited_for_for_ever() -> None:
    settings = msgspec.structs.replace(SETTINGS, body_timeout_ms=50)
    async with served(settings=settings) as api:
        [task] = api.world.running(job_spec())
        async with api.client.ws_connect(f"/v1/tasks/{task.id}/exec") as socket:
            [told] = await heard(socket)
        assert told["problem"]["code"] == "body_timeout"


async def test_nonsense_in_between_ends_the_command() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        async with command(api, task.id, "hang") as socket:
            await socket.send_str('{"resize":"big"}')
            told = await heard(socket)
            assert told[-1]["problem"]["code"] == "invalid"
        assert api.local_tasks.sessions[0][2].is_closed


async def test_what_cannot_be_is_refused_before_there_is_a_socket() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        path = f"/v1/tasks/{task.id}/exec"
        problem = await api.problem("GET", path, 400)
        assert "WebSocket" in str(problem["detail"])
        api.world.run(job_spec("other"))
        api.world.report(task, TaskState.FAILED, released=True)
        for name, status in (("none", 404), ("other.web.0", 409), (task.id, 409)):
            headers = {"Upgrade": "websocket"}
            await api.problem("GET", f"/v1/tasks/{name}/exec", status, headers=headers)


async def test_a_driver_that_refuses_says_why() -> None:
    async with two_nodes() as (first, second):
        [task] = first.world.running(job_spec(), "n2")
        for code, shown in (
            ("not_running", "driver_failed"),
            ("too_many_sessions", "too_many_streams"),
        ):
            second.local_tasks.failure = DriverFailed(code, "no", transient=False)
            async with command(first, task.id, "hang") as socket:
                [told] = await heard(socket)
            assert (told["problem"]["code"], told["problem"]["detail"]) == (shown, "no")


async def test_a_node_that_cannot_be_reached_is_named_before_there_is_a_socket() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec(), "n2")
        headers = {"Upgrade": "websocket"}
        problem = await api.problem("GET", f"/v1/tasks/{task.id}/exec", 503, headers=headers)
        assert problem["code"] == "node_unreachable" and "node n2" in str(problem["detail"])


async def test_what_its_node_says_of_a_refusal_is_what_is_told() -> None:
    """Not that it could not be reached: somebody would look for a broken network."""
    world = World()
    crowded = msgspec.structs.replace(SETTINGS, streams_max=0)
    async with served(world, "n1") as first, served(world, "n2", settings=crowded) as second:
        [task] = world.running(job_spec(), "n2")
        path, headers = f"/v1/tasks/{task.id}/exec", {"Upgrade": "websocket"}
        found = await first.problem("GET", path, 429, headers=headers)
        assert (found["code"], "0 are open" in str(found["detail"])) == ("too_many_streams", True)
        second.cluster.not_joined = "it is catching up: ä\n"
        found = await first.problem("GET", path, 503, headers=headers)
        assert (found["code"], found["detail"]) == ("not_joined", "it is catching up: ä\n")


@pytest.mark.parametrize("text", ["", "%", "%FF", "{}", '{"code":"none","detail":""}', "[" * 9_000])
def test_a_header_that_says_nothing(text: str) -> None:
    assert problem_in_short(text) is None


async def test_only_an_operator_may_and_is_known_at_the_other_end() -> None:
    world = World()
    access = passed_on_access()
    async with (
        served(world, "n1", access=access) as first,
        served(world, "n2", access=access) as second,
    ):
        for role in TokenRole:
            world.apply(create_token(role))
        [task] = world.running(job_spec(), "n2")
        for who in ("viewer", "deployer"):
            with pytest.raises(WSServerHandshakeError) as refused:
                async with command(first, task.id, "hang", headers=bearer(IDS[who])):
                    pass
            assert refused.value.status == 403
        operator = bearer(IDS["operator"])
        async with command(first, task.id, "say", "x", "0", headers=operator) as socket:
            assert len(await heard(socket)) == 3
        assert [actor for _, actor, _ in second.local_tasks.sessions] == [
            f"token:{IDS['operator']}"
        ]
        async with command(first, task.id, "hang", headers=operator) as socket:
            assert (await socket.receive()).type is WSMsgType.TEXT
            world.apply(c.RemoveToken(IDS["operator"]))
            told = await heard(socket)
            assert [one["problem"]["code"] for one in told] == ["unauthenticated"]
        assert all(session.is_closed for _, _, session in second.local_tasks.sessions)
