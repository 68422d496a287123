"""The client against the real API, in threads: typed answers, refusals, failing over, streams."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import msgspec
import pytest

from cube.client import ApiProblem, BadAnswer, Client, NoAgent, StreamBroken
from cube.client.transport import Address, parse_address
from cube.model.errors import DriverFailed, OutcomeUnknown, Unavailable
from cube.model.launch import LogChunk
from cube.model.lifecycle import TaskState
from tests.fakes.cluster import START_MS, World, job_spec
from tests.fakes.served import SETTINGS, Served, served

T = TypeVar("T")

HELLO = b"""
name = "hello"
type = "service"
[groups.web]
count = 2
driver = "process"
command = ["true"]
"""


async def called(call: Callable[[], T]) -> T:
    return await asyncio.wait_for(asyncio.to_thread(call), 20)


@contextlib.asynccontextmanager
async def clients(*apis: Served, before: tuple[str, ...] = ()) -> AsyncIterator[Client]:
    with Client([*before, *(api.address for api in apis)], timeout_s=5) as client:
        yield client


@contextlib.asynccontextmanager
async def two(world: World) -> AsyncIterator[tuple[Served, Served, Client]]:
    """Two nodes of one cluster, and a client of both that asks the first."""
    async with (
        served(world, "n1") as first,
        served(world, "n2") as second,
        clients(first, second) as client,
    ):
        yield first, second, client


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def test_every_method_answers_its_view() -> None:
    async with served() as api, clients(api) as client:

        def everything() -> None:
            assert client.is_alive() and client.is_ready()
            assert client.status().leader is not None
            assert client.validate(HELLO).name == "hello"
            made = client.submit(HELLO, expected_version=0)
            assert (made.version, made.changed) == (1, True)
            assert client.scale("hello", "web", 3, expected_version=1).version == 2
            assert client.job("hello").groups["web"].count == 3
            assert [job.name for job in client.jobs(type_="service", prefix="he")] == ["hello"]
            assert [v.version for v in client.versions("hello")] == [1, 2]
            assert client.why("hello").explanations == ()
            assert [t.state for t in client.tasks(job="hello")] == ["pending"] * 3
            assert client.task("hello.web.1").id == "hello.web.1"
            assert client.stop_job("hello").changed and client.start_job("hello").changed
            assert client.delete_job("hello").changed
            assert [node.name for node in client.nodes()] == ["n1", "n2"]
            assert client.drain("n2", "5m").changed and client.node("n2").draining
            assert client.end_drain("n2").changed and client.set_eligible("n2", False).changed
            assert client.set_labels("n2", {"zone": "a"}).changed
            assert client.node("n2").labels == {"zone": "a"}
            assert client.services() == [] and len(client.gossip()) == 2
            assert client.raft().leader is not None and client.transfer_leadership().term == 1
            assert b'"items"' in client.read_raw("/v1/jobs", prefix="x")

        await called(everything)
        assert client.index == api.world.state.index


async def test_a_refusal_carries_all_that_the_agent_said() -> None:
    async with served() as api, clients(api) as client:
        with pytest.raises(ApiProblem) as caught:
            await called(lambda: client.submit(HELLO.replace(b"count", b"cuont")))
        problem = caught.value
        assert (problem.status, problem.code) == (422, "invalid_job")
        assert problem.errors[0].path == "groups.web.cuont" and "count" in problem.errors[0].hint
        for call, status in (
            (lambda: client.job("none"), 404),
            (lambda: client.remove_node("n2"), 409),
            (lambda: client.submit(HELLO, expected_version=7), 412),
            (lambda: client.job("../../etc"), 404),
            (lambda: client.tasks(state="runing"), 400),
        ):  # fmt: skip
            with pytest.raises(ApiProblem) as caught:
                await called(call)
            assert caught.value.status == status
        with pytest.raises(ApiProblem) as caught:
            await called(lambda: client.node("0000"))
        assert len(caught.value.candidates) == 2


async def test_lists_are_read_to_their_end() -> None:
    async with served() as api, clients(api) as client:
        api.world.run(job_spec(web={"count": 2_500}))
        tasks = await called(client.tasks)
        assert len({task.id for task in tasks}) == 2_500


async def test_the_next_address_is_asked_when_nobody_answers_at_one() -> None:
    async with served() as api, clients(api, before=(closed_port(),)) as client:
        assert (await called(client.status)).node.name == "n1"
    with Client([closed_port(), closed_port()]) as client, pytest.raises(NoAgent) as caught:
        await called(client.status)
    assert [cause for _, cause in caught.value.causes] == ["connection refused"] * 2


async def test_a_node_that_cannot_write_is_passed_over_and_its_word_is_the_last_resort() -> None:
    world = World()
    async with two(world) as (first, second, client):
        first.cluster.weather = Unavailable("no leader")
        assert (await called(lambda: client.submit(HELLO))).changed
        second.cluster.not_joined = "joining"
        with pytest.raises(ApiProblem) as caught:
            await called(lambda: client.stop_job("hello"))
        assert caught.value.status == 503


async def test_an_unknown_outcome_is_asked_for_again_with_the_same_key() -> None:
    world = World()
    async with two(world) as (first, second, client):
        propose = first.cluster.propose

        async def lose_the_answer(*args: object, **named: object) -> object:
            await propose(*args, **named)  # type: ignore[arg-type]
            raise OutcomeUnknown("the leader went away")

        first.cluster.propose = lose_the_answer  # type: ignore[assignment]
        made = await called(lambda: client.submit(HELLO))
        assert (made.version, made.changed) == (1, True)  # the first one's outcome
        assert len(world.state.jobs) == 1 and len(second.cluster.proposed) == 1


async def test_a_connection_that_drops_in_a_write_is_retried_with_the_same_key() -> None:
    async with served() as api:
        keys: list[str] = []

        async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            keys.extend(line for line in head.splitlines() if line.startswith("Idempotency-Key"))
            writer.transport.abort()

        dropping = await asyncio.start_server(drop, "127.0.0.1", 0)
        port = dropping.sockets[0].getsockname()[1]
        async with clients(api, before=(f"127.0.0.1:{port}",)) as client:
            assert (await called(lambda: client.submit(HELLO))).changed
        assert len(keys) == 1
        with Client([f"127.0.0.1:{port}"]) as client, pytest.raises(NoAgent) as caught:
            await called(lambda: client.submit(HELLO))
        assert len(keys) == 3 and keys[1] == keys[2]
        assert "closed" in caught.value.causes[0][1]
        dropping.close()
        await dropping.wait_closed()


async def test_an_idle_connection_that_the_agent_closed_is_opened_anew() -> None:
    async with served() as api, clients(api) as client:
        await called(client.status)
        assert api.server.runner is not None and api.server.runner.server is not None
        for protocol in list(api.server.runner.server.connections):
            protocol.force_close()
        assert (await called(lambda: client.submit(HELLO))).changed


async def test_reads_never_show_the_past() -> None:
    """n2 stands still; what was written through n1 is waited for there, and then asked of n1."""
    world, stale = World(), World()
    async with (
        served(world, "n1") as first,
        served(stale, "n2") as second,
        clients(first) as writer,
        clients(second, first) as reader,
    ):
        await called(lambda: writer.submit(HELLO))
        reader._transport.index = writer.index
        assert (await called(lambda: reader.job("hello"))).version == 1


async def test_output_is_an_iterator_of_pieces() -> None:
    async with served() as api, clients(api) as client:
        [task] = api.world.running(job_spec())
        api.local_tasks.chunks = [LogChunk("stdout", b"x" * 100_000 + b"\n", START_MS)] * 3
        pieces = await called(lambda: list(client.logs(task.id, tail=3, streams=("stdout",))))
        assert b"".join(pieces) == (b"x" * 100_000 + b"\n") * 3
        stamped = await called(lambda: b"".join(client.logs(task.id, timestamps=True)))
        assert stamped.startswith(b"2023-11-14T22:13:20.000Z x")
        follower = client.logs("shop.web.0", follow=True, tail=1)
        await called(lambda: next(follower))
        await called(follower.close)  # type: ignore[attr-defined]
        api.local_tasks.failure = DriverFailed("engine_down", "hangs", transient=True)
        with pytest.raises(ApiProblem) as caught:
            await called(lambda: list(client.logs(task.id)))
        assert caught.value.status == 502


async def test_output_that_breaks_off_is_not_taken_for_the_end() -> None:
    async with served() as api, clients(api) as client:
        [task] = api.world.running(job_spec())
        api.local_tasks.chunks = [LogChunk("stdout", b"half", START_MS)]
        pieces = client.logs(task.id, follow=True)
        assert await called(lambda: next(pieces)) == b"half"
        for stream in list(api.shared.lasting):
            stream.cancel()
        with pytest.raises(StreamBroken):
            await called(lambda: next(pieces))


async def test_events_go_on_at_the_next_agent() -> None:
    world = World()
    async with two(world) as (first, _, client):
        stream = client.events(topics=("job",), since=str(world.state.index))
        world.run(job_spec("a"))
        event = await called(lambda: next(stream))
        assert (event.name, event.data["job"]) == ("job", "a")
        await first.server.close()
        world.run(job_spec("b"))
        world.run(job_spec("c"))
        found = [(await called(lambda: next(stream))).data["job"] for _ in range(2)]
        assert found == ["b", "c"]
        await called(stream.close)  # type: ignore[attr-defined]


async def test_what_is_no_agent_is_said_to_be_none() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = b"[]" if b"/v1/status" in head else b"not today"
        status = b"200 OK" if body == b"[]" else b"418 Teapot"
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    with Client([f"127.0.0.1:{server.sockets[0].getsockname()[1]}"]) as client:
        with pytest.raises(BadAnswer):
            await called(client.status)
        with pytest.raises(ApiProblem) as caught:
            await called(client.nodes)
        assert (caught.value.status, caught.value.code) == (418, "not_an_agent")
    server.close()
    await server.wait_closed()


async def test_ten_megabytes_get_their_answer() -> None:
    async with served() as api, clients(api) as client:
        with pytest.raises(ApiProblem) as caught:
            await called(lambda: client.submit(b"#" * 10_000_000))
        assert caught.value.status == 413


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://127.0.0.1:7701", ("http", "127.0.0.1", 7701)),
        ("127.0.0.1:7701", ("", "127.0.0.1", 7701)),
        (" node-1 ", ("", "node-1", 7700)),
        ("http://[::1]:7701/", ("http", "::1", 7701)),
        ("https://127.0.0.1", ("https", "127.0.0.1", 7700)),
        ("ftp://127.0.0.1", None),
        ("http://", None),
        ("127.0.0.1:99999", None),
        ("127.0.0.1:x", None),
        ("http://h/v1", None),
        ("http://user@h", None),
        ("", None),
    ],
)
def test_addresses(text: str, address: tuple[str, str, int] | None) -> None:
    if address is None:
        with pytest.raises(ValueError):
            parse_address(text)
    else:
        assert parse_address(text) == Address(*address)


async def test_a_slow_agent_is_given_up_for_the_next() -> None:
    settings = msgspec.structs.replace(SETTINGS, min_index_timeout_ms=20_000)
    world = World()
    async with served(world, "n1", settings) as first, served(world, "n2") as second:
        with Client([first.address, second.address], timeout_s=0.3) as client:
            client._transport.index = world.state.index + 1
            with pytest.raises(ApiProblem) as caught:
                await called(client.status)
            assert caught.value.code == "behind"


def test_importing_the_client_imports_little() -> None:
    """The modules, not the milliseconds: those depend on the machine."""
    heavy = ("asyncio", "aiohttp", "docker", "psutil", "pysyncobj", "numpy", "immutables", "yaml")
    code = f"import sys, cube.client; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"


async def test_task_states_of_the_model_are_those_of_the_view() -> None:
    async with served() as api, clients(api) as client:
        [task] = api.world.running(job_spec())
        view = await called(lambda: client.task(task.id[:8]))
        assert TaskState(view.state) is TaskState.RUNNING and view.handle == "4242"
        assert (await called(lambda: client.stop_task(view.id))).changed
