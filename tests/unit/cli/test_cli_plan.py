"""`cube plan` against the real API and the real dry run, over a cluster without consensus."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from cube.model import commands as c
from tests.fakes.cluster import World, job_spec
from tests.fakes.served import Served, served

SHOP = """
name = "shop"
type = "service"
[groups.web]
count = {count}
driver = "process"
command = ["{command}"]
[groups.web.ports.http]
[groups.web.resources]
memory = "{memory}"
"""
ROOT = Path(__file__).resolve().parents[3]


def shop(tmp_path: Path, count: int = 2, command: str = "true", memory: str = "64MiB") -> str:
    file = tmp_path / "shop.toml"
    file.write_text(SHOP.format(count=count, command=command, memory=memory))
    return str(file)


async def cube(api: Served, *arguments: str, stdin: str = "") -> tuple[int, list[str], str]:
    """Exit code, lines of standard output, standard error. The state is as it was."""
    before = api.world.state
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "cube", "--addr", api.address, *arguments],
        input=stdin, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert api.world.state is before or arguments[0] == "run"
    return done.returncode, done.stdout.splitlines(), done.stderr


async def test_a_new_job(tmp_path: Path) -> None:
    file = shop(tmp_path)
    async with served() as api:
        code, out, err = await cube(api, "plan", file)
        assert (code, err) == (1, "")
        assert out == [
            "job shop is new:",
            '  + groups.web.command              ["true"]',
            "  + groups.web.count                2",
            "  + groups.web.driver               process",
            "  + groups.web.ports.http.host      0",
            "  + groups.web.ports.http.protocol  tcp",
            "  + groups.web.shutdown_delay       2s",
            "  + name                            shop",
            "  + type                            service",
            "",
            "GROUP  CREATE  REPLACE  IN PLACE  STOP  UNPLACED",
            "web    2       –        –         –     –",
            "",
            "SLOT   NOW  THEN",
            "web.0  –    n1",
            "web.1  –    n2",
            "",
            "to do exactly this, unless the job has moved on meanwhile (then exit 5):",
            f"  cube run --check-version 0 {file}",
        ]


async def test_an_update_a_stale_one_and_none(tmp_path: Path) -> None:
    world = World()
    world.running(job_spec("shop", web={"command": ["true"], "count": 2}))
    async with served(world) as api:
        code, out, _ = await cube(api, "plan", shop(tmp_path, 1, "yes", "128MiB"))
        assert code == 1
        assert out[:4] == [
            "job shop v1 → v2:",
            '  ~ groups.web.command           ["true"] → ["yes"]',
            "  ~ groups.web.count             2 → 1",
            "  ~ groups.web.resources.memory  64MiB → 128MiB",
        ]
        assert out[5:10] == [
            "GROUP  CREATE  REPLACE  IN PLACE  STOP  UNPLACED",
            "web    –       1        –         1     –",
            "",
            "SLOT   NOW  THEN",
            "web.0  n1   n1",
        ]
        assert out[-1].startswith("  cube run --check-version 1 ")
        # The line does it; and once the job has moved on, it does not.
        line = out[-1].split()[1:]
        code, _, _ = await cube(api, *line, "--detach")
        assert code == 0
        code, _, err = await cube(api, *line, "--detach")
        assert (code, "at version 2" in err) == (5, True)
        world.apply(c.DeleteJob("shop"))
        world.running(job_spec("shop", web={"command": ["true"], "count": 2}))
        code, out, _ = await cube(api, "plan", shop(tmp_path))
        assert (code, out) == (0, ["job shop v1 is as the file says", "next: cube status shop"])


async def test_what_does_not_fit_with_its_reasons(tmp_path: Path) -> None:
    async with served() as api:
        code, out, _ = await cube(api, "plan", shop(tmp_path, 1, memory="9GiB"))
        assert code == 1
        assert "web    –       –        –         –     1" in out
        told = "\n".join(out)
        assert "shop.web.0: 1 task not placed: 2 of 2 nodes: memory" in told
        assert "n1  not enough memory (needs 9 GiB, 8 GiB free)" in told


async def test_standard_input_json_and_what_is_no_job(tmp_path: Path) -> None:
    text = SHOP.format(count=1, command="true", memory="64MiB")
    async with served() as api:
        code, out, _ = await cube(api, "plan", "-", "-o", "json", stdin=text)
        found = json.loads(out[0])
        assert (code, found["version"], found["placements"][0]["node"]) == (1, 0, "n1")
        code, out, _ = await cube(api, "plan", "-", stdin=text)
        assert out[-1] == "  cube run --check-version 0 -"
        code, _, err = await cube(api, "plan", "-", stdin=text.replace("count", "cuont"))
        assert (code, "groups.web.cuont" in err) == (2, True)
        assert (await cube(api, "plan", "no-such-file"))[0] == 4
        assert (await cube(api, "plan", "drain", "n1", "n2"))[0] == 2


async def test_drain_and_loss_of_a_node(tmp_path: Path) -> None:
    world = World()
    world.running(job_spec("shop", web={"count": 2}), "n1")
    async with served(world) as api:
        code, out, _ = await cube(api, "plan", "drain", "n1")
        assert (code, out) == (
            0,
            [
                "draining n1 would change 1 job:",
                "",
                "SLOT        NOW  THEN",
                "shop.web.0  n1   n2",
                "shop.web.1  n1   n2",
                "everything that has to leave finds a place",
                "next: cube node drain n1",
            ],
        )
        code, out, _ = await cube(api, "plan", "lose", "n2")
        assert (code, out) == (0, ["losing n2 would change nothing"])
        world.apply(c.SetEligibility(world.state.node_names["n2"], eligible=False))
        code, out, _ = await cube(api, "plan", "lose", "n1")
        assert code == 3
        assert out[3:5] == ["shop.web.0  n1   –", "shop.web.1  n1   –"]
        assert "2 tasks would find no place:" in out
        assert any("n2  node is cordoned" in line for line in out)
        code, out, _ = await cube(api, "plan", "lose", "n1", "-o", "json")
        assert (code, json.loads(out[0])["fits"]) == (3, False)
        assert (await cube(api, "plan", "drain", "n7"))[0] == 4
