"""What a node could be rid of, over HTTP and on the command line."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from cube.model import commands as c
from cube.model.housekeeping import Cleaned, DiskRoom, ImageVerdict, OutputVerdict, Waste
from cube.model.ids import TaskId
from cube.model.launch import DISK_FACT, DISK_SHORT, DriverInfo
from cube.model.lifecycle import NodeStatus
from tests.fakes.cluster import TERM
from tests.fakes.served import Served, read, served

Json = Any
ROOT = Path(__file__).resolve().parents[3]
OLD = ImageVerdict(
    id="sha256:" + 64 * "a", names=("r.test/app@sha256:1", "r.test/app:1"), size_bytes=5 << 20,
    used_at_ms=1_700_000_000_000,
)  # fmt: skip
THEIRS = ImageVerdict(
    id="sha256:" + 64 * "b", names=("nginx:1",), size_bytes=7, keep="Cube did not pull it here"
)
NAMELESS = ImageVerdict(id="sha256:" + 64 * "c", names=(), size_bytes=7, keep="Cube did not …")
LEFT = OutputVerdict(driver="process", task_id=TaskId("gone-1"))
KEPT = OutputVerdict(
    driver="docker", task_id=TaskId("t-2"), name="shop.web.0", ended_at_ms=1_700_000_000_000,
    keep="the cluster remembers the task",
)  # fmt: skip
FOUND = Waste(
    images=(OLD, THEIRS, NAMELESS),
    outputs=(LEFT, KEPT),
    path="/var/lib/docker",
    room=DiskRoom(total_bytes=100 << 30, free_bytes=30 << 30),
    room_wanted_bytes=20 << 30,
)


async def test_the_plan_as_json() -> None:
    async with served() as api:
        api.housekeeping.found = FOUND
        found: Json = await api.get("/v1/nodes/n1/gc")
        assert found["node"] == "n1"
        assert found["disk"] == {
            "path": "/var/lib/docker", "total_bytes": 100 << 30, "free_bytes": 30 << 30,
            "wanted_free_bytes": 20 << 30,
        }  # fmt: skip
        assert [one["keep"] for one in found["images"]] == [None, THEIRS.keep, NAMELESS.keep]
        assert found["images"][0]["used_at"] == "2023-11-14T22:13:20.000Z"
        assert found["images"][1]["used_at"] is None
        assert found["outputs"][0] == {
            "driver": "process", "task_id": "gone-1", "task": None, "ended_at": None, "keep": None,
        }  # fmt: skip
        assert api.housekeeping.asked == []
        api.housekeeping.found = Waste()
        assert (await api.get("/v1/nodes/n1/gc"))["disk"] is None  # type: ignore[index]


async def test_it_is_done_for_who_asks() -> None:
    async with served() as api:
        api.housekeeping.answers = [Cleaned(images=(OLD,), freed_bytes=9, is_more=True)]
        async with api.client.post("/v1/nodes/n1/gc") as response:
            done: Json = await read(response)
        assert (done["freed_bytes"], done["more"], len(done["images"])) == (9, True, 1)
        assert len(api.housekeeping.asked) == 1
        async with api.client.post("/v1/nodes/n1/gc", data=b'{"force": true}') as response:
            await read(response, 422)
        async with api.client.post("/v1/nodes/nx/gc") as response:
            await read(response, 404)
        assert len(api.housekeeping.asked) == 1


async def test_a_node_that_is_down_is_not_asked() -> None:
    async with served() as api:
        down = api.world.state.node_names["n2"]
        api.world.apply(c.SetNodeStatus(TERM, down, NodeStatus.DOWN, "gone"))
        for method in ("GET", "POST"):
            found = await api.problem(method, "/v1/nodes/n2/gc", 503)
            assert "n2 is down" in str(found["detail"])
            headers = {"X-Cube-Forwarded": api.cluster.id}
            await api.problem(method, "/v1/nodes/n2/gc", 503, headers=headers)


async def test_another_node_is_asked_for_its_own() -> None:
    async with served(node="n1") as one, served(one.world, node="n2") as two:
        two.housekeeping.found = FOUND
        two.housekeeping.answers = [Cleaned(images=(OLD,))]
        found: Json = await one.get("/v1/nodes/n2/gc")
        assert (found["node"], len(found["images"])) == ("n2", 3)
        async with one.client.post("/v1/nodes/n2/gc") as response:
            done: Json = await read(response)
        assert (done["node"], len(done["images"])) == ("n2", 1)
        assert (one.housekeeping.asked, len(two.housekeeping.asked)) == ([], 1)


async def cube(api: Served, *arguments: str, verb: str = "gc") -> tuple[int, str, str]:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "cube", "--addr", api.address, "node", verb, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


async def test_the_plan_on_the_command_line() -> None:
    async with served() as api:
        down = api.world.state.node_names["n2"]
        api.world.apply(c.SetNodeStatus(TERM, down, NodeStatus.DOWN, "gone"))
        api.housekeeping.found = FOUND
        code, out, told = await cube(api, "--plan")
        lines = [line.split() for line in out.splitlines()]
        assert code == 0
        assert lines[0] == ["NODE", "WHAT", "NAME", "SIZE", "LAST", "USED", "WHY"]
        assert [line[:4] for line in lines[1:]] == [
            ["n1", "remove", "image", "r.test/app:1"],
            ["n1", "remove", "output", "gone-1"],
            ["n1", "keep", "image", "nginx:1"],
        ]
        assert "n2 is down; nothing is removed on it" in told
        assert "30 GiB of 100 GiB free in /var/lib/docker; below 20 GiB" in told
        assert "output of 1 finished task stays" in told
        assert "1 image and output of 1 forgotten task would go. next: cube node gc n1" in told
        wide = await cube(api, "n1", "--plan", "-o", "wide")
        assert "shop.web.0" in wide[1]
        names = await cube(api, "n1", "--plan", "-o", "name")
        assert names[1].split() == ["r.test/app:1", "gone-1"]
        raw = await cube(api, "n1", "--plan", "-o", "json")
        assert json.loads(raw[1])["images"][0]["id"] == OLD.id
        assert api.housekeeping.asked == []
        api.housekeeping.found = Waste()
        assert "nothing to remove" in (await cube(api, "n1", "--plan"))[2]


async def test_it_goes_on_until_all_is_gone_and_says_what_went() -> None:
    async with served() as api:
        api.housekeeping.answers = [
            Cleaned(images=(OLD,), freed_bytes=3 << 20, is_more=True),
            Cleaned(outputs=(LEFT,), freed_bytes=1 << 20),
        ]
        code, out, told = await cube(api, "n1")
        assert (code, out.splitlines()) == (
            0,
            [
                "n1  removed image r.test/app:1  5 MiB",
                "n1  removed output of gone-1  process",
            ],
        )
        assert "n1: 1 image and output of 1 forgotten task removed; 4 MiB more are free" in told
        assert "nothing was removed" in (await cube(api, "n1"))[2]


async def test_what_could_not_be_done_is_told_and_fails() -> None:
    async with served() as api:
        problem = "docker: the Docker Engine does not answer"
        api.housekeeping.answers = [Cleaned(problems=(problem,))]
        code, _, told = await cube(api, "n1")
        assert (code, problem in told, "nothing was removed" in told) == (1, True, False)
        api.housekeeping.found = Waste(problems=(problem,))
        code, _, told = await cube(api, "--plan")  # n2 is nowhere to be reached
        assert (code, problem in told, "n1, n2 could not look at everything" in told) == (
            1, True, True
        )  # fmt: skip


async def test_what_a_tired_person_types() -> None:
    async with served() as api:
        for arguments, code, words in (
            (("nx",), 4, "there is no node nx"),
            (("n1", "n2"), 2, "unexpected extra argument"),
            (("--plna",), 2, "Did you mean '--plan'"),
        ):
            done = await cube(api, *arguments)
            assert (done[0], words in done[2]) == (code, True), done
        assert api.housekeeping.asked == []


async def test_who_looks_at_a_node_whose_disk_is_short_is_told_what_helps() -> None:
    async with served() as api:
        assert "node gc" not in (await cube(api, "n1", verb="show"))[2]
        known = api.world.state.nodes[api.cluster.node_id()].facts
        short = DriverInfo("docker", False, "less than 1 GiB is free", {DISK_FACT: DISK_SHORT})
        api.world.apply(c.RegisterNode(msgspec.structs.replace(known, drivers={"docker": short})))
        code, _, told = await cube(api, "n1", verb="show")
        assert (code, "next: cube node gc n1 --plan" in told) == (0, True)
