"""Images: there when a task starts."""

from __future__ import annotations

import asyncio
import json
import logging

import docker.auth
import docker.errors
import docker.utils
import requests

from cube.adapters.docker_engine.channel import Channel
from cube.adapters.docker_engine.engine import CONNECT_S, Client, Engine
from cube.adapters.docker_engine.failures import WEATHER, engine_down, pull_failed
from cube.adapters.docker_engine.settings import DockerSettings
from cube.model.errors import DriverFailed

log = logging.getLogger(__name__)

PULLS_MAX = 3  # at once, as the engine's own default for layers
PULL_SILENCE_S = 120.0  # the engine reports progress all the time; so long a silence is a hang
KNOWN_MAX = 1_000  # names remembered as present: saves a request per start
POLICIES = ("missing", "always", "never")


class Images:
    """Of one engine. Owned by one event loop."""

    def __init__(self, engine: Engine, settings: DockerSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._pulls = asyncio.Semaphore(PULLS_MAX)
        self._present: dict[str, None] = {}

    def forget(self, image: str) -> bool:
        """Whether it is here must be asked again. True when it was believed to be."""
        if image not in self._present:
            return False
        del self._present[image]
        return True

    def forget_all(self) -> None:
        self._present.clear()

    async def ensure(self, image: str, policy: str) -> None:
        """It is here, pulled if the policy says so. Raises DriverFailed. Cancelling ends the pull."""
        if policy not in POLICIES:
            raise DriverFailed(
                "bad_option", f"docker.pull is one of {', '.join(POLICIES)}", transient=False
            )
        if policy != "always" and await self._is_present(image):
            return
        if policy == "never":
            raise DriverFailed(
                "image_missing",
                f"image {image} is not on this node and docker.pull is never: "
                f"docker pull {image} there, or set docker.pull to missing",
                transient=False,
            )
        async with self._pulls:
            # Others may have waited for the same one.
            if policy == "always" or not await self._is_present(image):
                await self._pull(image)
        self._remember(image)

    async def _is_present(self, image: str) -> bool:
        if image in self._present:
            return True

        def ask(client: Client) -> bool:
            try:
                client.inspect_image(image)  # type: ignore[no-untyped-call]
            except docker.errors.NotFound:
                return False
            return True

        if not await self._engine.call(ask):
            return False
        self._remember(image)
        return True

    def _remember(self, image: str) -> None:
        if len(self._present) >= KNOWN_MAX:
            self._present.pop(next(iter(self._present)))
        self._present[image] = None

    async def _pull(self, image: str) -> None:
        log.info("docker_pull image=%s", image)
        channel: Channel[None] = Channel()
        await self._engine.spawn("pull", lambda: _pull_blocking(self._engine, image, channel))
        timeout_s = self._settings.pull_timeout_ms / 1000
        try:
            async with asyncio.timeout(timeout_s):
                async for _ in channel.batches():
                    pass
        except TimeoutError:
            raise DriverFailed(
                "pull_timeout", f"pulling {image} took longer than {timeout_s:g} s", transient=True
            ) from None
        finally:
            channel.close()  # the engine gives a pull up when its client is gone


def _pull_blocking(engine: Engine, image: str, channel: Channel[None]) -> None:
    """On a thread: finishes the channel, with a DriverFailed when the image is not here."""
    failure: DriverFailed | None = None
    try:
        with _request(engine.client(), image) as response:
            channel.attach(response)
            if response.status_code >= requests.codes.bad_request:
                failure = pull_failed(image, _error_of(response.content))
            else:
                failure = _read_progress(response, image)
    except WEATHER as error:
        failure = engine_down(f"the Docker Engine went away while pulling {image}: {error}")
    channel.finish(failure)


def _request(client: Client, image: str) -> requests.Response:
    """Not the SDK's pull(): that one waits for ever when the engine hangs."""
    repository, tag = docker.utils.parse_repository_tag(image)
    registry, _ = docker.auth.resolve_repository_name(repository)
    login = docker.auth.get_config_header(client, registry)
    return client.post(
        f"{client.base_url}/v{client.api_version}/images/create",
        params={"fromImage": repository, "tag": tag or "latest"},
        headers={"X-Registry-Auth": login} if login else {},
        stream=True,
        timeout=(CONNECT_S, PULL_SILENCE_S),
    )


def _read_progress(response: requests.Response, image: str) -> DriverFailed | None:
    """To its end: an error may come after the good status, as a line like any other."""
    for line in response.iter_lines(chunk_size=None):
        if b'"error"' in line:
            return pull_failed(image, _error_of(line))
    return None


def _error_of(body: bytes) -> str:
    try:
        said = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    if isinstance(said, dict):
        return str(said.get("error") or said.get("message") or said)
    return str(said)
