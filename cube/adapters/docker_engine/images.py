"""Images: there when a task starts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import docker.auth
import docker.errors
import docker.utils
import requests

from cube.adapters.docker_engine import image_store
from cube.adapters.docker_engine.channel import Channel
from cube.adapters.docker_engine.engine import CONNECT_S, Client, Engine
from cube.adapters.docker_engine.failures import WEATHER, engine_down, pull_failed
from cube.adapters.docker_engine.logins import header_for
from cube.adapters.docker_engine.settings import DockerSettings
from cube.model.errors import DriverFailed
from cube.model.images import ImagePulled, canonical, digest_in, is_digest, pinned
from cube.model.launch import Launch

log = logging.getLogger(__name__)

PULLS_MAX = 3  # at once, as the engine's own default for layers
PULL_SILENCE_S = 120.0  # the engine reports progress all the time; so long a silence is a hang
KNOWN_MAX = 1_000  # names remembered as present: saves a request per start
POLICIES = ("missing", "always", "never")
DIGEST_LINE = b'"status":"Digest: '  # among the progress of a pull


class Images:
    """Of one engine. Owned by one event loop."""

    def __init__(self, engine: Engine, settings: DockerSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._pulls = asyncio.Semaphore(PULLS_MAX)
        self._present: dict[str, str] = {}  # the digest of each reference that is here
        self.on_pulled: Callable[[ImagePulled], None] = lambda _: None

    def forget(self, launch: Launch) -> bool:
        """Whether it is here must be asked again. True when it was believed to be."""
        return self._present.pop(pinned(launch.image, launch.image_digest), None) is not None

    def forget_all(self) -> None:
        self._present.clear()

    async def ensure(self, launch: Launch) -> str:
        """The launch's image is here, pulled if its policy says so. Returns its digest, empty when no
        registry has given it one. Raises DriverFailed. Cancelling ends the pull."""
        image, policy = launch.image, launch.docker.pull
        if policy not in POLICIES:
            raise DriverFailed(
                "bad_option", f"docker.pull is one of {', '.join(POLICIES)}", transient=False
            )
        digest = launch.image_digest or digest_in(image)
        reference = pinned(image, digest)
        # A digest always means the same image: with one, "always" has nothing to ask the registry.
        takes_what_is_here = policy != "always" or bool(digest)
        if takes_what_is_here and (found := await self._find(reference)) is not None:
            return digest or found
        if policy == "never":
            raise DriverFailed(
                "image_missing",
                f"image {reference} is not on this node and docker.pull is never: "
                f"docker pull {reference} there, or set docker.pull to missing",
                transient=False,
            )
        async with self._pulls:
            # Others may have waited for the same one.
            if takes_what_is_here and (found := await self._find(reference)) is not None:
                return digest or found
            digest = await self._pull_and_tell(image, digest, launch.login)
        if reference == image:
            self._remember(image, digest)
        return digest

    async def _find(self, reference: str) -> str | None:
        """Its digest when it is here."""
        known = self._present.get(reference)
        if known is not None:
            return known

        def ask(client: Client) -> str | None:
            try:
                inspected: Any = client.inspect_image(reference)  # type: ignore[no-untyped-call]
            except docker.errors.NotFound:
                return None
            return _digest_among(inspected.get("RepoDigests") or (), reference)

        found = await self._engine.call(ask)
        if found is not None:
            self._remember(reference, found)
        return found

    def _remember(self, reference: str, digest: str) -> None:
        if len(self._present) >= KNOWN_MAX:
            self._present.pop(next(iter(self._present)))
        self._present[reference] = digest

    async def _pull_and_tell(self, image: str, digest: str, login: str) -> str:
        """As _pull; and whether the image got its name by that is known from what was here before."""
        wanted = canonical(pinned(image.partition("@")[0], digest))
        ids, names = await self._engine.call(image_store.ids_by_name)
        pulled = await self._pull(image, digest, login)
        with contextlib.suppress(DriverFailed):  # it stays, then, until somebody removes it
            _, names_now = await self._engine.call(image_store.ids_by_name)
            image_id = names_now.get(wanted)
            if image_id is not None and names.get(wanted) != image_id:
                self.on_pulled(ImagePulled(id=image_id, name=wanted, was_here=image_id in ids))
        return pulled

    async def _pull(self, image: str, digest: str, login: str) -> str:
        """Of what was pulled: the digest that was asked for, or the tag's."""
        log.info("docker_pull image=%s digest=%s", image, digest)
        channel: Channel[str] = Channel()
        pull = partial(_pull_blocking, self._engine, image, digest, login, channel)
        await self._engine.spawn("pull", pull)
        timeout_s = self._settings.pull_timeout_ms / 1000
        try:
            async with asyncio.timeout(timeout_s):
                async for batch in channel.batches():
                    digest = digest or batch[-1]
        except TimeoutError:
            raise DriverFailed(
                "pull_timeout", f"pulling {image} took longer than {timeout_s:g} s", transient=True
            ) from None
        finally:
            channel.close()  # the engine gives a pull up when its client is gone
        return digest


def _digest_among(repo_digests: Iterable[str], reference: str) -> str:
    """What the reference's own repository calls it."""
    repository = _repository(reference.partition("@")[0])
    mine = [
        digest
        for name, _, digest in (one.partition("@") for one in sorted(repo_digests))
        if is_digest(digest) and _repository(name) == repository
    ]
    return mine[0] if mine else ""


def _repository(name: str) -> tuple[str, str]:
    """Registry and path, the same for all ways to write it."""
    registry, path = docker.auth.resolve_repository_name(docker.utils.parse_repository_tag(name)[0])
    return registry, path.removeprefix("library/") if registry == docker.auth.INDEX_NAME else path


def _pull_blocking(
    engine: Engine, image: str, digest: str, login: str, channel: Channel[str]
) -> None:
    """On a thread: puts the image's digest into the channel and finishes it, with a DriverFailed when
    the image is not here."""
    failure: DriverFailed | None = pull_failed(
        image, "it broke off"
    )  # should this thread die of a bug
    try:
        with _request(engine.client(), image, digest, login) as response:
            channel.attach(response)
            if response.status_code >= requests.codes.bad_request:
                failure = pull_failed(image, _error_of(response.content))
            else:
                failure = _read_progress(response, image, channel)
    except DriverFailed as error:
        failure = error
    except WEATHER as error:
        failure = engine_down(f"the Docker Engine went away while pulling {image}: {error}")
    finally:
        channel.finish(failure)


def _request(client: Client, image: str, digest: str, login: str) -> requests.Response:
    """Not the SDK's pull(): that one waits for ever when the engine hangs."""
    repository, tag = docker.utils.parse_repository_tag(image.partition("@")[0])
    registry, _ = docker.auth.resolve_repository_name(repository)
    return client.post(
        f"{client.base_url}/v{client.api_version}/images/create",
        params={"fromImage": repository, "tag": digest or tag or "latest"},
        headers=header_for(registry, login),
        stream=True,
        timeout=(CONNECT_S, PULL_SILENCE_S),
    )


def _read_progress(
    response: requests.Response, image: str, channel: Channel[str]
) -> DriverFailed | None:
    """To its end: an error may come after the good status, as a line like any other."""
    for line in response.iter_lines(chunk_size=None):
        if b'"error"' in line:
            return pull_failed(image, _error_of(line))
        if DIGEST_LINE in line:
            digest = line.partition(DIGEST_LINE)[2].partition(b'"')[0].decode(errors="replace")
            if is_digest(digest):
                channel.put(digest, len(digest))
    return None


def _error_of(body: bytes) -> str:
    try:
        said = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    if isinstance(said, dict):
        return str(said.get("error") or said.get("message") or said)
    return str(said)
