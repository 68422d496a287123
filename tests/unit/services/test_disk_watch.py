"""A disk that is nearly full keeps new tasks away, with a reason, until there is room again."""

from __future__ import annotations

import msgspec
import pytest

from cube.adapters import host
from cube.model import commands as c
from cube.model.launch import DISK_FACT, DISK_SHORT, ROOT_FACT, DriverInfo
from cube.scheduler.why import explain
from cube.services.disk_watch import DiskWatch
from cube.worker.disk import DiskFloor
from tests.fakes.cluster import World, job_spec, node_facts

GIB = 1 << 30


def test_a_disk_is_short_below_its_floor_until_a_quarter_more_is_free() -> None:
    floor = DiskFloor(1000)
    assert [floor.step(free) for free in (5000, 1000, 999, 1000, 1249, 1250, 1000, 999, 0, 9999)] == [
        False, False, True, True, True, False, False, True, True, False,
    ]  # fmt: skip
    assert not DiskFloor(0).step(0)


@pytest.mark.parametrize(
    ("free", "short_on"),
    [
        ({"/data": 9 * GIB, "/engine": 9 * GIB}, None),
        ({"/data": GIB - 1, "/engine": 9 * GIB}, "/data"),
        ({"/data": 9 * GIB, "/engine": GIB - 1}, "/engine"),
        ({"/data": 9 * GIB}, None),
        ({}, None),
    ],
)
def test_a_driver_is_not_healthy_while_a_disk_it_needs_is_short(
    free: dict[str, int], short_on: str | None
) -> None:
    watch = DiskWatch("/data", GIB, free.get)
    info = DriverInfo("docker", True, "", {"version": "1", ROOT_FACT: "/engine"})
    found = watch.judge(info)
    if short_on is None:
        assert found is info
        return
    assert found == DriverInfo(
        "docker",
        False,
        f"less than 1 GiB is free on {short_on} ([gc] disk_free_min)",
        {**info.attributes, DISK_FACT: DISK_SHORT},
    )
    free[short_on] = 2 * GIB
    assert watch.judge(info) is info


def test_a_driver_that_is_down_says_why_itself_and_processes_need_no_engine() -> None:
    watch = DiskWatch("/data", GIB, {"/engine": 0, "/data": 9 * GIB}.get)
    down = DriverInfo("docker", False, "no engine", {ROOT_FACT: "/engine"})
    assert watch.judge(down) is down
    process = DriverInfo("process", True)
    assert watch.judge(process) is process


def test_why_says_what_is_full() -> None:
    watch = DiskWatch("/data", GIB, lambda _: 0)
    drivers = {"process": watch.judge(DriverInfo("process", True))}
    world = World(node_facts("n1", 1, drivers=drivers))
    world.run(job_spec("shop"))
    text = str(explain(world.state, world.state.now_ms, "shop"))
    assert "less than 1 GiB is free on /data ([gc] disk_free_min)" in text
    facts = msgspec.structs.replace(
        world.state.nodes[world.state.node_names["n1"]].facts,
        drivers={"process": DriverInfo("process", True)},
    )
    world.apply(c.RegisterNode(facts))
    assert "is free on" not in str(explain(world.state, world.state.now_ms, "shop"))


def test_this_machine_says_how_much_is_free() -> None:
    free = host.disk_free_bytes("/")
    assert free is not None
    assert free > 0
    assert host.disk_free_bytes("/no/such/path") is None
