"""`cube logs`: many tasks as one stream, in order of time, with those that come meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cube.cli.log_streams import WAITING_LINES_MAX, Line, Merge
from cube.model import commands as c
from cube.model.launch import LogChunk
from cube.model.lifecycle import TaskState
from cube.model.trust import TokenRole
from tests.fakes.cluster import START_MS, job_spec
from tests.fakes.served import Served, served
from tests.unit.api.passing import create_token, passed_on_access
from tests.unit.api.test_api_auth import IDS, bearer
from tests.unit.api.test_api_streams import eventually

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 30


def line(at: int, text: str = "") -> Line:
    return Line(f"{at:06}", text.encode())


def drain(merge: Merge, now_ms: int) -> list[tuple[str, Line]]:
    found = []
    while merge.wait_ms(now_ms) == 0:
        found.append(merge.pop())
    return found


def test_lines_wait_for_those_that_may_come_before_them() -> None:
    merge = Merge(patience_ms=300)
    merge.open("a")
    merge.open("b")
    merge.push("a", line(2), 1_000)
    assert merge.wait_ms(1_000) == 300
    merge.push("b", line(1), 1_100)
    assert [(s, one.at) for s, one in drain(merge, 1_100)] == [("b", "000001")]
    # Now b is silent again, and a's line has waited since 1,000.
    assert merge.wait_ms(1_250) == 50
    assert [s for s, _ in drain(merge, 1_300)] == ["a"]
    assert merge.wait_ms(1_300) is None and not merge.is_over
    merge.close("a")
    merge.close("b")
    assert merge.is_over


def test_without_following_the_order_is_exact_whoever_is_late() -> None:
    merge = Merge(patience_ms=None)
    merge.open("a")
    merge.open("b")
    merge.push("a", line(2), 0)
    assert merge.wait_ms(1 << 60) is None
    merge.close("b")
    assert [s for s, _ in drain(merge, 0)] == ["a"]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 50), max_size=20), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_each_line_once_in_its_tasks_order_and_all_by_time(
    sources: list[list[int]], dice: object
) -> None:
    ordered = {str(n): sorted(times) for n, times in enumerate(sources)}
    merge = Merge(patience_ms=None)
    waiting = {name: [line(at, f"{name}.{i}") for i, at in enumerate(times)]
               for name, times in ordered.items()}  # fmt: skip
    for name in waiting:
        merge.open(name)
    found = []
    while waiting:
        name = dice.choice(sorted(waiting))  # type: ignore[attr-defined]
        if waiting[name]:
            merge.push(name, waiting[name].pop(0), 0)
        else:
            merge.close(name)
            del waiting[name]
        found += drain(merge, 0)
    assert merge.is_over
    assert [one.at for _, one in found] == sorted(f"{at:06}" for ts in sources for at in ts)
    for name in ordered:
        own = [one.text.decode() for source, one in found if source == name]
        assert own == [f"{name}.{i}" for i in range(len(ordered[name]))]


def test_a_task_that_is_not_printed_is_full_and_not_read() -> None:
    merge = Merge(patience_ms=None)
    merge.open("a")
    merge.open("b")
    for number in range(WAITING_LINES_MAX):
        assert not merge.is_full("a")
        merge.push("a", line(number), 0)
    assert merge.is_full("a") and not merge.is_full("b")


def cube(api: Served, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "cube", "--addr", api.address, "logs", *arguments]


async def logs(api: Served, *arguments: str, code: int = 0) -> str:
    done = await asyncio.to_thread(
        subprocess.run, cube(api, *arguments), capture_output=True, timeout=PATIENCE_S, check=False,
        cwd=ROOT, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


async def test_all_tasks_of_a_job_or_group_with_their_names() -> None:
    async with served() as api:
        api.world.running(job_spec(web={"count": 2}, db={}))
        api.local_tasks.chunks = [LogChunk("stdout", b"a\n", START_MS)]
        shown = sorted((await logs(api, "shop")).splitlines())
        assert [text.split() for text in shown] == [
            ["shop.db.0@n1", "a"], ["shop.web.0@n1", "a"], ["shop.web.1@n1", "a"],
        ]  # fmt: skip
        assert len((await logs(api, "shop/web")).splitlines()) == 2
        assert await logs(api, "shop.web.1") == "a\n"
        assert await logs(api, "shop/db", "-t", "--no-prefix") == "2023-11-14T22:13:20.000Z a\n"
        [told] = (await logs(api, "shop/db", "-o", "json")).splitlines()
        assert json.loads(told)["task"] == "shop.db.0"
        assert "did you mean web?" in await logs(api, "shop/wab", code=4)
        assert "no job nope" in await logs(api, "nope/web", code=4)


async def test_following_joins_what_comes_and_ends_with_the_job() -> None:
    async with served() as api:
        [first] = api.world.running(job_spec())
        api.local_tasks.chunks = [LogChunk("stdout", b"hello\n", START_MS)]
        process = await asyncio.create_subprocess_exec(
            *cube(api, "-f", "shop"), stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert await process.stdout.readline() == b"shop.web.0@n1 hello\n"
            api.world.report(first, TaskState.FAILED, released=True)
            [second] = api.world.place("shop", "web", [0])
            api.world.report(second, TaskState.RUNNING)
            for _ in range(2):
                api.local_tasks.say(None)
            assert await process.stdout.readline() == b"shop.web.0@n1 hello\n"
            await eventually(lambda: any(ask[0] == second.id for ask in api.local_tasks.asked))
            assert (second.id, None) in {(ask[0], ask[2]) for ask in api.local_tasks.asked}
            api.world.apply(c.StopJob("shop"))
            api.world.report(second, TaskState.COMPLETED, released=True)
            for _ in range(2):
                api.local_tasks.say(None)
            assert await process.stdout.read() == b""
            assert await process.wait() == 0


@pytest.mark.parametrize("name", ["shop", "shop.web.0", "TASK"])
async def test_following_ends_when_the_token_does(name: str) -> None:
    async with served(access=passed_on_access()) as api:
        api.world.apply(create_token(TokenRole.VIEWER))
        api.clock.now = api.world.state.now_ms
        [task] = api.world.running(job_spec())
        token = bearer(IDS["viewer"])["Authorization"].removeprefix("Bearer ")
        process = await asyncio.create_subprocess_exec(
            *cube(api, "-f", task.id if name == "TASK" else name), stderr=subprocess.PIPE, cwd=ROOT,
            env={**os.environ, "CUBE_TOKEN": token},
        )  # fmt: skip
        assert process.stderr is not None
        try:
            async with asyncio.timeout(PATIENCE_S):
                await eventually(lambda: api.local_tasks.followers == 1)
                api.world.apply(c.RemoveToken(IDS["viewer"]))
                told = (await process.stderr.read()).decode()
                assert (await process.wait(), "was removed" in told) == (6, True), told
        finally:
            if process.returncode is None:
                process.kill()


async def test_control_characters_reach_pipes_and_no_terminal() -> None:
    async with served() as api:
        api.world.running(job_spec())
        api.local_tasks.chunks = [LogChunk("stdout", b"\x1b]0;evil\x07 red\n", START_MS)]
        assert await logs(api, "shop", "--no-prefix") == "\x1b]0;evil\x07 red\n"

        def on_terminal() -> bytes:
            outer, inner = pty.openpty()
            done = subprocess.run(
                cube(api, "shop.web.0"), stdout=inner, stdin=subprocess.DEVNULL, check=False,
                timeout=PATIENCE_S, cwd=ROOT, env={**os.environ, "TERM": "xterm"},
            )  # fmt: skip
            os.close(inner)
            seen = os.read(outer, 4096)
            os.close(outer)
            assert done.returncode == 0
            return seen

        assert await asyncio.to_thread(on_terminal) == b"?]0;evil? red\r\n"
