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
DEFAULTS = {"policy": "epvm", "preemption": False, "rebalance": False}


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
        assert await show(api) == {"policy": "binpack", "preemption": True, "rebalance": False}
        assert changed["index"] == api.world.state.index
        assert (await change(api, {}))["changed"] is False


@pytest.mark.parametrize("body", [{"policy": "tetris"}, {"preemption": "on"}, {"unknown": 1}, []])
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
            "SETTING", "VALUE", "policy", "spread", "preemption", "on", "rebalance", "off"
        ]  # fmt: skip
        assert (await cube(api, "cluster", "settings"))[1] == out
        for bad in ("preemption", "preemption=maybe", "colour=red"):
            assert (await cube(api, "cluster", "settings", bad))[0] == 2
        assert (await cube(api, "cluster", "settings", "policy=tetris"))[0] == 2
