"""How fast this member's Raft beats, and how much it keeps."""

from __future__ import annotations

import msgspec

from cube.adapters.raft import library
from cube.adapters.raft.journal import SEGMENT_BYTES
from cube.ports.log import ENTRY_BYTES_MAX

# The library cuts a command into chunks when it is at least as long as a batch, and can mark the
# last chunk twice (finding L6). No command of ours reaches this length, so it never does.
APPEND_BATCH_BYTES_MAX = ENTRY_BYTES_MAX + 1024
# A leader that a majority has not answered for this long steps down (L2; the library's 30 s would
# leave a partitioned leader in office). Counted from the last answer of each voter.
LEADER_FALLBACK_MS = 1500


class RaftSettings(msgspec.Struct, frozen=True):
    """Invariant (checked): 3 × heartbeat < election_min < election_max ≤ 3 s.

    A leader whose process dies is noticed by its closed connections, long before the election
    timeout; the timeout is for hosts that vanish or hang, and below 0.3 s a busy interpreter's own
    pauses would start elections.
    """

    heartbeat_ms: int = 150
    election_min_ms: int = 600
    election_max_ms: int = 1_200
    # Entries applied since the last snapshot before the next one is taken; a member adds up to half
    # of it, by its address, so that not all of them stop to do it at the same entry.
    snapshot_every: int = 10_000
    # Entries kept behind a snapshot, so that a member which was away for a moment needs none.
    snapshot_tail: int = 1_000
    # A file of the journal. What a snapshot covers is given back in whole files.
    segment_bytes: int = SEGMENT_BYTES
    # True: fdatasync before anything is acknowledged. False survives kill -9, not a power cut.
    fsync: bool = True

    def __post_init__(self) -> None:
        if not (0 < 3 * self.heartbeat_ms < self.election_min_ms < self.election_max_ms <= 3_000):
            raise ValueError("need 3 × heartbeat_ms < election_min_ms < election_max_ms ≤ 3000")
        if self.snapshot_every < 2 or self.snapshot_tail < 1 or self.segment_bytes < 1:
            raise ValueError("need snapshot_every ≥ 2, snapshot_tail ≥ 1 and segment_bytes ≥ 1")


def library_conf(settings: RaftSettings) -> object:
    """The settings of the library, as "How to bind it" in the analysis has them."""
    return library.make_conf(
        autoTick=False,
        appendEntriesUseBatch=False,
        commandsWaitLeader=False,
        dynamicMembershipChange=True,
        useFork=False,
        logCompactionSplit=False,
        appendEntriesPeriod=settings.heartbeat_ms / 1000,
        raftMinTimeout=settings.election_min_ms / 1000,
        raftMaxTimeout=settings.election_max_ms / 1000,
        leaderFallbackTimeout=LEADER_FALLBACK_MS / 1000,
        connectionTimeout=3.0,
        connectionRetryTime=0.5,
        appendEntriesBatchSizeBytes=APPEND_BATCH_BYTES_MAX,
    )
