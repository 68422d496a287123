"""`cube events` prints what there is and ends; with -f it goes on."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.fakes.cluster import START_MS, job_spec
from tests.fakes.served import Served, served

ROOT = Path(__file__).resolve().parents[3]


async def cube(api: Served, *arguments: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "cube", "--addr", api.address, "events", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", "TZ": "UTC"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


async def test_what_happened_is_printed_and_that_is_all() -> None:
    async with served() as api:
        for name in ("one", "two"):
            api.world.run(job_spec(name))
        code, out, told = await cube(api)
        assert (code, told) == (0, "")
        lines = [line.split() for line in out.splitlines()]
        assert [line[2:4] for line in lines if line[2] == "job"] == [["job", "one"], ["job", "two"]]
        assert START_MS == 1_700_000_000_000
        assert lines[-1][0] == "2023-11-14", "of another day than today, so with its date"
        [last] = (await cube(api, "--tail", "1"))[1].splitlines()
        assert "two" in last
        code, out, told = await cube(api, "--topic", "secret")
        assert (code, out, "no such events; -f waits" in told) == (0, "", True)
        raw = (await cube(api, "-o", "json", "--topic", "job"))[1].splitlines()
        first = json.loads(raw[0])
        assert (first["event"], first["data"]["job"]) == ("job", "one")
        assert (await cube(api, "--since", first["id"], "--topic", "job"))[1].count("two") == 1
        assert (await cube(api, "--tail", "-1"))[0] == 2
        assert (await cube(api, "--topic", "jobs"))[0] == 2


async def test_with_f_it_goes_on() -> None:
    async with served() as api:
        api.world.run(job_spec("one"))
        command = [
            sys.executable,
            "-m",
            "cube",
            "--addr",
            api.address,
            "events",
            "-f",
            "--tail",
            "1",
        ]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"}
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                assert b" one " in await process.stdout.readline()
                api.world.run(job_spec("two"))
                assert b" two " in await process.stdout.readline()
        finally:
            process.terminate()
            await process.wait()
