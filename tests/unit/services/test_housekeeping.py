"""What `cube node gc` is told and does: as the node would by itself, but for the room."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cube.adapters.fake_driver import FakeDriver, FakeHost
from cube.adapters.fake_images import SIZE_BYTES
from cube.model.errors import DriverFailed
from cube.model.housekeeping import DiskRoom
from cube.model.ids import ClusterId, TaskId
from cube.model.images import ImageSeen
from cube.model.launch import Launch
from cube.model.lifecycle import TaskState
from cube.services.forgotten import Forgotten
from cube.services.housekeeping import CLEAN_S, NOT_YET, REMEMBERED, Housekeeping
from cube.services.image_keeper import ImageKeeper
from cube.worker.images import ImageSettings
from tests.fakes.cluster import FakeClock, World, job_spec, node_facts
from tests.fakes.disk import FakeDisk
from tests.virtual_time import run_virtual

DAY_MS = 86_400_000
TOTAL_BYTES = 1000 * SIZE_BYTES
N1 = node_facts("n1", 1).id


class Rig:
    """One node whose disk is nearly empty, with a fake engine of which `path` says where it is."""

    def __init__(self, driver: Any = None, path: str = "/engine") -> None:
        self.world = World()
        self.host = FakeHost()
        self.clock = FakeClock()
        self.caught_up = True
        self.driver = driver or FakeDriver(ClusterId("cluster-1"), N1, self.host, self.clock)
        drivers = {"fake": self.driver}

        def room(_: str) -> DiskRoom:
            used_bytes = SIZE_BYTES * len(self.host.images.names)
            return DiskRoom(total_bytes=TOTAL_BYTES, free_bytes=TOTAL_BYTES - used_bytes)

        images = ImageKeeper(
            N1, FakeDisk(), self.clock, lambda: self.world.state, lambda: self.caught_up, drivers,
            lambda _: path, room, ImageSettings(free_min_bytes=0),
        )  # fmt: skip
        images.attach()
        forgotten = Forgotten(lambda: self.world.state, lambda: self.caught_up, drivers)
        self.housekeeping = Housekeeping(
            images, forgotten, lambda: self.world.state, lambda: self.caught_up
        )

    def launch(self, task_id: str, image: str = "") -> Launch:
        return Launch(
            cluster_id=ClusterId("cluster-1"), node_id=N1, task_id=TaskId(task_id), task_name="t",
            job="j", group="g", attempt=1, image=image,
        )  # fmt: skip

    async def leave_output(self, task_id: str) -> None:
        launch = self.launch(task_id)
        await self.driver.start(launch)
        self.host.write(N1, launch.task_id, "stdout", "x", self.clock.now)
        await self.driver.stop(launch.task_id, 1, "SIGKILL", 0)
        await self.driver.remove(launch.task_id, keep_logs=True)


async def test_the_plan_has_everything_with_its_reason_and_changes_nothing() -> None:
    rig = Rig()
    for image in ("r.test/old:1", "r.test/young:1"):
        await rig.driver.prepare(rig.launch("t", image))
        rig.clock.now += 2 * DAY_MS if "old" in image else 1000
    rig.host.images.pull("r.test/theirs:1", "")
    rig.world.run(job_spec("shop"))
    [task] = rig.world.place("shop", "web", [0])
    rig.world.report(task, TaskState.FAILED)
    await rig.leave_output(task.id)
    await rig.leave_output("forgotten")
    before = rig.host.images.seen(), dict(rig.host.output)
    found = await rig.housekeeping.waste()
    assert [(one.names, one.keep) for one in found.images] == [
        (("r.test/old:1",), ""),
        (("r.test/theirs:1",), "Cube did not pull it here"),
        (("r.test/young:1",), "last used 1s ago, less than 1d"),
    ]
    assert [(one.task_id, one.name, one.keep) for one in found.outputs] == [
        ("forgotten", "", ""),
        (task.id, "shop.web.0", REMEMBERED),
    ]
    assert found.outputs[1].ended_at_ms > 0
    assert (found.path, found.room_wanted_bytes, found.problems) == (
        "/engine", TOTAL_BYTES // 5, ()
    )  # fmt: skip
    assert (rig.host.images.seen(), dict(rig.host.output)) == before


async def test_what_may_go_goes_whatever_room_there_is_and_is_told_once() -> None:
    rig = Rig()
    await rig.driver.prepare(rig.launch("t", "r.test/a:1"))
    rig.host.images.pull("r.test/theirs:1", "")
    rig.clock.now += 2 * DAY_MS
    await rig.leave_output("forgotten")
    rig.world.run(job_spec("shop"))
    [task] = rig.world.place("shop", "web", [0])
    await rig.leave_output(task.id)
    done = await rig.housekeeping.clean("alice")
    assert [one.names for one in done.images] == [("r.test/a:1",)]
    assert [one.task_id for one in done.outputs] == ["forgotten"]
    assert (done.freed_bytes, done.is_more, done.problems) == (SIZE_BYTES, False, ())
    again = await rig.housekeeping.clean("alice")
    assert (again.images, again.outputs, again.freed_bytes) == ((), (), 0)
    assert set(rig.host.output) == {(N1, task.id)}
    assert list(rig.host.images.names.values()) == [{"r.test/theirs:1"}]


async def test_a_node_that_does_not_know_what_is_wanted_does_nothing() -> None:
    rig = Rig()
    await rig.driver.prepare(rig.launch("t", "r.test/a:1"))
    rig.clock.now += 2 * DAY_MS
    await rig.leave_output("forgotten")
    rig.caught_up = False
    assert (await rig.housekeeping.waste()).problems == (NOT_YET,)
    assert (await rig.housekeeping.clean("alice")).problems == (NOT_YET,)
    assert rig.host.images.names and rig.host.output


@pytest.mark.parametrize(("path", "is_told"), [("/engine", True), ("", False)])
async def test_an_engine_that_is_down_is_told_once_where_there_is_one(
    path: str, is_told: bool
) -> None:
    rig = Rig(path=path)
    rig.host.engine_down = True
    wanted = ("fake: the fake engine is down",) if is_told else ()
    assert (await rig.housekeeping.waste()).problems == wanted
    done = await rig.housekeeping.clean("alice")
    assert (done.problems, done.is_more) == (wanted, False)


class Slow(FakeDriver):
    """A removal takes half of what one answer may."""

    hangs = False

    async def images(self) -> list[ImageSeen]:
        if self.hangs:
            await asyncio.sleep(1000)
        return await super().images()

    async def remove_image(self, image_id: str, names: Sequence[str]) -> bool:
        await asyncio.sleep(CLEAN_S / 2 + 1)
        if "bad" in image_id:
            raise DriverFailed("image_in_use", "no", transient=True)
        return await super().remove_image(image_id, names)


def test_an_answer_comes_in_time_and_the_next_one_tells_the_rest() -> None:
    async def main() -> list[tuple[list[str], bool]]:
        rig = Rig()
        slow = Slow(ClusterId("cluster-1"), N1, rig.host, rig.clock)
        slow_rig = Rig(slow)
        slow_rig.host = rig.host
        for image in ("r.test/a:1", "r.test/bad:1", "r.test/c:1", "r.test/d:1"):
            await slow.prepare(rig.launch("t", image))
            rig.clock.now += 1000
        rig.clock.now += 2 * DAY_MS
        slow_rig.clock.now = rig.clock.now
        answers = []
        while True:
            # Two who ask at once share what is done, and each thing is told once.
            both = await asyncio.gather(*(slow_rig.housekeeping.clean(who) for who in "ab"))
            answers.append(
                (sorted(one.id for done in both for one in done.images), both[0].is_more)
            )
            if not both[0].is_more:
                return answers

    assert run_virtual(main()) == [
        (["r.test/a:1"], True),
        (["r.test/c:1"], True),
        (["r.test/d:1"], False),
    ]


def test_a_hung_engine_keeps_no_answer_waiting() -> None:
    async def main() -> bool:
        rig = Rig()
        slow = Slow(ClusterId("cluster-1"), N1, rig.host, rig.clock)
        slow.hangs = True
        async with asyncio.timeout(CLEAN_S + 1):
            return (await Rig(slow).housekeeping.clean("alice")).is_more

    assert run_virtual(main())
