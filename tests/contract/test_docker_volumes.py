"""Volumes on an engine: what this cluster made is listed and removed, what others made never is."""

from __future__ import annotations

import contextlib

import docker.errors
import msgspec
import pytest

from cube.adapters.docker_driver import DockerSettings
from cube.model.errors import DriverFailed
from cube.model.spec import MountSpec, MountType
from cube.ports.volumes import VolumeStore
from tests.contract.docker_rig import DockerRig, run, shell
from tests.contract.driver_cases import new_task_id

pytestmark = pytest.mark.docker


async def test_a_volume_that_others_made_is_theirs(rig: DockerRig) -> None:
    """It may be a database's, or bound to a directory of the host."""
    foreign = f"test-{new_task_id()}"
    launch = msgspec.structs.replace(
        shell(rig.launch(new_task_id()), "ls /data"),
        mounts=(MountSpec(MountType.VOLUME, "/data", source=foreign),),
    )
    rig.client.create_volume(foreign, "local", {"type": "none", "o": "bind", "device": "/etc"})
    try:
        with pytest.raises(DriverFailed, match=r'allow = \["volumes"\]') as caught:
            await rig.driver.prepare(launch)
        assert (caught.value.code, caught.value.transient) == ("not_allowed", False)
        allowing = DockerRig(rig.host, DockerSettings(host=rig.host, allow=("volumes",)))
        await allowing.open()
        try:
            await allowing.driver.prepare(launch)
        finally:
            await allowing.close()
    finally:
        rig.client.remove_volume(foreign)


async def test_a_volume_lives_and_ends_by_request_only(rig: DockerRig) -> None:
    store = rig.driver
    assert isinstance(store, VolumeStore)
    name, foreign = f"test-{new_task_id()}", f"test-{new_task_id()}"
    launch = msgspec.structs.replace(
        shell(rig.launch(new_task_id()), "echo kept > /data/file"),
        mounts=(MountSpec(MountType.VOLUME, "/data", source=name),),
    )
    rig.client.create_volume(foreign)
    try:
        await run(rig, launch)
        assert await store.volume_names() == [name]
        with pytest.raises(DriverFailed) as caught:
            await store.remove_volume(name)
        assert caught.value.code == "volume_in_use"
        await rig.driver.stop(launch.task_id, launch.attempt, "SIGKILL", 0)
        await rig.driver.remove(launch.task_id, keep_logs=False)
        assert await store.volume_names() == [name], "it outlives its tasks"
        assert await store.remove_volume(foreign) is False, "what others made is not touched"
        assert rig.client.inspect_volume(foreign)
        assert await store.remove_volume(name) is True
        assert await store.remove_volume(name) is False
        assert await store.volume_names() == []
    finally:
        for one in (name, foreign):
            with contextlib.suppress(docker.errors.APIError):
                rig.client.remove_volume(one)
