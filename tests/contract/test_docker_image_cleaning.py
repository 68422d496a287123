"""The keeper of images on a real engine whose disk is small: what goes, what stays, and what that frees."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import msgspec
import pytest

from cube.adapters import host
from cube.adapters.docker_driver import DockerDriver
from cube.adapters.file_disk import FileDisk
from cube.adapters.system_clock import SystemClock
from cube.services.image_keeper import ImageKeeper
from cube.worker.images import ImageSettings
from tests.contract.docker_rig import DockerRig, shell
from tests.contract.driver_cases import ended, new_task_id
from tests.contract.image_cases import asking
from tests.contract.private_engine import PrivateEngine, private_engine
from tests.e2e.registry import Registry, registry
from tests.fakes.cluster import World

DISK_MIB = 64
CONTENT_BYTES = 6 << 20  # of each image, beside a busybox of 2 MiB
FULL_PERCENT = 40


def keeper_of(rig: DockerRig, engine: PrivateEngine, disk: FileDisk) -> ImageKeeper:
    """As the agent makes it, for a cluster that wants nothing of this host."""
    keeper = ImageKeeper(
        rig.node_id,
        disk,
        SystemClock(),
        lambda: World().state,
        lambda: True,
        {"docker": rig.driver},
        lambda _: str(engine.home / "data"),
        host.disk_room,
        ImageSettings(unused_for_ms=0, disk_percent=FULL_PERCENT, free_min_bytes=0),
    )
    keeper.attach()
    return keeper


def names_here(rig: DockerRig) -> set[str]:
    return {str(tag) for one in rig.client.images() for tag in one["RepoTags"] or ()}


async def pull(rig: DockerRig, store: Registry, tag: str) -> str:
    store.push("app", tag, secrets.token_hex(CONTENT_BYTES // 2))
    image = f"{store.address}/app:{tag}"
    await rig.driver.prepare(asking(rig, image))
    await asyncio.sleep(0.002)  # the next one is used later
    return image


@pytest.mark.docker
@pytest.mark.root
async def test_unused_images_go_until_the_disk_has_room_and_no_others(tmp_path: Path) -> None:
    with private_engine("--disk", str(DISK_MIB)) as engine, registry() as store:
        rig = DockerRig(engine.host)
        await rig.open()
        disk = FileDisk(tmp_path)
        try:
            keeper = keeper_of(rig, engine, disk)
            assert isinstance(rig.driver, DockerDriver)
            by_hand = f"{store.address}/app:hand"
            store.push("app", "hand", "by hand")
            rig.client.pull(by_hand)
            await rig.driver.prepare(asking(rig, by_hand, "always"))
            used, *unused = [await pull(rig, store, tag) for tag in ("1", "2", "3", "4")]
            launch = shell(asking(rig, used), "exit 0")
            await rig.driver.start(launch)
            await ended(rig, launch.task_id)
            await keeper.save()
            # The agent is killed, and the next one knows what it pulled.
            await rig.restart()
            keeper = keeper_of(rig, engine, disk)
            room = host.disk_room(str(engine.home / "data"))
            assert room is not None
            wanted_bytes = room.total_bytes * (100 - FULL_PERCENT) // 100
            filler = engine.home / "data" / "filler"
            with filler.open("wb") as file:  # as others fill it: two images too much
                file.write(b"x" * (room.free_bytes - wanted_bytes + CONTENT_BYTES * 3 // 2))
            assert await keeper.look() == 2
            assert names_here(rig) >= {used, by_hand, unused[2]}
            assert names_here(rig).isdisjoint(unused[:2])
            after = host.disk_room(str(engine.home / "data"))
            assert after is not None and after.free_bytes >= wanted_bytes
            filler.write_bytes(b"")
            assert await keeper.look() == 0
            # What a container had goes once its output has: the disk is full again.
            await rig.driver.remove(launch.task_id, keep_logs=True)
            with filler.open("wb") as file:
                file.write(b"x" * (after.free_bytes - CONTENT_BYTES))
            assert await keeper.look() == 1
            assert used in names_here(rig)
            await rig.driver.remove(launch.task_id, keep_logs=False)
            assert await keeper.look() == 1
            assert {name for name in names_here(rig) if "/app:" in name} == {by_hand}
            # And a task that needs it again gets it again.
            filler.write_bytes(b"")
            again = msgspec.structs.replace(launch, task_id=new_task_id())
            await rig.driver.prepare(again)
            await rig.driver.start(again)
            await ended(rig, again.task_id)
        finally:
            await rig.close()
            disk.close()
