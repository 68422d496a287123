"""The only module that imports PySyncObj, and the list of its private names that we rely on.

PySyncObj 0.3.17 is mended from outside, by overriding methods under their mangled names. A release
may drop any of them without notice: `missing_names()` says which, and a test fails when it is not
empty. For the type checker the library (which has no types) is described by the classes below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pysyncobj
import pysyncobj.syncobj
from pysyncobj.config import FAIL_REASON
from pysyncobj.monotonic import monotonic as _library_monotonic
from pysyncobj.poller import POLL_EVENT_TYPE
from pysyncobj.version import VERSION

type_checked_version = "0.3.17"

# An entry of the log as the library passes it about: command, index, term.
Entry = tuple[bytes, int, int]
Message = dict[str, Any]
# Called on the Raft thread with (result, reason); reason is one of the REASON_ constants.
Callback = Callable[[object, int], None]

if TYPE_CHECKING:

    class Peer:
        """A member, known by its address."""

        id: str

        def __init__(self, id: str) -> None: ...  # noqa: A002

    class Poller:
        def subscribe(
            self, descr: int, callback: Callable[[int, int], None], mask: int
        ) -> None: ...
        def unsubscribe(self, descr: int) -> None: ...
        def poll(self, timeout: float) -> None: ...

    class PipeNotifier:
        def notify(self) -> None: ...

    class SyncObj:
        """What we use of the library's class; `_SyncObj__x` is its private `__x`."""

        _poller: Poller
        _SyncObj__conf: Any
        _SyncObj__raftState: int
        _SyncObj__raftCurrentTerm: int
        _SyncObj__votedForNodeId: str | None
        _SyncObj__votesCount: int
        _SyncObj__raftLeader: Peer | None
        _SyncObj__raftElectionDeadline: float
        _SyncObj__transferInProgress: bool
        _SyncObj__raftLog: Any
        _SyncObj__raftCommitIndex: int
        _SyncObj__raftLastApplied: int
        _SyncObj__raftNextIndex: dict[Peer, int]
        _SyncObj__raftMatchIndex: dict[Peer, int]
        _SyncObj__lastResponseTime: dict[Peer, float]
        _SyncObj__leaderCommitIndex: int | None
        _SyncObj__noopIDx: int | None
        _SyncObj__otherNodes: set[Peer]
        _SyncObj__readonlyNodes: set[Peer]
        _SyncObj__connectedNodes: set[Peer]
        _SyncObj__newAppendEntriesTime: float
        _SyncObj__commandsWaitingCommit: dict[int, list[tuple[int, Callback]]]
        _SyncObj__commandsWaitingReply: dict[int, Callback]
        _SyncObj__commandsLocalCounter: int
        _SyncObj__pipeNotifier: PipeNotifier

        def __init__(
            self,
            selfNode: Peer,  # noqa: N803
            otherNodes: list[Peer],  # noqa: N803
            conf: object,
            nodeClass: type[Peer],  # noqa: N803
            transport: object,
        ) -> None: ...
        def _onTick(self, timeToWait: float = 0.0) -> None: ...  # noqa: N802, N803
        def _applyCommand(  # noqa: N802
            self,
            command: bytes,
            callback: object,
            commandType: int | None = None,  # noqa: N803
        ) -> None: ...
        def _checkCommandsToApply(self) -> None: ...  # noqa: N802
        def addOnTickCallback(self, callback: Callable[[], None]) -> None: ...  # noqa: N802
        def transferLeadership(  # noqa: N802
            self, node: Peer | None = None, callback: Callback | None = None
        ) -> None: ...
        def _SyncObj__onMessageReceived(self, node: Peer, message: Message) -> None: ...  # noqa: N802
        def _SyncObj__onNodeConnected(self, node: Peer) -> None: ...  # noqa: N802
        def _SyncObj__onNodeDisconnected(self, node: Peer) -> None: ...  # noqa: N802
        def _SyncObj__connectedToAnyone(self) -> bool: ...  # noqa: N802
        def _SyncObj__getEntries(  # noqa: N802
            self,
            fromIDx: int,  # noqa: N803
            count: int | None = None,
            maxSizeBytes: int | None = None,  # noqa: N803
        ) -> list[Entry]: ...
        def _SyncObj__applyLogEntries(self) -> bool: ...  # noqa: N802
        def _SyncObj__sendAppendEntries(self) -> None: ...  # noqa: N802
        def _SyncObj__tryLogCompaction(self) -> None: ...  # noqa: N802
        def _SyncObj__setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None: ...  # noqa: N802, N803
        def _SyncObj__setState(self, newState: int) -> None: ...  # noqa: N802, N803
        def _SyncObj__onLeaderChanged(self) -> None: ...  # noqa: N802
        def _SyncObj__onBecomeLeader(self) -> None: ...  # noqa: N802
        def _SyncObj__generateRaftTimeout(self) -> float: ...  # noqa: N802

else:
    from pysyncobj import SyncObj
    from pysyncobj.node import Node as Peer
    from pysyncobj.pipe_notifier import PipeNotifier
    from pysyncobj.poller import Poller

FOLLOWER: int = pysyncobj.syncobj._RAFT_STATE.FOLLOWER
CANDIDATE: int = pysyncobj.syncobj._RAFT_STATE.CANDIDATE
LEADER: int = pysyncobj.syncobj._RAFT_STATE.LEADER

REASON_SUCCESS: int = FAIL_REASON.SUCCESS
REASON_QUEUE_FULL: int = FAIL_REASON.QUEUE_FULL
REASON_MISSING_LEADER: int = FAIL_REASON.MISSING_LEADER
REASON_DISCARDED: int = FAIL_REASON.DISCARDED
REASON_NOT_LEADER: int = FAIL_REASON.NOT_LEADER
REASON_LEADER_CHANGED: int = FAIL_REASON.LEADER_CHANGED
REASON_REQUEST_DENIED: int = FAIL_REASON.REQUEST_DENIED
REASON_UNKNOWN_OUTCOME: int = FAIL_REASON.UNKNOWN_OUTCOME
REASONS = frozenset(
    (
        REASON_SUCCESS,
        REASON_QUEUE_FULL,
        REASON_MISSING_LEADER,
        REASON_DISCARDED,
        REASON_NOT_LEADER,
        REASON_LEADER_CHANGED,
        REASON_REQUEST_DENIED,
        REASON_UNKNOWN_OUTCOME,
    )
)
# "Result codes" of the analysis: with these it is certain that the command was not and will not
# be applied. Every other failure is unknown.
REASONS_NOT_APPLIED = frozenset(
    (
        REASON_QUEUE_FULL,
        REASON_MISSING_LEADER,
        REASON_DISCARDED,
        REASON_NOT_LEADER,
        REASON_REQUEST_DENIED,
    )
)

POLL_READ: int = POLL_EVENT_TYPE.READ
POLL_WRITE: int = POLL_EVENT_TYPE.WRITE
POLL_ERROR: int = POLL_EVENT_TYPE.ERROR

_METHODS = (
    "onMessageReceived",
    "onNodeConnected",
    "onNodeDisconnected",
    "connectedToAnyone",
    "getEntries",
    "applyLogEntries",
    "sendAppendEntries",
    "tryLogCompaction",
    "setCurrentTerm",
    "setState",
    "onLeaderChanged",
    "onBecomeLeader",
    "generateRaftTimeout",
)
_PROTECTED_METHODS = ("_onTick", "_applyCommand", "_checkCommandsToApply", "transferLeadership")
_ATTRIBUTES = (
    "conf",
    "raftState",
    "raftCurrentTerm",
    "votedForNodeId",
    "votesCount",
    "raftLeader",
    "raftElectionDeadline",
    "transferInProgress",
    "raftLog",
    "raftCommitIndex",
    "raftLastApplied",
    "raftNextIndex",
    "raftMatchIndex",
    "lastResponseTime",
    "leaderCommitIndex",
    "noopIDx",
    "otherNodes",
    "readonlyNodes",
    "connectedNodes",
    "newAppendEntriesTime",
    "commandsWaitingCommit",
    "commandsWaitingReply",
    "commandsLocalCounter",
    "pipeNotifier",
)


def make_conf(**options: object) -> object:
    """The library's settings object."""
    conf: object = pysyncobj.SyncObjConf(**options)
    return conf


def monotonic() -> float:
    """The library's clock (CLOCK_MONOTONIC_RAW). Its deadlines may be compared with no other."""
    now: float = _library_monotonic()
    return now


def listed_names() -> frozenset[str]:
    """The private names that are looked for, without their prefix."""
    return frozenset((*_METHODS, *_ATTRIBUTES))


def missing_names(instance: SyncObj) -> list[str]:
    """The private names of ours that this release of the library no longer has."""
    library_class = pysyncobj.SyncObj
    missing = [name for name in _METHODS if not hasattr(library_class, f"_SyncObj__{name}")]
    missing += [name for name in _PROTECTED_METHODS if not hasattr(library_class, name)]
    missing += [name for name in _ATTRIBUTES if not hasattr(instance, f"_SyncObj__{name}")]
    pipe = getattr(instance, "_SyncObj__pipeNotifier", None)
    missing += [
        name for name in ("_PipeNotifier__pipeR", "_PipeNotifier__pipeW") if not hasattr(pipe, name)
    ]
    return missing


def notifier_descriptors(instance: SyncObj) -> tuple[int, int]:
    """The two ends of the library's wake-up pipe, which it never closes itself."""
    pipe: Any = instance._SyncObj__pipeNotifier
    return pipe._PipeNotifier__pipeR, pipe._PipeNotifier__pipeW


def library_version() -> str:
    return str(VERSION)
