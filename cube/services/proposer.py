"""Typed commands in, outcomes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cube.model.codec import encode_command
from cube.model.commands import Body, Command
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import CommandId
from cube.model.outcome import Rejected, RejectReason
from cube.ports.clock import Clock
from cube.ports.cluster import Proposed
from cube.ports.log import ENTRY_BYTES_MAX, Log, LogStatus
from cube.services.state_feed import AppliedEntry

PROPOSALS_MAX = 1_024  # in flight from this node: above it the log is stuck, and memory is not
RETRY_PAUSE_MS = 50  # when no change of leadership tells us sooner
ATTEMPT_MS_MIN = 100  # what is left of the deadline must be worth a round trip


class Proposer:
    """Proposes, and proposes again with the same command_id as soon as a leader is known, until
    `write_timeout_ms`: a lost leader costs its caller time, never a doubled command."""

    def __init__(
        self, log: Log, clock: Clock, write_timeout_ms: int, new_command_id: Callable[[], str]
    ) -> None:
        self._log = log
        self._clock = clock
        self._write_timeout_ms = write_timeout_ms
        self._new_command_id = new_command_id
        self._in_flight = 0
        self._leadership = asyncio.Event()

    def on_log_status(self, _status: LogStatus) -> None:
        """A leader came or went: waiting proposals try again at once."""
        event, self._leadership = self._leadership, asyncio.Event()
        event.set()

    async def propose(
        self,
        body: Body,
        *,
        actor: str = "",
        command_id: CommandId | None = None,
        digest: str = "",
        timeout_ms: int | None = None,
    ) -> Proposed:
        """See ports.cluster.Cluster.propose."""
        id_ = command_id or CommandId(self._new_command_id())
        data = encode_command(Command(id_, body, actor, digest))
        if len(data) > ENTRY_BYTES_MAX:
            refusal = Rejected(
                RejectReason.LIMIT, f"{len(data)} bytes, above the {ENTRY_BYTES_MAX} of one entry"
            )
            return Proposed(refusal, 0)
        if self._in_flight >= PROPOSALS_MAX:
            raise Unavailable(f"{PROPOSALS_MAX} writes are waiting here already; try again")
        self._in_flight += 1
        try:
            deadline_ms = self._clock.monotonic_ms() + (timeout_ms or self._write_timeout_ms)
            return await self._until(deadline_ms, data)
        finally:
            self._in_flight -= 1

    async def _until(self, deadline_ms: int, data: bytes) -> Proposed:
        unknown: OutcomeUnknown | None = None
        while True:
            leadership = self._leadership
            left_ms = deadline_ms - self._clock.monotonic_ms()
            try:
                committed = await self._log.propose(data, max(left_ms, ATTEMPT_MS_MIN))
            except OutcomeUnknown as error:
                unknown = error
                failure: OutcomeUnknown | Unavailable = error
            except Unavailable as error:
                failure = unknown or error
            else:
                applied = committed.result
                assert isinstance(applied, AppliedEntry)
                return Proposed(applied.outcome, applied.index)
            left_ms = deadline_ms - self._clock.monotonic_ms()
            if left_ms < ATTEMPT_MS_MIN:
                raise failure
            try:
                async with asyncio.timeout(min(RETRY_PAUSE_MS, left_ms) / 1000):
                    await leadership.wait()
            except TimeoutError:
                pass
