"""cube.ports.driver.Driver on a Docker Engine. The parts are in docker_engine/; see its DESIGN.md.

This file is what an event loop sees: order, locks, and who is told what. It blocks nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence, Set
from functools import partial

import msgspec

from cube.adapters.docker_engine import containers, image_store, volumes
from cube.adapters.docker_engine.engine import Client, Engine
from cube.adapters.docker_engine.events import EventStream
from cube.adapters.docker_engine.exec import Prepared, execute, kill_exec, left_over
from cube.adapters.docker_engine.failures import engine_down
from cube.adapters.docker_engine.file_mounts import with_files
from cube.adapters.docker_engine.files import open_files
from cube.adapters.docker_engine.images import Images
from cube.adapters.docker_engine.marks import Found, Marks, gone
from cube.adapters.docker_engine.output import Wanted, read_output
from cube.adapters.docker_engine.reaping import reap
from cube.adapters.docker_engine.request import check_allowed, container_config
from cube.adapters.docker_engine.session import open_session
from cube.adapters.docker_engine.settings import DockerSettings
from cube.adapters.docker_engine.usage import usage
from cube.adapters.host import boot_id
from cube.adapters.task_files import TaskFiles
from cube.model import allowed
from cube.model.errors import DriverFailed
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.images import ImagePulled, ImageSeen
from cube.model.launch import (
    DriverInfo,
    ExecResult,
    Launch,
    LogChunk,
    Observation,
    RunState,
    TaskStats,
)
from cube.model.sessions import ExecOrder
from cube.model.spec import MountType
from cube.ports.clock import Clock
from cube.ports.session import Session

__all__ = ["DockerDriver", "DockerSettings"]

log = logging.getLogger(__name__)

PENDING_MAX = 1_000  # events not looked at yet; above it everything is looked at once instead
LOOKS_AT_ONCE = 4  # of recover(): half of the engine's threads stay for others
RELOOK_S = 1.0  # after a look that failed
STOP_LOOK_MS = 1_000  # how often stop() looks by itself, should the event be lost
ENGINE_KILLS = (128 + signal.SIGTERM, 128 + signal.SIGKILL)
ENGINE_STOP_MS = 20_000  # an engine that stops waits 15 s for its containers
ENGINE_SLACK_MS = 2_000  # its clock and ours may be two hosts'
IMAGES_MS = 20_000  # a person waits for it, perhaps through another node that waits for 30 s
IMAGE_REMOVAL_MS = 300_000  # image_store bounds each step of it
KILL_WAIT_MS = 30_000  # KILL takes effect at once, but for processes in uninterruptible sleep

Identity = tuple[TaskId, int]


class DockerDriver:
    """One node's containers. Used on one event loop."""

    name = "docker"

    def __init__(
        self,
        cluster_id: ClusterId,
        node_id: NodeId,
        settings: DockerSettings,
        clock: Clock,
        files: TaskFiles | None = None,
    ) -> None:
        """`files`: where secrets and configs are put."""
        self._settings = settings
        self._files = files or TaskFiles(node_id, self.name)
        self._clock = clock
        self._cluster_id, self._node_id = cluster_id, node_id
        self._marks = Marks(cluster_id, node_id, boot_id())
        self._maybe_engine: Engine | None = None
        self._maybe_images: Images | None = None
        self._events: EventStream | None = None
        self._observer: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._on_change: Callable[[Observation], None] = lambda _: None
        # What start(), recover() or on_change last said of each attempt that was not removed.
        self._told: dict[Identity, RunState] = {}
        # Highest attempt that has a container, once `_is_listed`: complete, for only we make them.
        self._attempts: dict[TaskId, int] = {}
        self._is_listed = False
        self._starting: set[Identity] = set()
        self._locks: weakref.WeakValueDictionary[TaskId, asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )
        # For the observer: what the engine's events named, and whether to look at everything.
        self._pending: dict[Identity, None] = {}
        self._must_look = False
        self._news = asyncio.Event()
        self._listens = asyncio.Event()
        self._lost_at_ms = 0  # when the engine last went away, and came back, by the wall clock
        self._back_at_ms = 0
        self._stops: dict[Identity, set[asyncio.Event]] = {}
        self._on_pulled: Callable[[ImagePulled], None] = lambda _: None

    # -- life -------------------------------------------------------------------------------------

    async def open(self, on_change: Callable[[Observation], None]) -> None:
        """As the port says; an engine that is not there yet is waited for in the background."""
        assert self._maybe_engine is None, "opened twice"
        self._on_change = on_change
        engine = self._maybe_engine = Engine(self._settings)
        self._maybe_images = Images(engine, self._settings)
        self._maybe_images.on_pulled = lambda pulled: self._on_pulled(pulled)
        self._observer = asyncio.create_task(self._observe(), name="docker observer")
        self._observer.add_done_callback(_say_if_died)
        self._events = EventStream(
            engine, self._marks, self._on_connect, self._on_lost, self._on_event
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.ping_timeout_ms / 1000):
                if not await engine.ping():  # where none answers, nobody waits
                    await self._listens.wait()

    async def close(self) -> None:
        for task in (self._observer, self._ending):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self._events is not None:
            await self._events.close()
        if self._maybe_engine is not None:
            await self._maybe_engine.close()

    async def fingerprint(self) -> DriverInfo:
        if self._maybe_engine is None:
            return DriverInfo(self.name, healthy=False, reason="the driver is not open")
        reason = await self._engine.ping()
        if reason:
            return DriverInfo(self.name, healthy=False, reason=reason)
        try:
            facts = await self._engine.facts()
        except DriverFailed as failure:
            return DriverInfo(self.name, healthy=False, reason=failure.message)
        allow = ",".join(sorted(self._settings.allow))
        return DriverInfo(self.name, healthy=True, attributes={**facts, allowed.ALLOW: allow})

    async def recover(self) -> list[Observation]:
        found = await self._engine.call(partial(containers.listing, marks=self._marks))
        self._note(found)
        seen = await self._look_at_each([one for one in found if not one.is_kept])
        for one in seen:
            self._told[one.task_id, one.attempt] = one.state
        tasks = {one.task_id for one in seen}
        self._files.sweep(lambda task_id: task_id in tasks or task_id in self._locks)
        return seen

    async def _look_at_each(self, found: list[Found]) -> list[Observation]:
        """Those that are there, or were. Each is a call with a deadline of its own: many containers
        are no slow engine."""
        looks = asyncio.Semaphore(LOOKS_AT_ONCE)
        left: list[Prepared] = []  # commands of an agent that was killed

        def act(client: Client, one: Found) -> Observation:
            seen, inspected = containers.recover(client, self._marks, one)
            if inspected is not None and seen.state is RunState.RUNNING:
                left.extend(left_over(client, inspected, self._engine.commands))
            return seen

        async def look(one: Found) -> Observation:
            async with looks:
                if (one.task_id, one.attempt) in self._starting:
                    return gone(one.task_id, one.attempt)  # its start says what it is
                if not one.is_unstarted:
                    return await self._engine.call(partial(act, one=one))
                async with self._lock(one.task_id):
                    return await self._engine.call(partial(act, one=one))

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(look(one)) for one in found]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others failed of the same
        if left and (self._ending is None or self._ending.done()):
            self._ending = asyncio.create_task(self._end_commands(left), name="docker leftovers")
        return [seen for one in asked if (seen := one.result()).state is not RunState.GONE]

    async def _end_commands(self, left: list[Prepared]) -> None:
        """Nobody waits for it: tasks are looked after meanwhile. What is missed comes up again."""
        for one in left:
            log.warning("docker_exec_left_over exec=%s container=%s", one.exec_id, one.container_id)
            await kill_exec(self._engine, one)

    # -- attempts ---------------------------------------------------------------------------------

    async def prepare(self, launch: Launch) -> str:
        check_allowed(launch, self._settings.allow)
        mode = launch.docker.network_mode
        if allowed.is_named_network(mode):
            await self._engine.call(partial(containers.check_network, mode=mode))
        names = {one.source for one in launch.mounts if one.type is MountType.VOLUME}
        if names and "volumes" not in self._settings.allow:
            await self._engine.call(partial(volumes.check_ours, marks=self._marks, names=names))
        return await self._images.ensure(launch)

    async def start(self, launch: Launch) -> Observation:
        check_allowed(launch, self._settings.allow)
        identity = (launch.task_id, launch.attempt)
        async with self._lock(launch.task_id):
            self._starting.add(identity)
            try:
                seen = await self._start(launch)
            finally:
                self._starting.discard(identity)
            self._forget_told(launch.task_id)
            self._told[identity] = seen.state
            self._attempts[launch.task_id] = launch.attempt
        return seen

    async def _start(self, launch: Launch) -> Observation:
        launch = await asyncio.to_thread(with_files, launch, self._files)
        log_driver = (await self._engine.facts())["log_driver"]
        start = partial(
            containers.start,
            marks=self._marks,
            launch=launch,
            config=container_config(launch, self._marks, self._settings, log_driver),
            is_first=self._is_listed and launch.task_id not in self._attempts,
        )
        try:
            return await self._engine.call(start)
        except DriverFailed as failure:
            # It was there at prepare() time: somebody has removed it since.
            if failure.code != "image_missing" or not self._images.forget(launch):
                raise
        await self._images.ensure(launch)
        return await self._engine.call(start)

    async def inspect(self, task_id: TaskId, attempt: int) -> Observation:
        seen = await self._engine.call(
            partial(containers.look, marks=self._marks, task_id=task_id, attempt=attempt)
        )
        return self._blame_engine(seen)

    def _blame_engine(self, seen: Observation) -> Observation:
        """An engine without live-restore ends its containers when it stops, and those that a crash
        of it left when it is back."""
        is_killed = seen.exit_code in ENGINE_KILLS and not seen.reason and self._lost_at_ms
        first_ms = self._lost_at_ms - ENGINE_STOP_MS
        last_ms = max(self._lost_at_ms, self._back_at_ms) + ENGINE_SLACK_MS
        if not is_killed or not first_ms <= seen.finished_at_ms <= last_ms:
            return seen
        return msgspec.structs.replace(seen, reason="its engine was stopped about then")

    async def stop(
        self, task_id: TaskId, attempt: int, stop_signal: str, timeout_ms: int
    ) -> Observation:
        """No thread waits for it: the signal is sent, and the engine's event awaited."""
        with self._waiting_for_end(task_id, attempt) as event:
            for name, wait_ms in ((stop_signal, timeout_ms), ("SIGKILL", KILL_WAIT_MS)):
                if wait_ms == 0:
                    continue
                seen = await self._signal(task_id, attempt, name)
                if seen.state is RunState.RUNNING:
                    seen = await self._end_of(task_id, attempt, event, wait_ms)
                if seen.state is not RunState.RUNNING:
                    return seen
        raise DriverFailed(
            "kill_failed",
            f"attempt {attempt} of task {task_id} still runs {KILL_WAIT_MS // 1000} s after KILL",
            transient=True,
        )

    async def _signal(self, task_id: TaskId, attempt: int, name: str) -> Observation:
        """What it is now; when it runs, the signal was sent."""

        def send(client: Client) -> Observation:
            inspected = containers.find(client, self._marks, task_id, attempt)
            if inspected is None:
                return gone(task_id, attempt)
            seen = self._marks.observe(inspected, task_id, attempt)
            if seen.state is RunState.RUNNING:
                containers.signal(client, seen.handle, name)
            elif seen.state is RunState.GONE:
                containers.discard_unstarted(client, inspected)
            return seen

        return await self._engine.call(send)

    async def signal(self, task_id: TaskId, attempt: int, name: str) -> None:
        await self._engine.call(
            partial(
                containers.signal_running,
                marks=self._marks, task_id=task_id, attempt=attempt, name=name,
            )
        )  # fmt: skip

    async def _end_of(
        self, task_id: TaskId, attempt: int, event: asyncio.Event, wait_ms: int
    ) -> Observation:
        """What it is when it has ended, or when the time is over."""
        deadline_ms = self._clock.monotonic_ms() + wait_ms
        while True:
            left_ms = max(0, deadline_ms - self._clock.monotonic_ms())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_ms, STOP_LOOK_MS) / 1000):
                    await event.wait()
            event.clear()
            seen = await self.inspect(task_id, attempt)
            if seen.state is not RunState.RUNNING or self._clock.monotonic_ms() >= deadline_ms:
                return seen

    async def remove(self, task_id: TaskId, *, keep_logs: bool) -> None:
        async with self._lock(task_id):
            # Before the engine is asked: its news of what we remove is no news.
            told = self._forget_told(task_id)
            try:
                await self._engine.call(
                    partial(
                        containers.remove, marks=self._marks, task_id=task_id, keep_logs=keep_logs
                    )
                )
            except BaseException:
                self._told = told | self._told
                self._look_soon()
                raise
            self._files.remove(task_id)
            if not keep_logs:
                self._attempts.pop(task_id, None)

    async def kept(self) -> list[TaskId]:
        """As cube.ports.kept.OutputKeeper has it."""
        return await self._engine.call(partial(containers.kept, marks=self._marks))

    async def remove_kept(self) -> None:
        """No output of removed tasks is left either: for a node that is given up."""

        def remove_all(client: Client) -> None:
            for one in containers.listing(client, self._marks):
                if one.is_kept:
                    containers.delete(client, one.id)

        await self._engine.call(remove_all)

    async def reap(self, removed: Set[NodeId]) -> int:
        """As cube.ports.reaper.Reaper has it: of every agent that used this engine."""
        others = removed - {self._node_id}
        ended = await self._engine.call(partial(reap, cluster_id=self._cluster_id, removed=others))
        self._files.reap(others)
        return ended

    def _forget_told(self, task_id: TaskId) -> dict[Identity, RunState]:
        """Nothing more is told of the task's attempts. Returns what was known of them."""
        told = {key: state for key, state in self._told.items() if key[0] == task_id}
        for identity in told:
            del self._told[identity]
        return told

    # -- beside the task --------------------------------------------------------------------------

    def logs(
        self,
        task_id: TaskId,
        *,
        streams: tuple[str, ...],
        tail: int | None,
        since_ms: int,
        follow: bool,
    ) -> AsyncIterator[LogChunk]:
        wanted = Wanted(streams, tail, max(0, since_ms) * 1_000_000, follow)
        return read_output(self._engine, self._marks, task_id, wanted)

    async def execute(
        self, task_id: TaskId, attempt: int, argv: tuple[str, ...], timeout_ms: int
    ) -> ExecResult:
        return await execute(self._engine, self._marks, task_id, attempt, argv, timeout_ms)

    async def stats(self, task_id: TaskId, attempt: int) -> TaskStats:
        return await self._engine.call(
            partial(
                usage,
                marks=self._marks, task_id=task_id, attempt=attempt, at_ms=self._clock.now_ms(),
            )
        )  # fmt: skip

    async def open_exec(self, task_id: TaskId, attempt: int, order: ExecOrder) -> Session:
        engine, marks = self._engine, self._marks
        if order.files is not None:
            session = await open_files(engine, marks, task_id, attempt, order.files)
            if session is not None:
                return session
        return await open_session(engine, marks, task_id, attempt, order)

    async def volume_names(self) -> list[str]:
        return await self._engine.call(partial(volumes.volume_names, marks=self._marks))

    async def remove_volume(self, name: str) -> bool:
        return await self._engine.call(
            lambda client: volumes.remove_volume(client, self._marks, name)
        )

    def tell_pulls(self, on_pulled: Callable[[ImagePulled], None]) -> None:
        """As cube.ports.images.ImageStore has it."""
        self._on_pulled = on_pulled

    async def images(self) -> list[ImageSeen]:
        return await self._engine.call(image_store.images, timeout_ms=IMAGES_MS)

    async def remove_image(self, image_id: str, names: Sequence[str]) -> bool:
        self._images.forget_all()  # or prepare() would say that it is here
        try:
            return await self._engine.call(
                partial(image_store.remove_image, image_id=image_id, names=names),
                timeout_ms=IMAGE_REMOVAL_MS,
            )
        finally:
            self._images.forget_all()  # somebody may have looked meanwhile

    # -- what the engine says ---------------------------------------------------------------------

    def _on_connect(self) -> None:
        """The event stream is open. Whatever happened before it was is unknown."""
        self._listens.set()
        self._back_at_ms = self._clock.now_ms()
        self._images.forget_all()  # perhaps it is another engine, with other images
        self._look_soon()

    def _on_lost(self) -> None:
        if self._lost_at_ms <= self._back_at_ms:
            self._lost_at_ms = self._clock.now_ms()

    def _look_soon(self) -> None:
        self._must_look = True
        self._news.set()

    def _on_event(self, task_id: TaskId, attempt: int) -> None:
        for event in self._stops.get((task_id, attempt), ()):
            event.set()
        if len(self._pending) < PENDING_MAX:
            self._pending[task_id, attempt] = None
        else:
            self._must_look = True
        self._news.set()

    async def _observe(self) -> None:
        """Tells on_change what is true after each event, and after each reconnection."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                if self._must_look:
                    self._must_look = False
                    await self._look_at_everything()
                while self._pending:
                    identity = next(iter(self._pending))
                    del self._pending[identity]
                    self._tell(await self.inspect(*identity))
            except DriverFailed as failure:
                log.debug("docker_look_failed code=%s", failure.code)
                self._must_look = True
                await asyncio.sleep(RELOOK_S)
                self._news.set()

    async def _look_at_everything(self) -> None:
        """Tells what differs from what was told before: what ended or vanished while we were deaf."""
        before = dict(self._told)
        found = await self._engine.call(partial(containers.listing, marks=self._marks))
        self._note(found)
        now = {(one.task_id, one.attempt): one for one in found if not one.is_kept}
        for identity, state in before.items():
            one = now.get(identity)
            if one is None or one.is_running != (state is RunState.RUNNING):
                self._tell(await self.inspect(*identity))

    def _note(self, found: list[Found]) -> None:
        """`found` is everything of ours that the engine has."""
        for one in found:
            known = self._attempts.get(one.task_id, 0)
            self._attempts[one.task_id] = max(known, one.attempt)
        self._is_listed = True

    def _tell(self, seen: Observation) -> None:
        """Of attempts that were told before, or are being started; others are nobody's concern:
        removed meanwhile, or not yet asked for by recover()."""
        identity = (seen.task_id, seen.attempt)
        if identity not in self._told and identity not in self._starting:
            return
        if seen.state is RunState.GONE:
            if self._told.pop(identity, None) is None:
                return  # created, could not start, removed again
        else:
            self._told[identity] = seen.state
        self._on_change(seen)

    # -- small things -----------------------------------------------------------------------------

    @property
    def _engine(self) -> Engine:
        if self._maybe_engine is None:
            raise engine_down("the driver is not open")
        return self._maybe_engine

    @property
    def _images(self) -> Images:
        if self._maybe_images is None:
            raise engine_down("the driver is not open")
        return self._maybe_images

    def _lock(self, task_id: TaskId) -> asyncio.Lock:
        """One start or remove of a task at a time; forgotten when nobody holds it."""
        lock = self._locks.get(task_id)
        if lock is None:
            lock = self._locks[task_id] = asyncio.Lock()
        return lock

    @contextlib.contextmanager
    def _waiting_for_end(self, task_id: TaskId, attempt: int) -> Iterator[asyncio.Event]:
        """An event that is set when the engine says that the attempt ended."""
        event = asyncio.Event()
        waiting = self._stops.setdefault((task_id, attempt), set())
        waiting.add(event)
        try:
            yield event
        finally:
            waiting.discard(event)
            if not waiting:
                self._stops.pop((task_id, attempt), None)


def _say_if_died(task: asyncio.Task[None]) -> None:
    """The observer ends only when it is cancelled; anything else is a bug, and must not be quiet."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {"message": "the docker observer died", "exception": error, "task": task}
        )
