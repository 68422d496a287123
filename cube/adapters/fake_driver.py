"""A driver in memory whose launches say how it shall misbehave. For tests of what uses a driver.

The behaviour is read from the launch's environment, so that a test says it in the job it submits:

    FAKE_RUN_FOR_MS       ends by itself after this long (absent: runs for ever)
    FAKE_EXIT_CODE        … with this code (0)
    FAKE_OOM              … killed for its memory when "1": code 137
    FAKE_STDOUT, FAKE_STDERR    written at the start
    FAKE_TICK             a line written to stdout each TICK_MS
    FAKE_IGNORE_SIGTERM   only KILL ends it
    FAKE_PREPARE_ERROR, FAKE_START_ERROR    "code" (lasting) or "code:transient"
    FAKE_PREPARE_BLOCK_MS, FAKE_START_BLOCK_MS    takes this long first
    FAKE_START_ANSWER_MS  runs at once, but start() says so only this much later
    FAKE_EXEC_EXIT_CODE   what execute() answers for any other command than `say` and `hang`

`FakeHost.engine_down` makes every call fail, as an engine that hangs does. What was started lives in
the FakeHost: a second FakeDriver on the same host is the agent started again. All waiting is done on
the running loop and all times come from the clock, so a virtual-time loop makes it deterministic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from cube.adapters.fake_images import FakeImages
from cube.adapters.fake_sessions import FakeSession
from cube.model.errors import DriverFailed
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.images import ImagePulled, ImageSeen, pinned
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
from cube.ports.clock import Clock

TICK_MS = 20
OUTPUT_CHUNKS_MAX = 10_000  # per task: a fake that ticks all day stays small
EXEC_BYTES_MAX = 4096

Listener = Callable[[Observation], None]


@dataclass
class FakeAttempt:
    launch: Launch
    seen: Observation
    over: asyncio.Event = field(default_factory=asyncio.Event)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)


@dataclass
class FakeHost:
    """What outlives the agent. Tests read and poke it; `starts` counts what really was started.

    Shape: tasks are keyed by their node's mark and their id, so several nodes may share a host.
    """

    attempts: dict[tuple[NodeId, TaskId], FakeAttempt] = field(default_factory=dict)
    output: dict[tuple[NodeId, TaskId], list[LogChunk]] = field(default_factory=dict)
    listeners: dict[NodeId, Listener] = field(default_factory=dict)
    starts: dict[tuple[TaskId, int], int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # by image: what its name means now
    images: FakeImages = field(default_factory=FakeImages)
    prepared: list[Launch] = field(default_factory=list)
    engine_down: bool = False
    next_handle: int = 1000

    def end(
        self,
        node_id: NodeId,
        task_id: TaskId,
        exit_code: int | None,
        at_ms: int,
        *,
        oom_killed: bool = False,
        reason: str = "",
    ) -> None:
        """The task's running attempt has ended, as if by itself; the node's driver is told."""
        attempt = self.attempts[node_id, task_id]
        if attempt.seen.state is not RunState.RUNNING:
            return
        for timer in attempt.timers:
            timer.cancel()
        attempt.seen = msgspec.structs.replace(
            attempt.seen,
            state=RunState.EXITED,
            exit_code=exit_code,
            oom_killed=oom_killed,
            reason=reason,
            finished_at_ms=at_ms,
        )
        attempt.over.set()
        listener = self.listeners.get(node_id)
        if listener is not None:
            asyncio.get_running_loop().call_soon(listener, attempt.seen)

    def write(self, node_id: NodeId, task_id: TaskId, stream: str, data: str, at_ms: int) -> None:
        """Output of the task, as if it had written it."""
        chunks = self.output.setdefault((node_id, task_id), [])
        chunks.append(LogChunk(stream=stream, data=data.encode(), at_ms=at_ms))
        del chunks[:-OUTPUT_CHUNKS_MAX]

    def halt(self) -> None:
        """No timer is left and nobody is told of anything any more; for the end of a test."""
        self.listeners.clear()
        for attempt in self.attempts.values():
            for timer in attempt.timers:
                timer.cancel()


class FakeDriver:
    """cube.ports.driver.Driver over a FakeHost."""

    name = "fake"

    def __init__(self, cluster_id: ClusterId, node_id: NodeId, host: FakeHost, clock: Clock):
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._host = host
        self._clock = clock
        self._starting: dict[tuple[TaskId, int], asyncio.Lock] = {}
        self._on_pulled: Callable[[ImagePulled], None] = lambda _: None

    async def open(self, on_change: Listener) -> None:
        self._host.listeners[self._node_id] = on_change

    async def close(self) -> None:
        self._host.listeners.pop(self._node_id, None)

    async def fingerprint(self) -> DriverInfo:
        if self._host.engine_down:
            return DriverInfo(self.name, healthy=False, reason="the fake engine is down")
        return DriverInfo(self.name, healthy=True, attributes={"version": "1"})

    async def recover(self) -> list[Observation]:
        self._check_engine()
        return [
            attempt.seen
            for (node_id, _), attempt in sorted(self._host.attempts.items())
            if node_id == self._node_id
        ]

    async def prepare(self, launch: Launch) -> str:
        self._check_engine()
        await self._misbehave(launch, "PREPARE")
        self._host.prepared.append(launch)
        digest = launch.image_digest or self._host.digests.get(launch.image, "")
        if launch.image:
            self._have(launch, digest)
        return digest

    def _have(self, launch: Launch, digest: str) -> None:
        """The launch's image is here, pulled if its policy says so."""
        images = self._host.images
        reference = pinned(launch.image, launch.image_digest)
        if launch.docker.pull == "always" or images.find(reference) is None:
            pulled = images.pull(reference, digest)
            if pulled is not None:
                self._on_pulled(pulled)

    def tell_pulls(self, on_pulled: Callable[[ImagePulled], None]) -> None:
        """See cube.ports.images.ImageStore."""
        self._on_pulled = on_pulled

    async def images(self) -> list[ImageSeen]:
        self._check_engine()
        return self._host.images.seen()

    async def remove_image(self, image_id: str, names: Sequence[str]) -> bool:
        self._check_engine()
        return self._host.images.remove(image_id, names)

    async def start(self, launch: Launch) -> Observation:
        lock = self._starting.setdefault((launch.task_id, launch.attempt), asyncio.Lock())
        async with lock:
            return await self._start(launch)

    async def _start(self, launch: Launch) -> Observation:
        self._check_engine()
        known = self._attempt(launch.task_id)
        if known is not None:
            present = known.seen.attempt
            if present == launch.attempt:
                return known.seen
            if present > launch.attempt:
                raise DriverFailed(
                    "attempt_superseded", f"attempt {present} was started", transient=False
                )
            if known.seen.state is RunState.RUNNING:
                raise DriverFailed("still_running", f"attempt {present} runs", transient=True)
        await self._misbehave(launch, "START")
        if launch.command[:1] == ("/no/such/command",):
            raise DriverFailed("command_not_found", "there is no /no/such/command", transient=False)
        seen = self._run(launch).seen
        if "FAKE_START_ANSWER_MS" in launch.env:
            await asyncio.sleep(int(launch.env["FAKE_START_ANSWER_MS"]) / 1000)
        return seen

    def _run(self, launch: Launch) -> FakeAttempt:
        host, now_ms = self._host, self._clock.now_ms()
        host.next_handle += 1
        key = (launch.task_id, launch.attempt)
        host.starts[key] = host.starts.get(key, 0) + 1
        attempt = FakeAttempt(
            launch,
            Observation(
                task_id=launch.task_id,
                attempt=launch.attempt,
                state=RunState.RUNNING,
                handle=str(host.next_handle),
                started_at_ms=now_ms,
            ),
        )
        host.attempts[self._node_id, launch.task_id] = attempt
        if launch.image:
            host.images.use(
                self._node_id, launch.task_id, pinned(launch.image, launch.image_digest)
            )
        for stream in ("stdout", "stderr"):
            if data := launch.env.get(f"FAKE_{stream.upper()}"):
                host.write(self._node_id, launch.task_id, stream, data, now_ms)
        if "FAKE_TICK" in launch.env:
            self._tick(attempt)
        if "FAKE_RUN_FOR_MS" in launch.env:
            is_oom = launch.env.get("FAKE_OOM") == "1"
            exit_code = 137 if is_oom else int(launch.env.get("FAKE_EXIT_CODE", "0"))
            self._later(
                attempt,
                int(launch.env["FAKE_RUN_FOR_MS"]),
                lambda: self._end(launch.task_id, exit_code, is_oom),
            )
        return attempt

    async def inspect(self, task_id: TaskId, attempt: int) -> Observation:
        self._check_engine()
        known = self._attempt(task_id)
        if known is None or known.seen.attempt != attempt:
            return Observation(task_id=task_id, attempt=attempt, state=RunState.GONE)
        return known.seen

    async def stop(
        self, task_id: TaskId, attempt: int, stop_signal: str, timeout_ms: int
    ) -> Observation:
        seen = await self.inspect(task_id, attempt)
        if seen.state is not RunState.RUNNING:
            return seen
        known = self._host.attempts[self._node_id, task_id]
        is_deaf = known.launch.env.get("FAKE_IGNORE_SIGTERM") == "1" and stop_signal != "SIGKILL"
        if timeout_ms == 0 or stop_signal == "SIGKILL":
            self._end(task_id, 137, False)
        elif is_deaf:
            self._later(known, timeout_ms, lambda: self._end(task_id, 137, False))
        else:
            self._end(task_id, 143, False)
        await known.over.wait()
        return known.seen

    async def signal(self, task_id: TaskId, attempt: int, name: str) -> None:
        seen = await self.inspect(task_id, attempt)
        if name.removeprefix("SIG") not in ("TERM", "KILL", "HUP", "USR1"):
            raise DriverFailed("bad_signal", f"there is no signal {name!r}", transient=False)
        if seen.state is not RunState.RUNNING:
            raise DriverFailed("not_running", f"task {task_id} does not run", transient=False)
        if name.removeprefix("SIG") == "KILL":
            self._end(task_id, 137, False)

    async def remove(self, task_id: TaskId, *, keep_logs: bool) -> None:
        self._check_engine()
        known = self._attempt(task_id)
        if known is not None and known.seen.state is RunState.RUNNING:
            raise DriverFailed("still_running", f"task {task_id} runs", transient=True)
        self._host.attempts.pop((self._node_id, task_id), None)
        if not keep_logs:
            self._host.output.pop((self._node_id, task_id), None)
            self._host.images.leave(self._node_id, task_id)

    async def kept(self) -> list[TaskId]:
        """See cube.ports.kept.OutputKeeper."""
        return sorted(
            task_id
            for node_id, task_id in self._host.output
            if node_id == self._node_id and (node_id, task_id) not in self._host.attempts
        )

    async def logs(
        self,
        task_id: TaskId,
        *,
        streams: tuple[str, ...],
        tail: int | None,
        since_ms: int,
        follow: bool,
    ) -> AsyncIterator[LogChunk]:
        chunks = self._host.output.get((self._node_id, task_id), [])
        kept = [c for c in chunks if c.stream in streams and c.at_ms >= since_ms]
        for chunk in kept if tail is None else _last_lines(kept, tail):
            yield chunk
        sent = len(chunks)
        while follow:
            known = self._attempt(task_id)
            is_last_look = known is None or known.seen.state is not RunState.RUNNING
            chunks = self._host.output.get((self._node_id, task_id), [])
            for chunk in chunks[sent:]:
                if chunk.stream in streams:
                    yield chunk
            sent = len(chunks)
            if is_last_look:
                return
            await asyncio.sleep(TICK_MS / 1000)

    async def execute(
        self, task_id: TaskId, attempt: int, argv: tuple[str, ...], timeout_ms: int
    ) -> ExecResult:
        """`say TEXT CODE` answers, `hang` never does, all else exits as FAKE_EXEC_EXIT_CODE says."""
        seen = await self.inspect(task_id, attempt)
        if seen.state is not RunState.RUNNING:
            raise DriverFailed("not_running", f"task {task_id} does not run", transient=False)
        env = self._host.attempts[self._node_id, task_id].launch.env
        match argv:
            case ("say", words, code):
                return ExecResult(int(code), words.encode()[:EXEC_BYTES_MAX])
            case ("hang",):
                await asyncio.sleep(timeout_ms / 1000)
                return ExecResult(None, b"")
            case _:
                return ExecResult(int(env.get("FAKE_EXEC_EXIT_CODE", "0")), b"")

    async def stats(self, task_id: TaskId, attempt: int) -> TaskStats:
        """A tenth of a core, FAKE_MEMORY_BYTES (1 MiB), three processes."""
        seen = await self.inspect(task_id, attempt)
        if seen.state is not RunState.RUNNING:
            raise DriverFailed("not_running", f"task {task_id} does not run", transient=False)
        env = self._host.attempts[self._node_id, task_id].launch.env
        now_ms = self._clock.now_ms()
        return TaskStats(
            at_ms=now_ms,
            cpu_ms=(now_ms - seen.started_at_ms) // 10,
            memory_bytes=int(env.get("FAKE_MEMORY_BYTES", 1 << 20)),
            pids=3,
        )

    async def open_exec(self, task_id: TaskId, attempt: int, order: ExecOrder) -> FakeSession:
        seen = await self.inspect(task_id, attempt)
        if seen.state is not RunState.RUNNING:
            raise DriverFailed("not_running", f"task {task_id} does not run", transient=False)
        known = self._host.attempts[self._node_id, task_id]
        code = int(known.launch.env.get("FAKE_EXEC_EXIT_CODE", "0"))
        return FakeSession(order, known.over, code)

    def _attempt(self, task_id: TaskId) -> FakeAttempt | None:
        return self._host.attempts.get((self._node_id, task_id))

    def _check_engine(self) -> None:
        if self._host.engine_down:
            raise DriverFailed("engine_down", "the fake engine is down", transient=True)

    def _end(self, task_id: TaskId, exit_code: int, is_oom: bool) -> None:
        self._host.end(self._node_id, task_id, exit_code, self._clock.now_ms(), oom_killed=is_oom)

    def _later(self, attempt: FakeAttempt, delay_ms: int, act: Callable[[], None]) -> None:
        timer = asyncio.get_running_loop().call_later(delay_ms / 1000, act)
        attempt.timers.append(timer)

    def _tick(self, attempt: FakeAttempt) -> None:
        attempt.timers[:] = [t for t in attempt.timers if not _is_spent(t)]
        self._host.write(
            self._node_id,
            attempt.launch.task_id,
            "stdout",
            attempt.launch.env["FAKE_TICK"] + "\n",
            self._clock.now_ms(),
        )
        self._later(attempt, TICK_MS, lambda: self._tick(attempt))

    async def _misbehave(self, launch: Launch, step: str) -> None:
        block_ms = int(launch.env.get(f"FAKE_{step}_BLOCK_MS", "0"))
        if block_ms:
            await asyncio.sleep(block_ms / 1000)
        if error := launch.env.get(f"FAKE_{step}_ERROR"):
            code, _, kind = error.partition(":")
            raise DriverFailed(
                code, f"the launch asked for {error!r}", transient=kind == "transient"
            )


def _is_spent(timer: asyncio.TimerHandle) -> bool:
    return timer.cancelled() or timer.when() <= asyncio.get_running_loop().time()


def _last_lines(chunks: list[LogChunk], count: int) -> list[LogChunk]:
    """The last lines of chunks that are each made of whole lines."""
    kept: list[LogChunk] = []
    for chunk in reversed(chunks):
        if count <= 0:
            break
        lines = chunk.data.splitlines(keepends=True)[-count:]
        count -= len(lines)
        kept.append(msgspec.structs.replace(chunk, data=b"".join(lines)))
    return kept[::-1]
