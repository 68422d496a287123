"""Answers that last: events with resume, output from here and through other nodes, and their ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import ClientPayloadError, ClientResponse

from cube.model import commands as c
from cube.model.cluster import Task
from cube.model.errors import DriverFailed
from cube.model.events import Event
from cube.model.launch import LogChunk
from cube.model.lifecycle import NodeStatus, TaskState
from tests.fakes.cluster import START_MS, TERM, World, job_spec, node_facts
from tests.fakes.served import SETTINGS, Served, served

Json = Any


class Events:
    """The client's side of an event stream."""

    def __init__(self, response: ClientResponse) -> None:
        self._response = response
        self.heartbeats = 0

    async def next(self) -> tuple[str, str, Json]:
        """id, name, data"""
        found = await self.next_or_end()
        assert found is not None, "the stream ended"
        return found

    async def next_or_end(self) -> tuple[str, str, Json] | None:
        fields: dict[str, str] = {}
        async with asyncio.timeout(10):
            while True:
                line = (await self._response.content.readline()).decode()
                if not line:
                    return None
                line = line.rstrip("\n")
                if line.startswith(":"):
                    self.heartbeats += line == ": heartbeat"
                elif line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif fields:
                    data = msgspec.json.decode(fields["data"])
                    return fields.get("id", ""), fields["event"], data


@contextlib.asynccontextmanager
async def events(api: Served, query: str = "", last_id: str = "") -> AsyncIterator[Events]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with api.client.get(f"/v1/events{query}", headers=headers) as response:
        assert response.status == 200 and response.content_type == "text/event-stream"
        yield Events(response)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


async def test_events_come_with_ids_and_resume_after_any_of_them() -> None:
    async with served() as api:
        async with events(api) as stream:
            api.world.run(job_spec(web={"count": 3}))
            api.world.place("shop", "web", [0, 1, 2])
            seen = [await stream.next() for _ in range(4)]
        index = api.world.state.index
        assert [id_ for id_, _, _ in seen] == [
            f"{index - 1}.0", f"{index}.0", f"{index}.1", f"{index}.2",
        ]  # fmt: skip
        assert [name for _, name, _ in seen] == ["job", "task", "task", "task"]
        data = seen[1][2]
        assert data["index"] == index and data["at"].endswith("Z")
        assert (data["topic"], data["kind"], data["task"]) == ("task", "placed", "shop.web.0")
        for position, (id_, _, _) in enumerate(seen[:-1]):
            async with events(api, last_id=id_) as stream:
                assert await stream.next() == seen[position + 1]
        async with events(api, f"?since={index - 1}") as stream:
            assert (await stream.next())[0] == f"{index}.0"
        async with events(api, "?since=0&topic=job,task") as stream:
            assert (await stream.next())[1] == "job"


async def test_a_resume_that_came_too_late_is_told_to_reset_and_goes_on() -> None:
    async with served() as api:
        api.world.run(job_spec())
        api.world.forgotten_index = api.world.state.index
        async with events(api, last_id="1.0") as stream:
            id_, name, data = await stream.next()
            assert (id_, name) == ("", "reset") and data == {"index": api.world.state.index}
            api.world.run(job_spec("later"))
            assert (await stream.next())[2]["job"] == "later"


async def past(api: Served, query: str = "", last_id: str = "") -> list[tuple[str, str, Any]]:
    """All of a stream that ends by itself."""
    found = []
    async with asyncio.timeout(10), events(api, f"?follow=0{query}", last_id) as stream:
        while (event := await stream.next_or_end()) is not None:
            found.append(event)
    return found


async def test_who_does_not_follow_gets_what_is_remembered_and_the_end() -> None:
    async with served() as api:
        api.world.run(job_spec(web={"count": 3}))
        api.world.place("shop", "web", [0, 1, 2])
        index = api.world.state.index
        whole = await past(api)
        assert [name for _, name, _ in whole][-4:] == ["job", "task", "task", "task"]
        assert whole[0][1] == "cluster", "from the first that is remembered"
        assert await past(api, "&tail=2") == whole[-2:]
        assert await past(api, "&tail=0") == []
        assert await past(api, "&tail=1&topic=job") == whole[-4:-3]
        assert await past(api, f"&since={index}.0") == whole[-2:]
        assert await past(api, last_id=f"{index}.1") == whole[-1:]
        api.world.forgotten_index = index - 1
        assert await past(api) == whole[-3:]
        assert [name for _, name, _ in await past(api, "&since=1")] == ["reset"]
        for wrong in ("&tail=-1", "&tail=x", "&follow=2"):
            await api.problem("GET", f"/v1/events?follow=0{wrong}", 400)


async def test_who_follows_may_begin_with_some_of_the_past() -> None:
    async with served() as api:
        api.world.run(job_spec("old"))
        async with events(api, "?tail=1") as stream:
            assert (await stream.next())[2]["job"] == "old"
            api.world.run(job_spec("new"))
            assert (await stream.next())[2]["job"] == "new"


async def test_an_id_of_a_node_that_is_ahead_is_waited_for() -> None:
    settings = msgspec.structs.replace(SETTINGS, min_index_timeout_ms=10_000)
    async with served(settings=settings) as api:
        ahead = api.world.state.index + 1
        async with events(api, last_id=f"{ahead}.0") as stream:
            await eventually(lambda: len(api.shared.lasting) == 1)
            api.world.run(job_spec("seen-there"))
            api.world.run(job_spec("new"))
            assert (await stream.next())[2]["job"] == "new"


async def test_a_quiet_event_stream_has_a_heart() -> None:
    async with served() as api, events(api) as stream:
        asked = asyncio.create_task(stream.next())

        def beat() -> bool:
            api.clock.now += 60
            return stream.heartbeats >= 2

        await eventually(beat)
        api.world.run(job_spec())
        assert (await asked)[1] == "job"


async def test_a_big_entry_is_streamed_whole() -> None:
    async with served() as api, events(api) as stream:
        api.world.apply(c.RegisterNode(node_facts("big", 3, capacity=_room())))
        await stream.next()
        api.world.run(job_spec(web={"count": 2_000, "ports": {}}))
        await stream.next()
        api.world.place("shop", "web", range(2_000), "big")
        numbers = [int((await stream.next())[0].split(".")[1]) for _ in range(2_000)]
        assert numbers == list(range(2_000))


def _room() -> Any:
    from cube.model.resources import Resources

    return Resources(1_000_000, 1 << 40, 1 << 40)


def lines(api: Served, *texts: str) -> None:
    api.local_tasks.chunks = [
        LogChunk("stderr" if text.startswith("!") else "stdout", text.encode(), START_MS)
        for text in texts
    ]


async def output(api: Served, task: Task, query: str = "") -> str:
    async with api.client.get(f"/v1/tasks/{task.id}/logs{query}") as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/plain"
        return await response.text()


async def test_output_is_plain_text_and_the_driver_is_asked_what_was_asked() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        lines(api, "one\n", "!two\n", "three")
        assert await output(api, task) == "one\n!two\nthree"
        assert await output(api, task, "?stream=stderr&tail=5&since=10") == "!two\n"
        api.clock.now = START_MS
        await output(api, task, "?since=10m&tail=all")
        await output(api, task, "?since=2023-11-14T22:13:20Z")
        both = ("stdout", "stderr")
        assert api.local_tasks.asked == [
            (task.id, both, None, 0, False),
            (task.id, ("stderr",), 5, 10_000, False),
            (task.id, both, None, START_MS - 600_000, False),
            (task.id, both, None, START_MS, False),
        ]
        async with api.client.get("/v1/tasks/shop.web.0/logs") as response:
            assert await response.text() == "one\n!two\nthree"
        for query in ("since=soon", "since=2023-11-14T22:13:20", "tail=-1", "stream=both", "x=1"):
            await api.problem("GET", f"/v1/tasks/{task.id}/logs?{query}", 400)


async def test_time_stamps_are_put_before_lines_and_nowhere_else() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        at = "2023-11-14T22:13:20.000Z "
        lines(api, "a\nb", "c\n", "!x\n\n", "d\n")
        assert await output(api, task, "?timestamps=1") == f"{at}a\n{at}bc\n{at}!x\n{at}\n{at}d\n"


async def test_the_output_of_an_ended_task_is_found_by_its_name() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        lines(api, "last words\n")
        api.world.report(task, TaskState.FAILED, released=True)
        async with api.client.get("/v1/tasks/shop.web.0/logs") as response:
            assert await response.text() == "last words\n"
        api.world.run(job_spec("other"))
        problem = await api.problem("GET", "/v1/tasks/other.web.0/logs", 409)
        assert "not placed" in str(problem["detail"])
        await api.problem("GET", "/v1/tasks/none.web.0/logs", 404)


async def test_following_output_ends_with_the_task_and_with_the_client() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        lines(api, "first\n")
        path = f"/v1/tasks/{task.id}/logs?follow=1"
        async with api.client.get(path) as response:
            assert await response.content.readline() == b"first\n"
            api.local_tasks.say(LogChunk("stdout", b"second\n"))
            assert await response.content.readline() == b"second\n"
            api.world.report(task, TaskState.FAILED)
            api.local_tasks.say(None)
            api.local_tasks.say(None)  # asked once more, now that nothing can follow
            assert await response.content.read() == b""
        async with api.client.get(path) as response:
            await response.content.readline()
            await eventually(lambda: api.local_tasks.followers == 1)
            response.close()
        await eventually(lambda: api.local_tasks.followers == 0)
        assert not api.shared.lasting


async def test_following_goes_on_with_the_next_attempt_and_says_nothing_twice() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        lines(api, "first\n")
        async with api.client.get(f"/v1/tasks/{task.id}/logs?follow=1&tail=1") as response:
            assert await response.content.readline() == b"first\n"
            api.local_tasks.chunks = [LogChunk("stdout", b"second\n", START_MS + 5_000)]
            api.world.report(task, TaskState.PENDING, attempt=2, reason="exited")
            api.local_tasks.say(None)  # what the driver says at the end of an attempt
            assert await response.content.readline() == b"second\n"
            api.world.report(task, TaskState.FAILED, attempt=2)
            api.local_tasks.chunks = []
            api.local_tasks.say(None)
            api.local_tasks.say(None)
            assert await response.content.read() == b""
        both = ("stdout", "stderr")
        asked = api.local_tasks.asked
        assert asked[:2] == [(task.id, both, 1, 0, True), (task.id, both, None, START_MS + 1, True)]
        assert set(asked[2:]) <= {(task.id, both, None, START_MS + 5_001, True)}


async def test_what_was_dropped_is_said_where_it_was() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        lost = 12 << 20
        api.local_tasks.chunks = [
            LogChunk("stdout", b"half a li"),
            LogChunk("stdout", b"ne\nmore\n", dropped_bytes=lost),
            LogChunk("stderr", b"", dropped_bytes=lost),
        ]
        told = (
            "-- cube: about 12 MiB of {} dropped here: it was written faster than it is read --\n"
        )
        want = "half a li\n" + told.format("stdout") + "ne\nmore\n" + told.format("stderr")
        assert await output(api, task) == want


async def test_a_driver_that_fails_at_once_is_a_problem() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        api.local_tasks.failure = DriverFailed("engine_down", "docker hangs", transient=True)
        for query in ("", "?follow=1"):
            problem = await api.problem("GET", f"/v1/tasks/{task.id}/logs{query}", 502)
            assert problem["code"] == "driver_failed" and problem["detail"] == "docker hangs"


@contextlib.asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[Served, Served]]:
    world = World()
    async with served(world, "n1") as first, served(world, "n2") as second:
        yield first, second


async def test_output_comes_from_any_node() -> None:
    async with two_nodes() as (first, second):
        [task] = first.world.running(job_spec(), "n2")
        lines(second, "from n2\n", "!and more\n")
        assert await output(first, task, "?stream=stdout&tail=3") == "from n2\n"
        assert first.local_tasks.asked == []
        assert second.local_tasks.asked == [(task.id, ("stdout",), 3, 0, False)]
        async with first.client.get(f"/v1/tasks/{task.id}/logs") as response:
            assert response.headers["X-Cube-Node"] == first.cluster.id
        second.local_tasks.failure = DriverFailed("engine_down", "docker hangs", transient=True)
        problem = await first.problem("GET", f"/v1/tasks/{task.id}/logs", 502)
        assert problem["detail"] == "docker hangs"


async def test_following_through_another_node_ends_with_the_client() -> None:
    async with two_nodes() as (first, second):
        [task] = first.world.running(job_spec(), "n2")
        async with first.client.get(f"/v1/tasks/{task.id}/logs?follow=1") as response:
            second.local_tasks.say(LogChunk("stdout", b"hello\n"))
            assert await response.content.readline() == b"hello\n"
            response.close()
        await eventually(lambda: second.local_tasks.followers == 0)


async def test_a_node_that_cannot_be_reached_is_named() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec(), "n2")  # nothing listens at n2's address
        problem = await api.problem("GET", f"/v1/tasks/{task.id}/logs", 503)
        assert problem["code"] == "node_unreachable" and "node n2" in str(problem["detail"])


async def test_a_request_is_passed_on_once() -> None:
    """n1 thinks that the task is on n2, and at n2's address n1 itself answers."""
    async with served() as api:
        [task] = api.world.running(job_spec(), "n2")
        facts = api.world.state.nodes[task.node_id].facts
        wrong = msgspec.structs.replace(facts, http_address=api.address)
        api.world.apply(c.RegisterNode(wrong))
        problem = await api.problem("GET", f"/v1/tasks/{task.id}/logs", 503)
        assert "not here" in str(problem["detail"])


async def test_a_node_that_goes_away_breaks_the_stream_rather_than_ending_it() -> None:
    async with two_nodes() as (first, second):
        [task] = first.world.running(job_spec(), "n2")
        async with first.client.get(f"/v1/tasks/{task.id}/logs?follow=1") as response:
            second.local_tasks.say(LogChunk("stdout", b"hello\n"))
            await response.content.readline()
            node_id = first.world.state.node_names["n2"]
            first.world.apply(c.SetNodeStatus(TERM, node_id, NodeStatus.DOWN))
            with pytest.raises((ClientPayloadError, ConnectionError)):
                async with asyncio.timeout(10):
                    await response.content.read()


async def test_a_client_that_reads_nothing_is_dropped() -> None:
    settings = msgspec.structs.replace(SETTINGS, stream_write_ms=100)
    async with served(settings=settings) as api:
        [task] = api.world.running(job_spec())
        api.local_tasks.chunks = [LogChunk("stdout", b"x" * 1_000_000)] * 200
        reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port, limit=1024)
        writer.write(f"GET /v1/tasks/{task.id}/logs HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        lasting = api.shared.lasting
        await eventually(lambda: len(lasting) == 1)
        await eventually(lambda: not lasting)
        async with asyncio.timeout(10):
            received = await reader.read()
        assert not received.endswith(b"0\r\n\r\n")  # it must not take this for the end
        writer.close()
        await writer.wait_closed()


async def test_streams_are_bounded_and_end_with_the_node() -> None:
    settings = msgspec.structs.replace(SETTINGS, streams_max=2)
    async with contextlib.AsyncExitStack() as stack, served(settings=settings) as api:
        first = await stack.enter_async_context(events(api))
        await stack.enter_async_context(events(api))
        problem = await api.problem("GET", "/v1/events", 429)
        assert problem["code"] == "too_many_streams"
        problem = await api.problem("GET", "/v1/jobs?index=9999&wait=1s", 429)
        api.world.run(job_spec())
        await first.next()
        await asyncio.wait_for(api.server.close(), 5)


async def test_requests_are_bounded() -> None:
    settings = msgspec.structs.replace(SETTINGS, requests_max=1, min_index_timeout_ms=10_000)
    async with served(settings=settings) as api:
        ahead = api.world.state.index + 1
        held = asyncio.create_task(api.get(f"/v1/jobs?min_index={ahead}"))
        await eventually(lambda: api.shared.requests == 1)
        problem = await api.problem("GET", "/v1/jobs", 503)
        assert problem["code"] == "overloaded"
        body = {"node_id": "n9"}
        async with api.client.post("/v1/internal/heartbeat", json=body) as response:
            assert response.status == 200  # load must not look like death
        assert await api.get("/v1/livez")
        api.world.run(job_spec())
        await held


def test_every_event_has_a_topic_to_filter_by() -> None:
    from typing import get_args

    from cube.api.watch import TOPICS

    assert {kind.__struct_config__.tag for kind in get_args(Event)} == set(TOPICS)
