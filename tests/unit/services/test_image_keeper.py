"""Images go when the disk is too full, and only then; what is known of them outlives the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from cube.adapters.fake_driver import FakeDriver, FakeHost
from cube.adapters.fake_images import SIZE_BYTES
from cube.model.errors import DriverFailed
from cube.model.housekeeping import DiskRoom
from cube.model.ids import ClusterId, TaskId
from cube.model.images import ImagePulled, ImageSeen
from cube.model.launch import Launch
from cube.model.lifecycle import TaskState
from cube.services.image_keeper import (
    FILE,
    LOOK_S,
    REFUSED_PAUSE_MS,
    TRIED_PER_LOOK_MAX,
    ImageKeeper,
)
from cube.worker.images import ImageSettings
from tests.fakes.cluster import FakeClock, World, job_spec, node_facts
from tests.fakes.disk import FakeDisk
from tests.virtual_time import VirtualClock, run_virtual

DAY_MS = 86_400_000
N1 = node_facts("n1", 1).id
FULL_BYTES = 100 * SIZE_BYTES  # of the disk; by default a fifth of it is to be free


class Rig:
    """One node with a fake engine whose disk has `others_bytes` of other things."""

    def __init__(self, *, world: World | None = None, **settings: int) -> None:
        self.world = world or World()
        self.host = FakeHost()
        self.disk = FakeDisk()
        self.clock = FakeClock()
        self.others_bytes = 0
        self.caught_up = True
        self.settings = ImageSettings(**({"free_min_bytes": 0} | settings))
        self.start()

    def start(self) -> None:
        """The agent, again: the one before was killed."""
        self.driver = FakeDriver(ClusterId("cluster-1"), N1, self.host, self.clock)
        self.keeper = self.make_keeper(self.driver)

    def make_keeper(self, driver: Any, clock: Any = None) -> ImageKeeper:
        keeper = ImageKeeper(
            N1, self.disk, clock or self.clock, lambda: self.world.state,
            lambda: self.caught_up, {"fake": driver}, lambda _: "/engine", self.room, self.settings,
        )  # fmt: skip
        keeper.attach()
        return keeper

    def room(self, path: str) -> DiskRoom | None:
        if path != "/engine":
            return None
        used = self.others_bytes + SIZE_BYTES * len(self.host.images.names)
        return DiskRoom(total_bytes=FULL_BYTES, free_bytes=max(0, FULL_BYTES - used))

    def fill_but(self, images: int) -> None:
        """The disk is as full as it may be with so many images."""
        self.others_bytes = FULL_BYTES * 8 // 10 - images * SIZE_BYTES

    async def pull(self, *images: str) -> None:
        for image in images:
            launch = Launch(
                cluster_id=ClusterId("cluster-1"), node_id=N1, task_id=TaskId("t"), task_name="t",
                job="j", group="g", attempt=1, image=image,
            )  # fmt: skip
            await self.driver.prepare(launch)
            self.clock.now += 1000

    def here(self) -> list[str]:
        return sorted(min(names) for names in self.host.images.names.values())


async def test_the_longest_unused_go_until_there_is_room_and_no_more() -> None:
    rig = Rig()
    await rig.pull("r.test/a:1", "r.test/b:1", "r.test/c:1", "r.test/d:1")
    rig.clock.now += 2 * DAY_MS
    rig.fill_but(4)
    assert await rig.keeper.look() == 0
    rig.fill_but(2)
    assert await rig.keeper.look() == 2
    assert rig.here() == ["r.test/c:1", "r.test/d:1"]
    assert await rig.keeper.look() == 0


async def test_a_little_room_above_what_tasks_need_is_made_before_tasks_are_refused() -> None:
    rig = Rig(free_min_bytes=40 * SIZE_BYTES)
    await rig.pull("r.test/a:1")
    rig.clock.now += 2 * DAY_MS
    rig.others_bytes = 51 * SIZE_BYTES  # 48 free: the node would take tasks, and soon none
    assert await rig.keeper.look() == 1


@pytest.mark.parametrize("percent", [100])
async def test_they_never_go_by_themselves_where_the_node_is_told_so(percent: int) -> None:
    rig = Rig(disk_percent=percent, free_min_bytes=FULL_BYTES)
    await rig.pull("r.test/a:1")
    rig.clock.now += 2 * DAY_MS
    rig.others_bytes = FULL_BYTES
    assert await rig.keeper.look() == 0


async def test_a_killed_agents_memory_is_the_next_ones() -> None:
    rig = Rig()
    rig.host.images.pull("r.test/theirs:1", "")
    await rig.pull("r.test/theirs:1", "r.test/a:1")
    await rig.keeper.save()
    rig.start()
    rig.clock.now += 2 * DAY_MS
    rig.others_bytes = FULL_BYTES
    assert await rig.keeper.look() == 1
    assert rig.here() == ["r.test/theirs:1"]
    await rig.keeper.save()
    rig.start()
    rig.host.images.pull("r.test/a:1", "")  # by hand, now
    rig.clock.now += 2 * DAY_MS
    assert await rig.keeper.look() == 0


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"fake": [{"id": 1}]}', b"\xff"])
async def test_a_damaged_memory_is_forgotten_and_nothing_is_removed(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig()
    await rig.pull("r.test/a:1")
    rig.disk.files[FILE] = data
    rig.start()
    assert "images_forgotten" in caplog.text
    rig.clock.now += 2 * DAY_MS
    rig.others_bytes = FULL_BYTES
    assert await rig.keeper.look() == 0


async def test_what_tasks_of_this_host_go_by_stays_also_once_they_have_ended() -> None:
    world = World(
        node_facts("n1", 1, advertise="10.0.0.1"), node_facts("n2", 2, advertise="10.0.0.1")
    )
    docker: dict[str, object] = {"driver": "docker", "ports": {}}
    for name, node in (("mine", "n1"), ("neighbours", "n2")):
        world.run(job_spec(name, web=docker | {"image": f"r.test/{name}:1"}))
        [task] = world.place(name, "web", [0], node)
        world.report(task, TaskState.PREPARING)
        world.report(task, TaskState.FAILED)
        assert world.state.tasks[task.id].ended
    rig = Rig(world=world)
    await rig.pull("r.test/mine:1", "r.test/neighbours:1", "r.test/nobodys:1")
    rig.clock.now += 2 * DAY_MS
    rig.others_bytes = FULL_BYTES
    assert await rig.keeper.look() == 1
    assert rig.here() == ["r.test/mine:1", "r.test/neighbours:1"]


async def test_nothing_goes_before_this_node_knows_what_is_wanted() -> None:
    rig = Rig()
    await rig.pull("r.test/a:1")
    rig.clock.now += 2 * DAY_MS
    rig.others_bytes = FULL_BYTES
    [verdict] = await rig.keeper.verdicts("fake")
    rig.caught_up = False
    assert await rig.keeper.remove("fake", verdict) is False
    rig.caught_up = True
    assert await rig.keeper.remove("fake", verdict) is True


async def test_what_is_removed_is_logged_with_its_size(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rig = Rig()
    await rig.pull("r.test/a:1")
    rig.clock.now += 2 * DAY_MS
    rig.others_bytes = FULL_BYTES
    await rig.keeper.look()
    [line] = [one.getMessage() for one in caplog.records if "image_removed" in one.getMessage()]
    assert "names=r.test/a:1" in line
    assert "size='1 MiB'" in line


class Stubborn:
    """An engine with many images, that refuses to part with some."""

    def __init__(self, *ids: str, code: str = "image_in_use") -> None:
        self.ids = list(ids)
        self.code = code
        self.asked: list[str] = []
        self.is_hung = False
        self.on_pulled: Any = None

    def tell_pulls(self, on_pulled: Any) -> None:
        self.on_pulled = on_pulled

    async def images(self) -> list[ImageSeen]:
        if self.is_hung:
            raise DriverFailed("engine_down", "it does not answer", transient=True)
        return [ImageSeen(id=one, names=(f"{one}:1",)) for one in self.ids]

    async def remove_image(self, image_id: str, names: Sequence[str]) -> bool:
        self.asked.append(image_id)
        raise DriverFailed(self.code, "no", transient=True)


def stubborn(rig: Rig, *ids: str, code: str = "image_in_use") -> tuple[Stubborn, ImageKeeper]:
    engine = Stubborn(*ids, code=code)
    keeper = rig.make_keeper(engine)
    for one in ids:
        engine.on_pulled(ImagePulled(id=one, name=f"docker.io/library/{one}:1", was_here=False))
    rig.clock.now += 2 * DAY_MS
    rig.others_bytes = FULL_BYTES
    return engine, keeper


async def test_a_look_is_bounded_and_what_was_refused_is_left_alone_for_a_while() -> None:
    rig = Rig()
    ids = [f"i{number:03}" for number in range(TRIED_PER_LOOK_MAX + 5)]
    engine, keeper = stubborn(rig, *ids)
    assert await keeper.look() == 0
    assert engine.asked == ids[:TRIED_PER_LOOK_MAX]
    await keeper.look()
    assert engine.asked == ids
    await keeper.look()
    assert engine.asked == ids
    rig.clock.now += REFUSED_PAUSE_MS
    await keeper.look()
    assert engine.asked == ids + ids[:TRIED_PER_LOOK_MAX]


async def test_an_engine_that_does_not_answer_is_said_once_and_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    rig = Rig()
    engine, keeper = stubborn(rig, "i1", code="engine_down")
    for _ in range(2):
        assert await keeper.look() == 0
    assert engine.asked == ["i1", "i1"]
    engine.is_hung = True
    assert await keeper.look() == 0
    assert caplog.text.count("images_not_seen") == 1


async def test_an_engine_of_which_nothing_is_ours_is_not_asked() -> None:
    rig = Rig()
    engine = Stubborn("theirs")
    engine.is_hung = True
    rig.others_bytes = FULL_BYTES
    keeper = rig.make_keeper(engine)
    assert await keeper.look() == 0
    assert keeper._failures == {}


async def test_a_disk_that_cannot_be_written_is_said_once_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    await rig.pull("r.test/a:1")
    rig.disk.is_broken = True
    for _ in range(2):
        await rig.keeper.save()
    assert (FILE in rig.disk.files, caplog.text.count("images_not_written")) == (False, 1)
    rig.disk.is_broken = False
    await rig.keeper.save()
    data = rig.disk.files[FILE]
    assert [one["id"] for one in msgspec.json.decode(data)["fake"]] == ["r.test/a:1"]


async def test_a_pull_is_written_at_once() -> None:
    rig = Rig()
    running = asyncio.create_task(rig.keeper.run())
    await rig.pull("r.test/a:1")
    async with asyncio.timeout(30):
        while FILE not in rig.disk.files:  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0.01)
    running.cancel()


def test_the_loop_looks_each_minute() -> None:
    async def main() -> list[list[str]]:
        rig = Rig()
        rig.driver = FakeDriver(ClusterId("cluster-1"), N1, rig.host, VirtualClock())
        rig.keeper = rig.make_keeper(rig.driver, VirtualClock())
        await rig.pull("r.test/a:1")
        rig.others_bytes = FULL_BYTES
        running = asyncio.get_running_loop().create_task(rig.keeper.watch())
        found = []
        for wait_s in (DAY_MS / 1000 - 1, LOOK_S + 1):
            await asyncio.sleep(wait_s)
            found.append(rig.here())
        running.cancel()
        return found

    assert run_virtual(main()) == [["r.test/a:1"], []]
