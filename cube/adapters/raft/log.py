"""PySyncObjLog: the Log port. A thread that owns the Raft node, and the way in and out of it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cube.adapters.raft.commands import NO_OP, unstamped
from cube.adapters.raft.feeding import LogFeed, View, decode_answer
from cube.adapters.raft.library import (
    REASON_SUCCESS,
    REASONS_NOT_APPLIED,
    Callback,
    monotonic,
)
from cube.adapters.raft.membership import Change, Handover
from cube.adapters.raft.node import RaftNode
from cube.adapters.raft.peer_tls import PeerTls
from cube.adapters.raft.proposing import Submission
from cube.adapters.raft.settings import RaftSettings
from cube.model.errors import BadPacket, OutcomeUnknown, Unavailable
from cube.ports.log import (
    ENTRY_BYTES_MAX,
    Ask,
    Committed,
    LogStatus,
    Progress,
    Replica,
    Role,
    Taken,
    Voter,
)

logger = logging.getLogger(__name__)

# How long stop() tries to hand leadership over before it goes anyway.
STOP_HANDOVER_MS = 1_000
# A change or a handover is settled on the Raft thread at its deadline; this is for a thread that
# hangs.
BACKSTOP_MS = 1_000
# For one answer to be stored: a snapshot that it completes is loaded at once.
TAKE_MS = 60_000
# Between two attempts of a barrier while there is no leader.
BARRIER_RETRY_MS = 25
# Between two looks at the other members.
PROGRESS_S = 0.1
EXIT_CODE_BUG = 70  # EX_SOFTWARE

_REASONS = {
    1: "the queue is full",
    2: "no leader is known",
    3: "another leader's entry took its place",
    4: "the leader changed",
    5: "the leader was lost on the way",
    6: "refused",
    7: "the log moved on while it was on its way",
}


def end_process(error: BaseException) -> None:
    """The default for `on_fatal`. A member that could not apply an entry must not go on."""
    logging.shutdown()
    os._exit(EXIT_CODE_BUG)


class _Pending:
    """One caller that waits, settled once, from either side."""

    __slots__ = ("future", "log", "submission")

    def __init__(self, log: PySyncObjLog, future: asyncio.Future[object]) -> None:
        self.log = log
        self.future = future
        self.submission: Submission | None = None

    def settle(self, result: object, reason: int) -> None:
        """On the Raft thread. Delivered at the end of the turn, with all others of the turn."""
        self.log.deliver(self, result, reason)

    def expire(self, node: RaftNode) -> None:
        """On the caller's loop: its deadline has come."""
        assert self.submission is not None
        if self.future.done():
            return
        if node.queue.withdraw(self.submission):
            self.future.set_exception(Unavailable("it was still waiting at its deadline"))
        else:
            self.future.set_exception(OutcomeUnknown("no outcome before the deadline"))


class PySyncObjLog:
    """See cube.ports.log.Log for the contract of every method.

    `members` are the other founders, or for a joiner the members to listen to; they count only
    until the log says who votes. A new cluster of one has none. `joining` holds until the member's
    own addition is committed, across restarts. `stamp` is called on the Raft thread. `cluster`
    and `lineage` (which counts the first time only) keep members of different clusters, and of
    different histories of one, apart. `on_fatal` is called on the Raft thread when the
    replica or this adapter has a bug; the log is dead then.

    With `tls` every connection is TLS 1.3 with certificates on both sides, and a peer is who its
    certificate says. Without it the member listens on loopback only, and anyone on this host can
    pose as a peer. `listen_at` is where it listens (host:port) when that is not `address`, which
    the others dial: 0.0.0.0, or what a port is forwarded to.
    """

    def __init__(
        self,
        address: str,
        *,
        data_dir: Path,
        replica: Replica,
        stamp: Callable[[], int],
        members: tuple[str, ...] = (),
        settings: RaftSettings | None = None,
        joining: bool = False,
        cluster: str = "",
        on_fatal: Callable[[BaseException], None] = end_process,
        tls: PeerTls | None = None,
        listen_at: str | None = None,
        lineage: str = "",
    ) -> None:
        self._address = address
        self._data_dir = data_dir
        self._replica = replica
        self._stamp = stamp
        self._members = members
        self._settings = settings or RaftSettings()
        self._joining = joining
        self._cluster = cluster
        self._on_fatal = on_fatal
        self._tls = tls
        self._listen_at = listen_at
        self._lineage = lineage
        self._node: RaftNode | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopping = False
        self._is_dead = False
        self._calls: deque[Callable[[RaftNode], None]] = deque()
        self._pending: set[_Pending] = set()
        self._outcomes: list[tuple[_Pending, object, int]] = []
        self._watchers: list[Callable[[LogStatus], None]] = []
        self._status = LogStatus(
            role=Role.LEARNER,
            term=0,
            leader=None,
            commit_index=0,
            applied_index=0,
            voters=(),
            quorum=False,
            ready=False,
        )
        self._watched: tuple[object, ...] = ()
        self._committing = 0  # callers in _commit()
        self._ask = Ask(0, 0)
        self._feed = LogFeed(data_dir)
        self._fed: tuple[object, ...] = ()  # what those that follow have been told the news of
        self._progress: tuple[Progress, ...] = ()
        self._progress_next = 0.0
        self._configuration_seen: object = None
        self._voters: tuple[Voter, ...] = ()
        self._barrier_next: asyncio.Task[int | None] | None = None
        self._barrier_current: asyncio.Task[int | None] | None = None

    # --- life

    async def start(self) -> None:
        """Raises Unavailable (port or directory in use), BadConfig, BadPacket (damaged files)."""
        assert self._thread is None, "a log is started once"
        self._loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="cube-raft", daemon=True
        )
        self._thread.start()
        await started

    async def stop(self) -> None:
        thread = self._thread
        if thread is None:
            return
        if not self._is_stopping:
            if not self._is_dead and self._status.role is Role.LEADER:
                try:
                    await self.transfer_leadership(STOP_HANDOVER_MS)
                except (Unavailable, OutcomeUnknown) as error:
                    logger.info("raft_stopped_without_handover reason=%s", error)
            self._is_stopping = True
            self._wake()
        self._feed.close()
        await asyncio.to_thread(thread.join)
        node, self._node = self._node, None
        if node is not None:
            node.close_pipe()  # here, because wake() is called on this thread
        for task in (self._barrier_current, self._barrier_next):
            if task is not None:
                await asyncio.gather(task, return_exceptions=True)

    # --- the Log port

    async def propose(self, data: bytes, timeout_ms: int) -> Committed:
        if len(data) > ENTRY_BYTES_MAX:
            raise Unavailable(f"an entry is at most {ENTRY_BYTES_MAX} bytes, not {len(data)}")
        return await self._commit(unstamped(data), timeout_ms)

    async def barrier(self, timeout_ms: int) -> int:
        """One entry for all who ask while the one before it is on its way."""
        deadline = monotonic() + timeout_ms / 1000
        while (left_s := deadline - monotonic()) > 0:
            if self._barrier_next is None:
                self._barrier_next = asyncio.create_task(self._run_barrier(int(left_s * 1000)))
            waiting = self._barrier_next
            await asyncio.wait([waiting], timeout=left_s)
            if not waiting.done():
                break
            index = waiting.result()
            if index is not None:
                return index
            if self._node is None or self._is_stopping or self._is_dead:
                break
        raise Unavailable(self._status.fault or "no leader answered a barrier in time")

    def status(self) -> LogStatus:
        return self._status

    def watch(self, callback: Callable[[LogStatus], None]) -> None:
        self._watchers.append(callback)

    def ask(self) -> Ask:
        return self._ask

    def is_awaited(self) -> bool:
        return self._committing > 0

    async def feed(self, ask: Ask, wait_ms: int) -> bytes:
        self._living_node()
        return await self._feed.feed(ask, wait_ms)

    async def take(self, source: str, answer: bytes) -> Taken:
        decoded = decode_answer(answer)
        if self._status.fault:
            raise Unavailable(self._status.fault)

        def take(node: RaftNode, settle: Callback) -> None:
            try:
                settle(node.take(source, decoded), REASON_SUCCESS)
            except BadPacket as error:
                settle(error, REASON_SUCCESS)

        try:
            taken = await self._call(take, TAKE_MS)
        except OutcomeUnknown as error:
            raise Unavailable(f"an answer could not be stored: {error}") from None
        if isinstance(taken, BadPacket):
            raise taken
        assert isinstance(taken, Taken)
        return taken

    def progress(self) -> tuple[Progress, ...]:
        return self._progress

    async def add_voter(self, address: str, timeout_ms: int) -> None:
        await self._change(address, timeout_ms, is_addition=True)

    async def remove_voter(self, address: str, timeout_ms: int) -> None:
        if address == self._address:
            raise Unavailable("a leader cannot remove itself: transfer leadership first")
        await self._change(address, timeout_ms, is_addition=False)

    async def transfer_leadership(self, timeout_ms: int, to: str | None = None) -> None:
        deadline = monotonic() + timeout_ms / 1000

        def request(node: RaftNode, settle: Callback) -> None:
            node.request_handover(Handover(deadline, settle, to))

        await self._call(request, timeout_ms)

    # --- besides the port

    def recheck_peers(self) -> None:
        """Connections to nodes that were removed, or that belong to another address by now, are
        closed soon, and stay refused. To be called when that may have changed; from the loop that
        called start()."""
        self._calls.append(RaftNode.recheck_peers)
        self._wake()

    # --- for tests and operators

    async def compact(self) -> None:
        """A snapshot is under way."""
        self._calls.append(RaftNode.force_compaction)
        self._wake()

    # --- on the caller's loop

    async def _commit(self, command: bytes, timeout_ms: int) -> Committed:
        node = self._living_node()
        if self._status.fault:
            raise Unavailable(self._status.fault)
        pending = self._new_pending()
        pending.submission = Submission(command, pending.settle)
        if not node.queue.put(pending.submission):
            self._pending.discard(pending)
            raise Unavailable(_REASONS[1])
        node.wake()
        # A third of what asyncio.timeout() costs, and this is the way of every write.
        loop = pending.future.get_loop()
        deadline = loop.call_later(timeout_ms / 1000, pending.expire, node)
        self._committing += 1
        try:
            committed = await pending.future
        finally:
            deadline.cancel()
            self._committing -= 1
            self._pending.discard(pending)
        assert isinstance(committed, Committed)
        return committed

    async def _change(self, address: str, timeout_ms: int, *, is_addition: bool) -> None:
        deadline = monotonic() + timeout_ms / 1000

        def request(node: RaftNode, settle: Callback) -> None:
            node.request_change(Change(address, deadline, settle, is_addition=is_addition))

        await self._call(request, timeout_ms)

    async def _call(self, request: Callable[[RaftNode, Callback], None], timeout_ms: int) -> object:
        node = self._living_node()
        pending = self._new_pending()
        self._calls.append(lambda node: request(node, pending.settle))
        node.wake()
        try:
            async with asyncio.timeout((timeout_ms + BACKSTOP_MS) / 1000):
                return await pending.future
        except TimeoutError:
            raise OutcomeUnknown("no outcome before the deadline") from None
        finally:
            self._pending.discard(pending)

    async def _run_barrier(self, timeout_ms: int) -> int | None:
        """The index of a barrier entry committed after all who wait for it asked; None when there
        was no leader to ask. A barrier may be repeated at will: it changes nothing."""
        deadline = monotonic() + timeout_ms / 1000
        if self._barrier_current is not None:
            await asyncio.wait([self._barrier_current])
        self._barrier_current, self._barrier_next = self._barrier_next, None
        while True:
            left_ms = int((deadline - monotonic()) * 1000)
            try:
                return (await self._commit(NO_OP, max(left_ms, 1))).index
            except (Unavailable, OutcomeUnknown):
                if left_ms <= BARRIER_RETRY_MS or self._is_stopping or self._is_dead:
                    return None
            await asyncio.sleep(BARRIER_RETRY_MS / 1000)

    def _living_node(self) -> RaftNode:
        if self._node is None or self._is_stopping or self._is_dead:
            raise Unavailable("the log is not running")
        return self._node

    def _new_pending(self) -> _Pending:
        pending = _Pending(self, asyncio.get_running_loop().create_future())
        self._pending.add(pending)
        return pending

    def _wake(self) -> None:
        if self._node is not None:
            self._node.wake()

    def _on_outcomes(self, outcomes: list[tuple[_Pending, object, int]]) -> None:
        for pending, result, reason in outcomes:
            if pending.future.done():
                continue
            if reason == REASON_SUCCESS:
                pending.future.set_result(result)
            elif reason in REASONS_NOT_APPLIED:
                pending.future.set_exception(Unavailable(_REASONS[reason]))
            else:
                pending.future.set_exception(OutcomeUnknown(_REASONS[reason]))

    def _on_status(self, status: LogStatus) -> None:
        for watcher in self._watchers:
            watcher(status)

    def _on_thread_ended(self) -> None:
        """Nobody waits for ever: who was not settled is now."""
        for pending in list(self._pending):
            if pending.future.done():
                continue
            node, submission = self._node, pending.submission
            if node is not None and submission is not None and node.queue.withdraw(submission):
                pending.future.set_exception(Unavailable("the log is stopping"))
            else:
                pending.future.set_exception(OutcomeUnknown("the log is stopping"))

    # --- on the Raft thread

    def deliver(self, pending: _Pending, result: object, reason: int) -> None:
        self._outcomes.append((pending, result, reason))

    def _run(self, started: asyncio.Future[None]) -> None:
        try:
            node = RaftNode(
                self._address,
                members=self._members,
                directory=self._data_dir,
                replica=self._replica,
                stamp=self._stamp,
                settings=self._settings,
                joining=self._joining,
                cluster=self._cluster,
                tls=self._tls,
                listen_at=self._listen_at,
                lineage=self._lineage,
            )
            try:
                node.listen()
            except BaseException:
                node.close()
                node.close_pipe()
                raise
        except BaseException as error:  # noqa: BLE001 - start() raises it on the caller's side
            self._is_dead = True
            self._post(_set_exception, started, error)
            return
        self._node = node
        node.before_poll(lambda: self._publish(node))
        self._publish(node)
        self._post(_set_result, started)
        try:
            while not self._is_stopping:
                while self._calls:
                    self._calls.popleft()(node)
                node.turn()
        except Exception as error:  # a named boundary: bugs end the process
            logger.critical("raft_died error=%r", error, exc_info=True)
            self._is_dead = True
            self._on_fatal(error)
        self._is_dead = True
        try:
            node.close()
        finally:
            self._publish_outcomes()
            self._post(self._on_thread_ended)

    def _publish(self, node: RaftNode) -> None:
        """Status and outcomes are known to the caller's side, in this order."""
        if node.is_leader:
            role = Role.LEADER
        else:
            role = Role.VOTER if node.is_voter else Role.LEARNER
        if self._configuration_seen is not node.configuration:
            self._configuration_seen = node.configuration
            self._voters = tuple(Voter(a) for a in sorted(node.configuration.current))
        leader = node.leader
        status = LogStatus(
            role=role,
            term=node.term,
            leader=leader.id if leader is not None else None,
            commit_index=node.commit_index,
            applied_index=node.applied_index,
            voters=self._voters,
            quorum=node.hears_quorum(),
            ready=node.is_ready,
            fault=node.journal.fault,
            lineage=node.lineage,
        )
        self._status = status
        self._ask = node.ask()
        self._publish_view(node.view())
        now = monotonic()
        if not node.is_leader:
            self._progress = ()
            self._progress_next = now
        elif now >= self._progress_next:
            self._progress = node.progress()
            self._progress_next = now + PROGRESS_S
        self._publish_outcomes()
        watched = (
            role,
            status.term,
            status.leader,
            self._voters,
            status.quorum,
            status.ready,
            status.fault,
        )
        if watched != self._watched:
            if self._watched[:3] != watched[:3]:
                logger.info("raft_%s term=%d leader=%s", role, status.term, status.leader)
            self._watched = watched
            self._post(self._on_status, status)

    def _publish_view(self, view: View) -> None:
        """Those that follow this member are answered from it, and who waits is told of news."""
        self._feed.view = view
        if self._feed.is_awaited:
            fed = (view.commit_index, view.office, view.fault)
            if fed != self._fed:
                self._fed = fed
                self._post(self._feed.on_news)

    def _publish_outcomes(self) -> None:
        if self._outcomes:
            outcomes, self._outcomes = self._outcomes, []
            self._post(self._on_outcomes, outcomes)

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        """`function` runs on the caller's loop; nothing happens when that is gone. Never raises."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            logger.debug("raft_loop_closed")


def _set_result(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _set_exception(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
