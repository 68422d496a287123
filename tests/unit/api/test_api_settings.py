"""What all nodes agree on, over HTTP and on the command line."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.served import Served, read, served

ROOT = Path(__file__).resolve().parents[3]
DEFAULTS = {
    "policy": "epvm",
    "preemption": False,
    "rebalance": False,
    "finished_per_slot": 5,
    "finished_for": "0s",
    "finished_beyond": "10m",
}


async def change(api: Served, body: Any, status: int = 200) -> Any:
    async with api.client.put("/v1/cluster/settings", json=body) as response:
        return await read(response, status)


async def show(api: Served) -> Any:
    async with api.client.get("/v1/cluster/settings") as response:
        return await read(response)


async def test_what_is_not_given_stays() -> None:
    async with served() as api:
        assert await show(api) == DEFAULTS
        changed = await change(api, {"preemption": True})
        assert (changed["changed"], changed["settings"]) == (True, DEFAULTS | {"preemption": True})
        changed = await change(api, {"policy": "binpack", "preemption": True})
        assert await show(api) == DEFAULTS | {"policy": "binpack", "preemption": True}
        assert changed["index"] == api.world.state.index
        assert (await change(api, {}))["changed"] is False


async def test_which_finished_tasks_are_kept() -> None:
    async with served() as api:
        wanted = {"finished_per_slot": 3, "finished_for": "1d", "finished_beyond": "1h"}
        assert (await change(api, wanted))["settings"] == DEFAULTS | wanted
        kept = api.world.state.settings
        assert (kept.finished_per_slot, kept.finished_for_ms, kept.finished_beyond_ms) == (
            3, 86_400_000, 3_600_000
        )  # fmt: skip
        assert (await change(api, {"finished_for": 0}))["settings"]["finished_for"] == "0s"


@pytest.mark.parametrize(
    "body",
    [
        {"policy": "tetris"},
        {"preemption": "on"},
        {"unknown": 1},
        [],
        {"finished_per_slot": 0},
        {"finished_per_slot": 101},
        {"finished_per_slot": "5"},
        {"finished_for": "1m"},
        {"finished_for": "soon"},
        {"finished_beyond": -1},
        {"finished_beyond": True},
    ],
)
async def test_bad_bodies_are_refused(body: Any) -> None:
    async with served() as api:
        problem = await change(api, body, 422)
        assert problem["code"] == "invalid"
        assert await show(api) == DEFAULTS


async def cube(api: Served, *arguments: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "cube", "--addr", api.address, *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


async def test_on_the_command_line() -> None:
    async with served() as api:
        code, out, _ = await cube(api, "cluster", "settings", "preemption=on", "policy=spread")
        assert (code, api.world.state.settings.preemption) == (0, True)
        assert out.split() == [
            "SETTING", "VALUE", "policy", "spread", "preemption", "on", "rebalance", "off",
            "finished_per_slot", "5", "finished_for", "0s", "finished_beyond", "10m",
        ]  # fmt: skip
        assert (await cube(api, "cluster", "settings"))[1] == out
        code, out, _ = await cube(
            api,
            "cluster",
            "settings",
            "finished_per_slot=2",
            "finished_for=0",
            "finished_beyond=1m",
        )
        assert (code, out.split()[-6:]) == (
            0, ["finished_per_slot", "2", "finished_for", "0s", "finished_beyond", "1m"]
        )  # fmt: skip
        bad_ones = (
            "preemption",
            "preemption=maybe",
            "colour=red",
            "finished_per_slot=x",
            "finished_for=1x",
        )
        for bad in bad_ones:
            assert (await cube(api, "cluster", "settings", bad))[0] == 2, bad
        assert (await cube(api, "cluster", "settings", "policy=tetris"))[0] == 2
