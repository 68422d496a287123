"""Signals and restarts of single tasks, through any node and from the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cube.cli.top import Row, sorted_rows
from cube.model.errors import DriverFailed
from cube.model.lifecycle import TaskState
from cube.model.trust import TokenRole
from tests.fakes.cluster import World, job_spec
from tests.fakes.served import Served, served
from tests.unit.api.passing import create_token, passed_on_access
from tests.unit.api.test_api_auth import IDS, bearer
from tests.unit.api.test_api_streams import two_nodes
from tests.unit.client.test_conversation import terminal

ROOT = Path(__file__).resolve().parents[3]


async def cube(api: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "cube", "--addr", api.address, *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip


async def test_a_signal_goes_to_the_tasks_node() -> None:
    async with two_nodes() as (first, second):
        [task] = first.world.running(job_spec(), "n2")
        path = f"/v1/tasks/{task.id}/signal"
        for api in (first, second):
            async with api.client.post(path, json={"signal": "sighup"}) as response:
                assert response.status == 200, await response.text()
                assert await response.json() == {
                    "id": task.id, "name": "shop.web.0", "signal": "SIGHUP",
                }  # fmt: skip
        assert first.local_tasks.signals == []
        assert second.local_tasks.signals == [(task.id, "SIGHUP", "anonymous")] * 2
        told = await cube(first, "task", "signal", "shop.web.0", "USR1")
        assert told.returncode == 0 and "was sent USR1" in told.stderr
        assert second.local_tasks.signals[-1] == (task.id, "USR1", "anonymous")
        second.local_tasks.failure = DriverFailed("bad_signal", "no such", transient=False)
        problem = await first.problem("POST", path, 502, json={"signal": "SIGFOO"})
        assert problem["detail"] == "no such"


@pytest.mark.parametrize("word", ["", "0", "100", "kill -9", "SIG", "9\n", "SIGTERM;"])
async def test_what_is_no_signal_reaches_no_node(word: str) -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        await api.problem("POST", f"/v1/tasks/{task.id}/signal", 422, json={"signal": word})
        assert api.local_tasks.signals == []


async def test_what_does_not_run_is_neither_signalled_nor_restarted() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        api.world.report(task, TaskState.FAILED, released=True)
        api.world.run(job_spec("other"))
        for verb, sent in (("signal", {"json": {"signal": "HUP"}}), ("restart", {})):
            for name, status in (("nope", 404), ("other.web.0", 409), (task.id, 409)):
                await api.problem("POST", f"/v1/tasks/{name}/{verb}", status, **sent)


async def test_a_restart_is_written_once_for_its_node_to_see() -> None:
    async with served() as api:
        [task] = api.world.running(job_spec())
        headers = {"Idempotency-Key": "again"}
        path = f"/v1/tasks/{task.id}/restart"
        for _ in range(2):
            async with api.client.post(path, headers=headers) as response:
                told = await response.json()
                assert (response.status, told["changed"]) == (202, True)
        assert api.world.state.tasks[task.id].restart_after == 1
        async with api.client.post(path) as response:
            assert (await response.json())["changed"] is False
        told = await cube(api, "task", "restart", "shop.web.0")
        assert told.returncode == 0 and "on its way already" in told.stderr
        api.world.report(task, TaskState.RUNNING, attempt=2)
        told = await cube(api, "task", "restart", "shop.web.0")
        assert told.returncode == 0 and "restarts" in told.stderr
        assert api.world.state.tasks[task.id].restart_after == 2


async def test_a_deployers_signal_is_passed_on_by_a_node() -> None:
    world, access = World(), passed_on_access()
    async with (
        served(world, "n1", access=access) as first,
        served(world, "n2", access=access) as second,
    ):
        for role in TokenRole:
            world.apply(create_token(role))
        [task] = world.running(job_spec(), "n2")
        for who, status in (("viewer", 403), ("deployer", 200)):
            async with first.client.post(
                f"/v1/tasks/{task.id}/signal", json={"signal": "HUP"}, headers=bearer(IDS[who])
            ) as response:
                assert response.status == status
        assert second.local_tasks.signals == [(task.id, "HUP", f"token:{IDS['deployer']}")]


async def test_use_of_one_task_and_of_all_of_a_node_from_any_node() -> None:
    async with two_nodes() as (first, second):
        [one, other] = first.world.running(job_spec(web={"count": 2}), "n2")
        found = await first.get(f"/v1/tasks/{one.id}/stats")
        assert isinstance(found, dict)
        assert (found["name"], found["cpu_seconds"], found["pids"]) == ("shop.web.0", 0.25, 2)
        assert found["received_bytes"] is None
        found = await first.get("/v1/nodes/n2/stats")
        assert isinstance(found, dict)
        assert [task["id"] for task in found["tasks"]] == [one.id, other.id]
        assert found["failed"] == {}
        second.local_tasks.failure = DriverFailed("engine_down", "hangs", transient=True)
        found = await first.get("/v1/nodes/n2/stats")
        assert isinstance(found, dict)
        assert found["tasks"] == [] and found["failed"] == {one.id: "hangs", other.id: "hangs"}
        await first.problem("GET", f"/v1/tasks/{one.id}/stats", 502)
        assert first.local_tasks.stats_asked == 0


async def test_top_shows_rates_between_two_looks() -> None:
    async with two_nodes() as (first, _):
        first.world.running(job_spec(), "n2")
        told = await cube(first, "top")
        assert told.returncode == 0, told.stderr
        lines = [line.split() for line in told.stdout.splitlines()]
        assert lines[0] == ["NODE", "STATUS", "CPU", "OF", "MEMORY", "OF", "TASKS"]
        assert lines[2][:3] == ["n2", "ready", "1.00"]
        [row] = [line for line in lines if line and line[0] == "shop.web.0"]
        assert row[:3] == ["shop.web.0", "n2", "0.25"]  # 250 ms of cpu in a second
        told = await cube(first, "top", "-o", "json", "shop")
        assert json.loads(told.stdout)["tasks"][0]["cpu"] == 0.25
        told = await cube(first, "top", "nope")
        assert told.returncode == 4


def row(name: str, cpu: float | None = 0.0, memory_bytes: int = 0) -> Row:
    return Row(name, name, "n", cpu, memory_bytes, None, 1)


def test_top_sorts_the_largest_first_and_what_is_unknown_last() -> None:
    rows = [row("a", cpu=None), row("b", cpu=2.0, memory_bytes=1), row("c", memory_bytes=9)]
    assert [r.task for r in sorted_rows(rows, "cpu")] == ["b", "a", "c"]
    assert [r.task for r in sorted_rows(rows, "memory")] == ["c", "b", "a"]
    assert [r.task for r in sorted_rows(rows, "name")] == ["a", "b", "c"]


async def test_top_on_a_terminal_ends_by_a_key_and_leaves_it_as_it_was() -> None:
    async with two_nodes() as (first, _):
        first.world.running(job_spec(), "n2")
        arguments = [sys.executable, "-m", "cube", "--addr", first.address, "top"]

        def walk() -> None:
            for end in ("key", "signal"):
                with terminal(arguments) as one:
                    one.until(lambda: b"shop.web.0" in one.seen)
                    is_raw = not one.is_as_before
                    assert is_raw
                    os.write(one.fd, b"m")
                    one.until(lambda: b"by memory" in one.seen)
                    if end == "key":
                        os.write(one.fd, b"q")
                    else:
                        os.kill(one.program.pid, signal.SIGINT)
                    one.until(lambda: one.program.poll() is not None)
                    assert one.is_as_before
                    assert one.program.returncode == 0

        await asyncio.to_thread(walk)
