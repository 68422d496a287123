"""What is true of every driver that has images: cube.ports.images.ImageStore, sentence by sentence."""

from __future__ import annotations

from typing import Protocol

import msgspec
import pytest

from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.images import ImagePulled, ImageSeen, canonical
from cube.model.launch import Launch
from cube.model.spec import DockerOptions
from cube.ports.driver import Driver
from cube.ports.images import ImageStore
from tests.contract.driver_cases import new_task_id


class ImageRig(Protocol):
    """A host whose engine can pull from a registry of the test's own."""

    driver: Driver

    def launch(self, task_id: TaskId, attempt: int = 1) -> Launch: ...

    def publish(self, name: str, tag: str, content: str) -> str:
        """The registry has such an image, under that tag from now on. How a job names it."""
        ...

    def pull_by_hand(self, image: str) -> None: ...

    def tag_by_hand(self, image: str, other: str) -> str:
        """It has this name too. Returns it as the engine writes it."""
        ...

    def run_by_hand(self, image: str) -> str:
        """Somebody's own container has it, which does not run; its name."""
        ...

    def build_by_hand(self, image: str) -> None:
        """Somebody's own image is built on it, and nothing else is left of that."""
        ...


class ImageContract:
    """Test classes inherit it and provide `image_rig`."""

    async def test_a_pull_is_told_once_and_the_image_is_found(self, image_rig: ImageRig) -> None:
        store, told = listening(image_rig)
        image = image_rig.publish("app", "1", "one")
        assert await seen(store, image) is None
        await image_rig.driver.prepare(asking(image_rig, image))
        await image_rig.driver.prepare(asking(image_rig, image))
        [pulled] = told
        found = await seen(store, image)
        assert found is not None
        assert pulled == ImagePulled(id=found.id, name=canonical(image), was_here=False)
        assert (found.users, found.is_base, found.size_bytes > 0) == ((), False, True)
        assert [one.id for one in await store.images()] == sorted(
            one.id for one in await store.images()
        )

    async def test_what_somebody_else_brought_is_not_told(self, image_rig: ImageRig) -> None:
        store, told = listening(image_rig)
        image = image_rig.publish("app", "1", "one")
        image_rig.pull_by_hand(image)
        for pull in ("missing", "always", "never"):
            await image_rig.driver.prepare(asking(image_rig, image, pull))
        assert told == []
        found = await seen(store, image)
        assert found is not None
        # What the tag means by now is a pull's doing, and the image of before is whose it was.
        image_rig.publish("app", "1", "two")
        await image_rig.driver.prepare(asking(image_rig, image, "always"))
        [pulled] = told
        assert (pulled.id != found.id, pulled.was_here) == (True, False)
        # A second name of an image that was here by another.
        other = image_rig.publish("app", "2", "one")
        await image_rig.driver.prepare(asking(image_rig, other))
        assert told[1:] == [ImagePulled(id=found.id, name=canonical(other), was_here=True)]

    async def test_a_pull_by_digest_is_told_by_it(self, image_rig: ImageRig) -> None:
        store, told = listening(image_rig)
        image = image_rig.publish("app", "1", "one")
        digest = await image_rig.driver.prepare(asking(image_rig, image))
        await removed(store, image)
        told.clear()
        pinned = msgspec.structs.replace(asking(image_rig, image), image_digest=digest)
        assert await image_rig.driver.prepare(pinned) == digest
        [pulled] = told
        assert pulled.name.endswith(f"@{digest}")
        found = next(one for one in await store.images() if one.id == pulled.id)
        assert pulled.name in {canonical(name) for name in found.names}
        assert await store.remove_image(found.id, found.names) is True
        assert pulled.id not in {one.id for one in await store.images()}

    async def test_an_image_goes_and_comes_back(self, image_rig: ImageRig) -> None:
        store, told = listening(image_rig)
        image = image_rig.publish("app", "1", "one")
        for _ in range(2):
            await image_rig.driver.prepare(asking(image_rig, image))
            await removed(store, image)
            assert await seen(store, image) is None
        assert len(told) == 2
        assert await store.remove_image(told[0].id, [image]) is False
        assert await store.remove_image("sha256:" + 64 * "0", []) is False

    async def test_all_its_names_go_with_it(self, image_rig: ImageRig) -> None:
        store, _ = listening(image_rig)
        images = [image_rig.publish("app", tag, "one") for tag in ("1", "2")]
        for image in images:
            await image_rig.driver.prepare(asking(image_rig, image))
        await removed(store, images[0])
        for image in images:
            assert await seen(store, image) is None

    async def test_what_a_task_has_stays_until_its_output_goes(self, image_rig: ImageRig) -> None:
        store, _ = listening(image_rig)
        driver = image_rig.driver
        launch = asking(image_rig, image_rig.publish("app", "1", "one"))
        await driver.prepare(launch)
        await driver.start(launch)
        await assert_in_use(store, launch.image)
        await driver.stop(launch.task_id, 1, "SIGKILL", 0)
        await assert_in_use(store, launch.image)
        await driver.remove(launch.task_id, keep_logs=True)
        await assert_in_use(store, launch.image)
        await driver.remove(launch.task_id, keep_logs=False)
        await removed(store, launch.image)
        assert await seen(store, launch.image) is None

    async def test_what_somebodys_container_has_stays(self, image_rig: ImageRig) -> None:
        store, _ = listening(image_rig)
        image = image_rig.publish("app", "1", "one")
        await image_rig.driver.prepare(asking(image_rig, image))
        name = image_rig.run_by_hand(image)
        found = await assert_in_use(store, image)
        assert found.users == (name,)

    async def test_what_is_in_use_keeps_all_its_names(self, image_rig: ImageRig) -> None:
        store, _ = listening(image_rig)
        images = [image_rig.publish("app", tag, "one") for tag in ("1", "2")]
        for image in images:
            await image_rig.driver.prepare(asking(image_rig, image))
        image_rig.run_by_hand(images[1])
        before = await assert_in_use(store, images[1])
        assert await seen(store, images[0]) == before

    async def test_what_another_image_is_built_on_stays(self, image_rig: ImageRig) -> None:
        store, _ = listening(image_rig)
        image = image_rig.publish("app", "1", "one")
        await image_rig.driver.prepare(asking(image_rig, image))
        image_rig.build_by_hand(image)
        before = await seen(store, image)
        assert before is not None
        assert (before.users, before.is_base) == ((), True)
        with pytest.raises(DriverFailed) as failed:
            await store.remove_image(before.id, before.names)
        assert failed.value.code == "image_in_use"
        assert await seen(store, image) == before

    async def test_a_name_that_somebody_gave_it_keeps_it(self, image_rig: ImageRig) -> None:
        store, _ = listening(image_rig)
        image = image_rig.publish("app", "1", "one")
        await image_rig.driver.prepare(asking(image_rig, image))
        before = await seen(store, image)
        assert before is not None
        other = image_rig.tag_by_hand(image, "mine-to-keep")
        with pytest.raises(DriverFailed) as failed:
            await store.remove_image(before.id, before.names)
        assert failed.value.code == "image_renamed"
        after = await seen(store, image)
        assert after is not None
        assert set(after.names) == {*before.names, other}


def listening(rig: ImageRig) -> tuple[ImageStore, list[ImagePulled]]:
    told: list[ImagePulled] = []
    store = rig.driver
    assert isinstance(store, ImageStore)
    store.tell_pulls(told.append)
    return store, told


class Launcher(Protocol):
    def launch(self, task_id: TaskId, attempt: int = 1) -> Launch: ...


def asking(rig: Launcher, image: str, pull: str = "missing") -> Launch:
    launch = rig.launch(new_task_id())
    return msgspec.structs.replace(launch, image=image, docker=DockerOptions(pull=pull))


async def seen(store: ImageStore, image: str) -> ImageSeen | None:
    wanted = canonical(image)
    for one in await store.images():
        if wanted in {canonical(name) for name in one.names}:
            return one
    return None


async def removed(store: ImageStore, image: str) -> None:
    found = await seen(store, image)
    assert found is not None
    assert await store.remove_image(found.id, found.names) is True


async def assert_in_use(store: ImageStore, image: str) -> ImageSeen:
    found = await seen(store, image)
    assert found is not None
    assert found.users != ()
    with pytest.raises(DriverFailed) as failed:
        await store.remove_image(found.id, found.names)
    assert (failed.value.code, failed.value.transient) == ("image_in_use", True)
    assert await seen(store, image) is not None
    return found
