"""Tasks as plain processes of this host. See DESIGN.md for how an attempt lives and dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Set
from pathlib import Path
from weakref import WeakValueDictionary

from cube.adapters.process import cgroups, orders
from cube.adapters.process.attempts import (
    DISK_EXCEEDED,
    Attempts,
    Identity,
    group_name,
)
from cube.adapters.process.beside import run_beside
from cube.adapters.process.disk_watch import DiskWatch, Quota
from cube.adapters.process.failures import host_errors, lasting, passing, patience, refused
from cube.adapters.process.lease import FILE as LEASE_FILE
from cube.adapters.process.log_files import LogReader
from cube.adapters.process.processes import Watch, open_pidfd, read_pipe, signal_session
from cube.adapters.process.reaping import reap
from cube.adapters.process.records import SAFE_ID
from cube.adapters.process.session import ProcessSession, open_session
from cube.adapters.process.settings import ProcessSettings
from cube.adapters.process.signals import signal_number
from cube.adapters.process.starting import last_words, lay_out, spawn_supervisor
from cube.adapters.process.users import ROOT
from cube.adapters.process.wire import Order, first, read_all, unpack
from cube.adapters.task_files import TaskFiles
from cube.model.allowed import ALLOW
from cube.model.errors import DriverFailed
from cube.model.ids import ClusterId, NodeId, TaskId
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
from cube.model.units import format_size
from cube.ports.clock import Clock
from cube.ports.session import Session

LOG = logging.getLogger(__name__)

START_TIMEOUT_MS = 20_000  # a supervisor needs 20 ms; a host that swaps needs patience
KILL_WAIT_MS = 15_000  # from KILL to the end: what takes longer hangs in the kernel
KILL_ROUND_MS = 20  # between two looks for survivors
POLL_MS = 20  # waiting for a supervisor that an earlier agent started
FINISH_WAIT_MS = 2000  # from an attempt's last record to its supervisor's own end
FOLLOW_POLL_MS = 100  # between two looks for new output
READ_BYTES = 256 * 1024  # of output, at one go
STATUS_BYTES = 64  # a supervisor's one word


class ProcessDriver:
    """cube.ports.driver.Driver for plain processes. All of its state is in `directory`, in the
    kernel and in its supervisors; the object itself only watches."""

    name = "process"

    def __init__(
        self,
        cluster_id: ClusterId,
        node_id: NodeId,
        directory: Path,
        clock: Clock,
        settings: ProcessSettings | None = None,
        lease_file: Path | None = None,
        files: TaskFiles | None = None,
    ) -> None:
        """`lease_file`: where the agent writes leases, for tasks that need one; by default beside
        `directory`. `files`: where secrets and configs are put."""
        assert SAFE_ID.fullmatch(node_id), node_id
        self._mark = (cluster_id, node_id)
        self._directory = directory.absolute()
        self._settings = settings or ProcessSettings()
        self._lease_file = (lease_file or self._directory.parent / LEASE_FILE).absolute()
        self._files = files or TaskFiles(node_id, self.name)
        self._attempts = Attempts(
            cluster_id, node_id, self._directory, clock, cgroups.none("not opened")
        )
        self._on_change: Callable[[Observation], None] = lambda _: None
        self._watches: dict[Identity, Watch] = {}
        self._sessions: dict[Identity, set[ProcessSession]] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self._locks: WeakValueDictionary[TaskId, asyncio.Lock] = WeakValueDictionary()
        self.disk_watch = DiskWatch(
            clock,
            self._settings.disk_look_ms,
            lambda: self._watches,
            self._quota_of,
            self._end_for_disk,
        )
        self._looking: asyncio.Task[None] | None = None
        self.fault = "not opened"  # empty: it can run tasks

    @property
    def cgroup_version(self) -> str:
        """1, 2 or none."""
        return self._attempts.cgroups.version

    def cgroup_directories(self, task_id: TaskId, attempt: int) -> list[str]:
        """Where the kernel accounts for this attempt; none where there are no groups."""
        return self._attempts.cgroups.directories(group_name((task_id, attempt)))

    # -- the driver itself ------------------------------------------------------------------------

    async def open(self, on_change: Callable[[Observation], None]) -> None:
        self._on_change = on_change
        self.fault = await asyncio.to_thread(self._set_up)
        if self.fault:
            LOG.error("process_driver_unusable reason=%r", self.fault)
        self._looking = asyncio.get_running_loop().create_task(self.disk_watch.run())

    def _set_up(self) -> str:
        """Directories and groups are there; else what is wrong."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._directory.chmod(0o711)  # tasks of other users pass through to their work/
            os.close(os.pidfd_open(os.getpid()))
        except OSError as error:
            return f"{error.filename or 'pidfd_open'}: {error.strerror}"
        self._attempts.cgroups = cgroups.detect(
            Path(self._settings.cgroup_root), self._settings.cgroup_parent, self._mark[1]
        )
        return ""

    async def close(self) -> None:
        self._on_change = lambda _: None
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
        ending = [*self._settling, *([self._looking] if self._looking else [])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def fingerprint(self) -> DriverInfo:
        groups = self._attempts.cgroups
        attributes = {"cgroup": groups.version}
        if os.geteuid() == ROOT:  # others can run a task as nobody but themselves
            attributes[ALLOW] = ",".join(self._settings.words)
        if groups.controllers:
            attributes["cgroup_controllers"] = ",".join(groups.controllers)
        if groups.reason:
            attributes["cgroup_reason"] = groups.reason
        return DriverInfo(self.name, not self.fault, self.fault, attributes)

    @host_errors
    async def recover(self) -> list[Observation]:
        found = [await self.inspect(*identity) for identity in self._attempts.all()]
        found = [seen for seen in found if seen.state is not RunState.GONE]
        await self._sweep({(seen.task_id, seen.attempt) for seen in found})
        tasks = {seen.task_id for seen in found}
        self._files.sweep(lambda task_id: task_id in tasks or task_id in self._locks)
        return found

    async def kept(self) -> list[TaskId]:
        """As cube.ports.kept.OutputKeeper has it."""
        return await asyncio.to_thread(self._attempts.kept)

    async def _sweep(self, known: set[Identity]) -> None:
        """Groups of this node whose attempt nobody knows any more are empty and gone."""
        for name in list(self._attempts.cgroups.leftovers()):
            task_id, _, number = name.rpartition(".")
            if not SAFE_ID.fullmatch(task_id) or not number.isdigit():
                continue
            identity = (TaskId(task_id), int(number))
            if identity in known:
                continue
            async with self._lock(identity[0]):
                if self._attempts.look(identity) is None:  # no start was under way meanwhile
                    LOG.warning("process_leftover_killed task=%s attempt=%s", *identity)
                    await asyncio.to_thread(self._attempts.kill_round, identity, None)
                    self._attempts.cgroups.remove(name)

    # -- starting ---------------------------------------------------------------------------------

    async def prepare(self, launch: Launch) -> str:
        await asyncio.to_thread(orders.check, launch, self._settings)
        return ""

    @host_errors
    async def start(self, launch: Launch) -> Observation:
        assert (launch.cluster_id, launch.node_id) == self._mark, "a launch of another node"
        orders.check(launch, self._settings)
        identity = (launch.task_id, launch.attempt)
        async with self._lock(launch.task_id):
            seen = await self._earlier_start(identity)
            if seen is not None:
                return seen
            await self._check_other_attempts(identity)
            await self._spawn(launch)
            seen = await self._outcome(identity)
            for number in self._attempts.paths(launch.task_id).numbers():
                if number < launch.attempt:
                    await asyncio.to_thread(self._attempts.forget, (launch.task_id, number))
        LOG.info("process_started task=%s attempt=%d pid=%s", *identity, seen.handle)
        return seen

    async def _earlier_start(self, identity: Identity) -> Observation | None:
        """What became of an earlier start of this attempt; None: none that counts."""
        if (await self.inspect(*identity)).state is RunState.GONE:
            return None
        try:
            return await self._outcome(identity)
        except DriverFailed as failed:
            if not failed.transient:
                raise
        await asyncio.to_thread(self._attempts.forget, identity)
        return None

    async def _check_other_attempts(self, identity: Identity) -> None:
        task_id, attempt = identity
        for number in self._attempts.paths(task_id).numbers():
            if number > attempt:
                raise lasting("attempt_superseded", f"attempt {number} was started already")
            if (await self.inspect(task_id, number)).state is RunState.RUNNING:
                raise passing("still_running", f"attempt {number} of {task_id} runs")
            await self._finished((task_id, number))

    async def _outcome(self, identity: Identity) -> Observation:
        """What a start came to, once that is known. Raises DriverFailed when the command was not
        run, with what the supervisor said."""
        async with patience(START_TIMEOUT_MS, "start_timeout", "the supervisor is silent"):
            while True:
                seen = await self.inspect(*identity)
                if seen.handle or seen.state is not RunState.RUNNING:
                    break
                await asyncio.sleep(POLL_MS / 1000)
        attempt = self._attempts.look(identity)
        if attempt is not None and attempt.exit is not None and attempt.exit.failure:
            end = attempt.exit
            raise DriverFailed(end.failure, end.message, transient=end.is_transient)
        return seen

    async def _spawn(self, launch: Launch) -> None:
        """A supervisor has been started, and has said that it runs the command, or that it cannot."""
        identity = (launch.task_id, launch.attempt)
        order = await asyncio.to_thread(
            lay_out, launch, self._attempts, self._files, self._settings, self._lease_file
        )
        read_fd, write_fd = os.pipe()
        word = bytearray()
        try:
            try:
                self._watch(identity, spawn_supervisor(self._attempts, launch, order, write_fd))
            finally:
                os.close(write_fd)
            async with patience(START_TIMEOUT_MS, "start_timeout", "the supervisor is silent"):
                await read_pipe(read_fd, word, STATUS_BYTES)
        finally:
            os.close(read_fd)
        if word != b"running":
            await self._finished(identity)
            self._watch_claimed(identity)
        if self._attempts.look(identity) is None:
            words = last_words(self._attempts, identity)
            await asyncio.to_thread(self._attempts.forget, identity)
            raise passing("supervisor_failed", words)

    # -- watching ---------------------------------------------------------------------------------

    def _watch(self, identity: Identity, pid: int) -> None:
        """Watch our own new child: its pid cannot be another's before we bury it."""
        self._watches[identity] = Watch(os.pidfd_open(pid), lambda: self._on_end(identity))

    def _watch_claimed(self, identity: Identity) -> Watch | None:
        """The supervisor that claimed this attempt is watched. None: it has ended."""
        known = self._watches.get(identity)
        if known is not None:
            return known
        attempt = self._attempts.look(identity)
        if attempt is None or attempt.claim is None or not self._attempts.is_supervised(attempt):
            return None
        claim = attempt.claim
        pidfd = open_pidfd(claim.supervisor_pid, claim.supervisor_start_time)
        if pidfd is None:
            return None
        watch = Watch(pidfd, lambda: self._on_end(identity))
        self._watches[identity] = watch
        return watch

    def _on_end(self, identity: Identity) -> None:
        self._watches.pop(identity, None)
        self._end_sessions(identity)
        task = asyncio.get_running_loop().create_task(self._settle(identity))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle(self, identity: Identity) -> None:
        seen = await self.inspect(*identity)
        if seen.state is RunState.RUNNING:  # another supervisor had claimed it
            return
        LOG.info(
            "process_ended task=%s attempt=%d exit_code=%s reason=%s",
            *identity,
            seen.exit_code,
            seen.reason,
        )
        self._on_change(seen)

    @host_errors
    async def inspect(self, task_id: TaskId, attempt: int) -> Observation:
        identity = (task_id, attempt)
        known = self._attempts.look(identity)
        if known is not None and known.exit is None and self._watch_claimed(identity) is None:
            known = self._attempts.look(identity)  # it may have ended between the two looks
            if known is not None and known.exit is None:
                known = await self._attempts.conclude(identity, known)
        return self._attempts.observation(identity, known)

    async def _finished(self, identity: Identity) -> None:
        """The supervisor of an ended attempt has ended too."""
        watch = self._watches.get(identity)
        if watch is not None:
            async with patience(FINISH_WAIT_MS, "supervisor_busy", "it does not end"):
                await watch.over.wait()

    # -- disk -------------------------------------------------------------------------------------

    async def _quota_of(self, identity: Identity) -> Quota:
        order = await self._order_of(identity)
        return Quota(self._attempts.paths(identity[0]).work, int(first(order, "disk_bytes") or 0))

    async def _end_for_disk(self, identity: Identity, quota: Quota, held: int) -> None:
        limit = format_size(quota.limit_bytes)
        text = f"its directory holds {format_size(held)} ({held} bytes); resources.disk is {limit}"
        await asyncio.to_thread(self._attempts.judge, identity, DISK_EXCEEDED, text)
        await self.stop(*identity, "SIGKILL", 0)

    # -- ending -----------------------------------------------------------------------------------

    @host_errors
    async def stop(
        self, task_id: TaskId, attempt: int, stop_signal: str, timeout_ms: int
    ) -> Observation:
        number = signal_number(stop_signal)
        identity = (task_id, attempt)
        async with self._lock(task_id):
            pass  # a start that was under way has come to something
        if (await self.inspect(task_id, attempt)).state is not RunState.RUNNING:
            return await self._end(identity)
        watch, known = self._watch_claimed(identity), self._attempts.look(identity)
        if watch is None or known is None:
            return await self._end(identity)
        watch.resume()
        if timeout_ms > 0 and known.run is not None and number != signal.SIGKILL:
            run = known.run
            await asyncio.to_thread(signal_session, run.pid, run.start_time, number)
            await watch.within(timeout_ms)
        if not watch.over.is_set():
            await self._kill(identity, watch)
        return await self._end(identity)

    @host_errors
    async def signal(self, task_id: TaskId, attempt: int, name: str) -> None:
        number = signal_number(name)
        seen = await self.inspect(task_id, attempt)
        known = self._attempts.look((task_id, attempt))
        if seen.state is not RunState.RUNNING or known is None or known.run is None:
            raise lasting("not_running", f"attempt {attempt} of {task_id} does not run")
        run = known.run
        is_stop = number in (signal.SIGSTOP, signal.SIGTSTP)
        await asyncio.to_thread(signal_session, run.pid, run.start_time, number, wake=not is_stop)

    async def _end(self, identity: Identity) -> Observation:
        seen = await self.inspect(*identity)
        await self._finished(identity)
        return seen

    async def _kill(self, identity: Identity, watch: Watch) -> None:
        """All of the attempt has ended, its supervisor too."""
        async with patience(KILL_WAIT_MS, "not_killed", "KILL has no effect"):
            for _ in range(KILL_WAIT_MS // KILL_ROUND_MS // 2):
                known = self._attempts.look(identity)
                await asyncio.to_thread(self._attempts.kill_round, identity, known)
                if await watch.within(KILL_ROUND_MS):
                    return
            # All is dead, and the supervisor does not notice: it is not what it should be.
            LOG.error("process_supervisor_stuck task=%s attempt=%d", *identity)
            watch.kill()
            await watch.over.wait()

    @host_errors
    async def remove(self, task_id: TaskId, *, keep_logs: bool) -> None:
        if not SAFE_ID.fullmatch(task_id):
            return
        async with self._lock(task_id):
            for number in self._attempts.paths(task_id).numbers():
                if (await self.inspect(task_id, number)).state is RunState.RUNNING:
                    raise passing("still_running", f"attempt {number} of {task_id} runs")
                await self._finished((task_id, number))
            await asyncio.to_thread(self._attempts.forget_task, task_id, keep_logs=keep_logs)
            self._files.remove(task_id)

    # -- beside the task --------------------------------------------------------------------------

    async def logs(
        self,
        task_id: TaskId,
        *,
        streams: tuple[str, ...],
        tail: int | None,
        since_ms: int,
        follow: bool,
    ) -> AsyncIterator[LogChunk]:
        if not SAFE_ID.fullmatch(task_id):
            return
        directory = self._attempts.paths(task_id).logs
        reader = await asyncio.to_thread(LogReader, directory, streams, tail, since_ms)
        try:
            while True:
                is_last_look = not follow or not await self._is_running(task_id)
                while chunks := await asyncio.to_thread(reader.read, READ_BYTES):
                    for chunk in chunks:
                        yield chunk
                if is_last_look:
                    return
                await asyncio.sleep(FOLLOW_POLL_MS / 1000)
        except OSError as error:
            raise refused(error) from error
        finally:
            reader.close()

    async def _is_running(self, task_id: TaskId) -> bool:
        numbers = self._attempts.paths(task_id).numbers()
        if not numbers:
            return False
        return (await self.inspect(task_id, numbers[-1])).state is RunState.RUNNING

    @host_errors
    async def execute(
        self, task_id: TaskId, attempt: int, argv: tuple[str, ...], timeout_ms: int
    ) -> ExecResult:
        order = orders.beside_order(await self._order_of((task_id, attempt)), argv)
        return await run_beside(order, timeout_ms, f"{task_id}#{attempt} exec")

    @host_errors
    async def stats(self, task_id: TaskId, attempt: int) -> TaskStats:
        identity = (task_id, attempt)
        limit_bytes = first(await self._order_of(identity), "memory_limit_bytes")
        return await asyncio.to_thread(self._attempts.usage, identity, int(limit_bytes or "0"))

    @host_errors
    async def open_exec(self, task_id: TaskId, attempt: int, order: ExecOrder) -> Session:
        identity = (task_id, attempt)
        task_order = await self._order_of(identity)
        session = open_session(task_order, order, f"{task_id}#{attempt} exec")
        here = {one for one in self._sessions.get(identity, ()) if not one.is_over}
        self._sessions[identity] = here | {session}
        if self._watch_claimed(identity) is None:  # it has ended while this one started
            self._end_sessions(identity)
        return session

    def _end_sessions(self, identity: Identity) -> None:
        """The kernel ends those in the attempt's groups; but one may be on its way there, or there
        are none."""
        for session in self._sessions.pop(identity, ()):
            session.kill()

    async def _order_of(self, identity: Identity) -> Order:
        """The order that the running attempt was started with, from its supervisor's memory."""
        seen = await self.inspect(*identity)
        known = self._attempts.look(identity)
        if seen.state is RunState.RUNNING and known is not None and known.claim is not None:
            try:
                fd = os.open(f"/proc/{known.claim.supervisor_pid}/fd/0", os.O_RDONLY)
                try:
                    return unpack(read_all(fd))
                finally:
                    os.close(fd)
            except OSError:
                pass  # it has ended just now
        raise lasting("not_running", f"attempt {identity[1]} of {identity[0]} does not run")

    async def give_up(self) -> None:
        """No group of this node is left: it will run no tasks any more. All must have ended."""
        await asyncio.to_thread(self._attempts.cgroups.remove_homes)

    async def reap(self, removed: Set[NodeId]) -> int:
        """As cube.ports.reaper.Reaper has it: of every data directory on this host."""
        known = {node_id for node_id in removed if SAFE_ID.fullmatch(node_id)} - {self._mark[1]}
        ended = await asyncio.to_thread(reap, self._mark[0], known, self._attempts.cgroups)
        self._files.reap(known)
        return ended

    # -- small things -----------------------------------------------------------------------------

    def _lock(self, task_id: TaskId) -> asyncio.Lock:
        """One start or removal of a task at a time. Kept only while somebody holds it."""
        lock = self._locks.get(task_id)
        if lock is None:
            lock = self._locks[task_id] = asyncio.Lock()
        return lock
