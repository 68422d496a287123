"""Images on a real engine, from a registry of our own: tags and digests, policies, logins."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import docker.errors
import msgspec
import pytest

from cube.model.errors import DriverFailed
from cube.model.launch import Launch
from cube.model.spec import DockerOptions
from cube.ports.images import ImageStore
from tests.contract.docker_rig import DockerRig, shell
from tests.contract.driver_cases import ended, new_task_id, read, text
from tests.contract.image_cases import ImageContract
from tests.e2e.registry import Registry, registry

pytestmark = pytest.mark.docker


@pytest.fixture
def store() -> Iterator[Registry]:
    with registry() as served:
        yield served


@pytest.fixture
async def rig(docker_host: str, store: Registry) -> AsyncIterator[DockerRig]:
    rig = DockerRig(docker_host)
    await rig.open()
    yield rig
    for container in rig.containers():
        with contextlib.suppress(docker.errors.NotFound):
            rig.client.remove_container(container["Id"], force=True)
    remove_images(rig, store)
    await rig.close()


def remove_images(rig: DockerRig, store: Registry) -> None:
    """As another node's engine is: it has none of them."""
    for image in rig.client.images():
        names = [*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())]
        if any(name.startswith(store.address) for name in names):
            rig.client.remove_image(image["Id"], force=True)


class RegistryRig(DockerRig):
    """tests.contract.image_cases.ImageRig."""

    def __init__(self, host: str, store: Registry) -> None:
        super().__init__(host)
        self.store = store
        self.made: list[str] = []

    def publish(self, name: str, tag: str, content: str) -> str:
        self.store.push(name, tag, content)
        return f"{self.store.address}/{name}:{tag}"

    def pull_by_hand(self, image: str) -> None:
        self.client.pull(image)

    def tag_by_hand(self, image: str, other: str) -> str:
        name = f"{self.store.address}/{other}"
        self.client.tag(image, name, "latest")
        return f"{name}:latest"

    def build_by_hand(self, image: str) -> None:
        container = self.client.create_container(image, ["true"])
        self.client.commit(container["Id"], f"{self.store.address}/built", "1")
        self.client.remove_container(container["Id"])

    def run_by_hand(self, image: str) -> str:
        name = f"by-hand-{secrets.token_hex(4)}"
        self.made.append(self.client.create_container(image, ["true"], name=name)["Id"])
        return name


@pytest.fixture
async def image_rig(docker_host: str, store: Registry) -> AsyncIterator[RegistryRig]:
    rig = RegistryRig(docker_host, store)
    await rig.open()
    yield rig
    for container_id in [*rig.made, *(container["Id"] for container in rig.containers())]:
        with contextlib.suppress(docker.errors.NotFound):
            rig.client.remove_container(container_id, force=True)
    remove_images(rig, store)
    await rig.close()


class TestImages(ImageContract):
    """All cases, with a registry of our own."""


def asking(rig: DockerRig, image: str, **changes: Any) -> Launch:
    docker_options = DockerOptions(pull=changes.pop("pull", "missing"))
    launch = shell(rig.launch(new_task_id()), "cat /version")
    return msgspec.structs.replace(launch, image=image, docker=docker_options, **changes)


async def said(rig: DockerRig, launch: Launch) -> tuple[str, str]:
    """The digest that was prepared, and what the image says it is."""
    digest = await rig.driver.prepare(launch)
    await rig.driver.start(msgspec.structs.replace(launch, image_digest=digest))
    await ended(rig, launch.task_id)
    return digest, text(await read(rig, launch.task_id))


async def test_the_tag_is_followed_or_not_as_the_policy_says(
    rig: DockerRig, store: Registry
) -> None:
    image = f"{store.address}/app:1"
    first = store.push("app", "1", "one")
    with pytest.raises(DriverFailed, match=r"pull is never") as failed:
        await rig.driver.prepare(asking(rig, image, pull="never"))
    assert (failed.value.code, failed.value.transient) == ("image_missing", False)
    assert store.pulled == []
    assert await said(rig, asking(rig, image)) == (first, "one")
    second = store.push("app", "1", "two")
    asked = len(store.pulled)
    for policy in ("missing", "never"):
        assert await said(rig, asking(rig, image, pull=policy)) == (first, "one")
    assert len(store.pulled) == asked, "what is here is not asked for"
    assert await said(rig, asking(rig, image, pull="always")) == (second, "two")
    assert await said(rig, asking(rig, image)) == (second, "two")


async def test_what_a_version_ran_first_is_run_whatever_its_tag_means_now(
    rig: DockerRig, store: Registry
) -> None:
    image = f"{store.address}/app:1"
    first = store.push("app", "1", "one")
    store.push("app", "1", "two")
    pinned = {"image_digest": first, "pull": "always"}
    assert await said(rig, asking(rig, image, **pinned)) == (first, "one")
    asked = len(store.pulled)
    assert await said(rig, asking(rig, image, **pinned)) == (first, "one")
    assert len(store.pulled) == asked, "a digest has one meaning"
    assert (await said(rig, asking(rig, image)))[1] == "two"
    remove_images(rig, store)
    await rig.restart()  # it no longer believes that the image is here
    with pytest.raises(DriverFailed, match=first):
        await rig.driver.prepare(asking(rig, image, image_digest=first, pull="never"))


async def test_a_digest_in_the_reference_counts(rig: DockerRig, store: Registry) -> None:
    first = store.push("app", "1", "one")
    store.push("app", "1", "two")
    for image in (f"{store.address}/app@{first}", f"{store.address}/app:1@{first}"):
        assert await said(rig, asking(rig, image)) == (first, "one")
    gone = "sha256:" + 64 * "0"
    with pytest.raises(DriverFailed, match=gone) as failed:
        await rig.driver.prepare(asking(rig, f"{store.address}/app@{gone}"))
    assert failed.value.code == "image_missing"


async def test_an_image_that_no_registry_knows_has_no_digest(rig: DockerRig) -> None:
    assert await rig.driver.prepare(rig.launch(new_task_id())) == ""


async def test_a_registry_that_wants_a_login_gets_the_groups(
    rig: DockerRig, store: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    password = secrets.token_hex(8)
    store.login = f"reader:{password}"
    image = f"{store.address}/app:1"
    first = store.push("app", "1", "one")
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.prepare(asking(rig, image))
    assert (failed.value.code, failed.value.transient) == ("image_denied", False)
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.prepare(asking(rig, image, login="reader:wrong"))
    assert failed.value.code == "image_denied"
    assert await said(rig, asking(rig, image, login=f"reader:{password}\n")) == (first, "one")
    remove_images(rig, store)
    await rig.restart()  # it no longer believes that the image is here
    encoded = base64.b64encode(store.login.encode()).decode()
    config = json.dumps({"auths": {store.address: {"auth": encoded}}})
    launch = asking(rig, image, login=config)
    assert await said(rig, launch) == (first, "one")
    told = caplog.text + json.dumps(rig.inspected(launch.task_id))
    assert password not in told
    assert encoded not in told


@pytest.mark.parametrize("login", ["nonsense", "user:", "{", '{"auths": 1}', '{"auths": {}}'])
async def test_a_secret_that_is_no_login_says_what_one_is(
    rig: DockerRig, store: Registry, login: str
) -> None:
    with pytest.raises(DriverFailed, match="USER:PASSWORD") as failed:
        await rig.driver.prepare(asking(rig, f"{store.address}/app:1", login=login))
    assert (failed.value.code, failed.value.transient) == ("login_invalid", False)


async def test_a_registry_that_wants_a_login_gets_the_hosts(
    rig: DockerRig, store: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.login = "host:password"
    store.push("app", "1", "one")
    image = f"{store.address}/app:1"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.prepare(asking(rig, image))
    assert failed.value.code == "image_denied"
    encoded = base64.b64encode(store.login.encode()).decode()
    config = {"auths": {store.address: {"auth": encoded}}}
    (tmp_path / "config.json").write_text(json.dumps(config))  # as docker login does, meanwhile
    assert (await said(rig, asking(rig, image)))[1] == "one"


async def test_the_hosts_credential_helper_is_asked_and_its_failure_named(
    rig: DockerRig, store: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.login = "helped:password"
    store.push("app", "1", "one")
    image = f"{store.address}/app:1"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "cube-test"}))
    with pytest.raises(DriverFailed, match="docker login") as failed:
        await rig.driver.prepare(asking(rig, image))
    assert failed.value.code == "login_failed"
    helper = tmp_path / "docker-credential-cube-test"
    answer = {"ServerURL": store.address, "Username": "helped", "Secret": "password"}
    helper.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{json.dumps(answer)}'\n")
    helper.chmod(0o755)
    assert (await said(rig, asking(rig, image)))[1] == "one"


async def test_who_has_an_image_is_told_for_people(image_rig: RegistryRig, store: Registry) -> None:
    driver = image_rig.driver
    assert isinstance(driver, ImageStore)
    launch = asking(image_rig, image_rig.publish("app", "1", "one"))
    await said(image_rig, launch)

    async def user() -> str:
        [found] = [one for one in await driver.images() if launch.image in one.names]
        [only] = found.users
        return only

    assert await user() == f"cube-{launch.task_id}-1 ({launch.task_name})"
    await image_rig.driver.remove(launch.task_id, keep_logs=True)
    assert await user() == f"cube-logs-{launch.task_id}-1 (output of {launch.task_name})"
