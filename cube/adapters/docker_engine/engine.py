"""The way to one Docker Engine: threads, deadlines, and whether it is well.

Everything that blocks runs on threads of our own, through the docker SDK's low-level client. A call
that the engine does not answer ends by its socket's timeout, so no thread is stuck for longer; and
once one was, every further call first asks, by a cheap ping that all share, whether it is back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import docker
import docker.errors
import docker.utils

from cube.adapters.docker_engine.failures import WEATHER, engine_down, refused, shorten
from cube.adapters.docker_engine.settings import DockerSettings
from cube.adapters.docker_engine.transport import connect
from cube.model.errors import DriverFailed
from cube.model.launch import ROOT_FACT

log = logging.getLogger(__name__)

T = TypeVar("T")

STREAMS_MAX = 64  # logs, execs and pulls at once: each has a thread
STREAM_WAIT_S = 10.0  # for one of them to end
CONNECT_S = 5.0  # to the socket: what listens accepts at once
PING_REUSE_S = 1.0  # a failed ping answers for all who ask within this time

Client = docker.APIClient


class Engine:
    """Owned by one event loop. Made when the loop runs."""

    def __init__(self, settings: DockerSettings) -> None:
        self._settings = settings
        if settings.host is None:
            self.where = dict(docker.utils.kwargs_from_env())
        else:
            self.where = {"base_url": settings.host}
        self.address = str(self.where.get("base_url") or "the default socket")
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(settings.pool_size, "docker")
        self._prober = ThreadPoolExecutor(1, "docker-ping")
        self._slots = asyncio.Semaphore(settings.pool_size)
        self._stream_slots = asyncio.Semaphore(STREAMS_MAX)
        self._client: Client | None = None
        self._client_lock = threading.Lock()
        self._facts: dict[str, str] = {}  # of the engine behind _client
        # Why it may not be well, or empty. Written by any thread; a stale read costs one ping.
        self._down = "it was not asked yet"
        self._probe: asyncio.Task[str] | None = None
        self._probed_at = 0.0
        self._is_closed = False
        # Ids of the commands beside tasks that this process looks after. What else has an agent's mark
        # was left by one that was killed.
        self.commands: set[str] = set()

    async def call(self, what: Callable[[Client], T], timeout_ms: int = 0) -> T:
        """What `what` returns, run on a thread of the pool. Raises only DriverFailed.

        `timeout_ms` is for all requests of `what` together (0: the settings' call timeout); it does
        not count the wait for a free thread, which ends because every other call does.
        """
        await self.check()
        await self._slots.acquire()
        try:
            await self.check()  # it may have hung while we waited
            future = self._pool.submit(self._run, what)
        except BaseException:
            self._slots.release()
            raise
        # Held until the thread is free, whoever stops waiting: a stuck thread is not given out.
        future.add_done_callback(lambda _: soon(self._loop, self._slots.release))
        timeout_s = (timeout_ms or self._settings.call_timeout_ms) / 1000
        try:
            # A little more than the socket's own timeout, which says better what happened.
            async with asyncio.timeout(timeout_s + 1):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.done() and not future.cancelled():  # it was this loop that was late
                return future.result()
            raise self._failed(None, f"no answer within {timeout_s:g} s") from None

    async def check(self) -> None:
        """Returns at once when the last call was answered, else asks. Raises DriverFailed."""
        if self._is_closed:
            raise engine_down("the driver is closed")
        if not self._down:
            return
        is_fresh = self._loop.time() - self._probed_at < PING_REUSE_S
        reason = self._down if is_fresh else await self.ping()
        if reason:
            raise engine_down(reason)

    async def ping(self) -> str:
        """Empty when the engine answers, else why not. Never raises; bounded by the ping timeout."""
        if self._is_closed:
            return "the driver is closed"
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ping(), name="docker ping")
        return await asyncio.shield(self._probe)

    async def facts(self) -> dict[str, str]:
        """Of the engine that answers now, for constraints. Asked once per connection."""
        if not self._facts:
            self._facts = await self.call(_read_facts)
        return self._facts

    async def spawn(self, name: str, body: Callable[[], None]) -> None:
        """`body` runs on a thread of its own, one of STREAMS_MAX. It must not raise.

        Raises DriverFailed "too_many_streams" when none ended in time."""
        await self.check()
        try:
            async with asyncio.timeout(STREAM_WAIT_S):
                await self._stream_slots.acquire()
        except TimeoutError:
            raise DriverFailed(
                "too_many_streams",
                f"{STREAMS_MAX} logs, commands and pulls are under way on this node",
                transient=True,
            ) from None

        def run() -> None:
            try:
                body()
            finally:
                soon(self._loop, self._stream_slots.release)

        threading.Thread(target=run, name=f"docker-{name}", daemon=True).start()

    def client(self) -> Client:
        """On any thread. Blocks for a few ping timeouts at most. Raises what is in WEATHER."""
        with self._client_lock:
            if self._client is None:
                ping_s = self._settings.ping_timeout_ms / 1000
                client = connect(self.where, ping_s)
                client.timeout = math.ceil(self._settings.call_timeout_ms / 1000)
                self._client = client
            return self._client

    def lose(self, client: Client | None) -> None:
        """Whoever answers next may be another engine: its API version is asked for anew."""
        with self._client_lock:
            if client is None or self._client is not client:
                return
            self._client = None
            self._facts = {}
        client.close()

    async def close(self) -> None:
        """No call is taken any more. Those under way end by themselves."""
        self._is_closed = True
        if self._probe is not None:
            await asyncio.wait({self._probe})
        self._pool.shutdown(wait=False)
        self._prober.shutdown(wait=False)
        self.lose(self._client)

    # -- on threads -------------------------------------------------------------------------------

    def _run(self, what: Callable[[Client], T]) -> T:
        client: Client | None = None
        try:
            client = self.client()
            result = what(client)
        except docker.errors.APIError as error:
            failure = refused(error)
            if failure.code == "engine_down":
                self.lose(client)
            raise failure from error
        except WEATHER as error:
            raise self._failed(client, describe(error)) from error
        self._down = ""
        return result

    def _failed(self, client: Client | None, reason: str) -> DriverFailed:
        reason = f"the Docker Engine at {self.address}: {reason}"
        if not self._down and not self._is_closed:
            log.warning("docker_engine_down reason=%r", reason)
        self._down = reason
        self.lose(client)
        return engine_down(reason)

    def _ping_blocking(self) -> str:
        """Empty, or why not."""
        client: Client | None = None
        try:
            client = self.client()
            answer = client.get(
                f"{client.base_url}/_ping", timeout=self._settings.ping_timeout_ms / 1000
            )
            answer.raise_for_status()
        except WEATHER as error:
            self.lose(client)
            return describe(error)
        return ""

    async def _ping(self) -> str:
        future = self._prober.submit(self._ping_blocking)
        timeout_s = self._settings.ping_timeout_ms / 1000
        try:
            async with asyncio.timeout(2 * timeout_s + 1):  # connecting is a request of its own
                reason = await asyncio.wrap_future(future)
        except TimeoutError:
            is_done = future.done() and not future.cancelled()  # it was this loop that was late
            reason = future.result() if is_done else "it does not answer"
        self._probed_at = self._loop.time()
        if reason:
            self._failed(None, reason)
        elif self._down:
            log.info("docker_engine_up address=%s", self.address)
            self._down = ""
        return self._down


def describe(error: BaseException) -> str:
    """Why there was no answer, for people. The libraries nest the cause in prose and in tuples."""
    text = str(error)
    if "timed out" in text.lower():
        return "it does not answer (timed out)"
    for phrase, meaning in (
        ("FileNotFoundError", "there is no such socket: is Docker installed and running?"),
        ("No such file or directory", "there is no such socket: is Docker installed and running?"),
        ("PermissionError", "no permission: the agent's user must be in the group docker"),
        ("Permission denied", "no permission: the agent's user must be in the group docker"),
        ("Connection refused", "nobody listens there: it was stopped, or has died"),
        ("ConnectionRefusedError", "nobody listens there: it was stopped, or has died"),
    ):
        if phrase in text:
            return meaning
    return shorten(text) or type(error).__name__


def is_silence(reason: str) -> bool:
    """Of describe(): the engine is there and says nothing."""
    return "timed out" in reason


def soon(loop: asyncio.AbstractEventLoop, act: Callable[..., object], *args: object) -> None:
    """From any thread, and too late as well: a loop that is closed needs nothing any more."""
    try:
        loop.call_soon_threadsafe(act, *args)
    except RuntimeError:
        log.debug("docker_thread_outlived_loop")


def _read_facts(client: Client) -> dict[str, str]:
    info = client.info()
    return {
        "version": str(info.get("ServerVersion", "")),
        "api_version": str(client.api_version),
        "cgroup": str(info.get("CgroupVersion", "")),
        "storage": str(info.get("Driver", "")),
        "os": str(info.get("OSType", "")),
        "arch": str(info.get("Architecture", "")),
        "log_driver": str(info.get("LoggingDriver", "")),
        ROOT_FACT: str(info.get("DockerRootDir", "")),
        "runtimes": ",".join(sorted(info.get("Runtimes") or {})),
    }
