"""A node without a vote follows the log: asks a voter for what comes next, and hands the answer to its
own log. The loop around cube.scheduler.following. Runs on every node; voters follow their leader."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from cube.model.errors import BadPacket, Unavailable
from cube.model.ids import NodeId
from cube.ports.clock import Clock
from cube.ports.cluster import LogRequest
from cube.ports.log import Ask, Log, Role
from cube.ports.remote import Redirected, RemoteNodes
from cube.scheduler.following import Result, Source, Sources
from cube.services.state_feed import StateFeed

# A voter answers after this long without news, so that its silence is noticed.
HOLD_MS = 1_000
LOOK_S = 0.25  # between looks whether this node has to follow, and whom
STEP_S = 0.005  # of a pause that ends when somebody here waits for an entry
# A voter that has heard no leader for this long may have been removed without knowing it.
LEADERLESS_MS = 2_000

_log = logging.getLogger(__name__)


class LogFollower:
    """`source` is whom this node follows at present, by HTTP address; None when nobody answers, or
    it has a leader of its own."""

    def __init__(
        self,
        node_id: NodeId,
        log: Log,
        feed: StateFeed,
        clock: Clock,
        remote: RemoteNodes,
        gossip_states: Callable[[], Mapping[NodeId, str]],
        told: Callable[[], Sequence[str]],
        on_obstacle: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`told`: HTTP addresses where nodes may answer, besides those that the state knows.
        `on_obstacle` gets the sentence that says why nobody is followed."""
        self._node_id = node_id
        self._log = log
        self._feed = feed
        self._clock = clock
        self._remote = remote
        self._gossip_states = gossip_states
        self._told = told
        self._on_obstacle = on_obstacle
        self._sources = Sources(node_id)
        self._next: Ask | None = None  # of the conversation with `source`
        self._is_more = False
        self._candidates_seen: list[Source] = []
        self._look_again_ms = 0
        self._leaderless_since_ms: int | None = None
        self._last_cause = ""
        self.source: str | None = None

    async def run(self) -> None:
        while True:
            choice = None
            if self._must_follow():
                is_awaited = self._is_more or self._log.is_awaited()
                now_ms = self._clock.monotonic_ms()
                begun = self._next is not None and self._next.snapshot > 0
                choice = self._sources.choose(
                    self._candidates(now_ms),
                    now_ms,
                    is_awaited=is_awaited,
                    keep=self.source if begun else None,
                )
            if choice is None:
                self.source = self._next = None
                await asyncio.sleep(LOOK_S)
            elif choice.at_ms > self._clock.monotonic_ms():
                await self._pause(choice.at_ms)
            else:
                await self._ask(choice.address)

    def _must_follow(self) -> bool:
        status = self._log.status()
        if status.fault or status.role is Role.LEADER:
            return False
        if status.role is Role.LEARNER:
            return True
        now_ms = self._clock.monotonic_ms()
        if status.leader is not None:
            self._leaderless_since_ms = None
        elif self._leaderless_since_ms is None:
            self._leaderless_since_ms = now_ms
        since_ms = self._leaderless_since_ms
        return since_ms is not None and now_ms - since_ms >= LEADERLESS_MS

    def _candidates(self, now_ms: int) -> list[Source]:
        """Some tenths of a second old: it is a pass over all nodes."""
        if now_ms < self._look_again_ms:
            return self._candidates_seen
        self._look_again_ms = now_ms + round(LOOK_S * 1000)
        status = self._log.status()
        voters = {voter.address for voter in status.voters}
        states = self._gossip_states()
        found: dict[str, Source] = {}
        for node in self._feed.state.nodes.values():
            if node.id != self._node_id:
                found[node.facts.http_address] = Source(
                    node.facts.http_address,
                    is_alive=states.get(node.id, "alive") == "alive",
                    is_leader=node.facts.raft_address == status.leader,
                    is_voter=node.facts.raft_address in voters,
                )
        for address in self._told():
            found.setdefault(address, Source(address, is_voter=False))
        self._candidates_seen = list(found.values())
        return self._candidates_seen

    async def _pause(self, until_ms: int) -> None:
        """Until then, or somebody waits here; in steps, for the sources may change as well."""
        left_s = (until_ms - self._clock.monotonic_ms()) / 1000
        await asyncio.sleep(min(left_s, STEP_S if left_s < LOOK_S else LOOK_S))

    async def _ask(self, address: str) -> None:
        ask = self._log.ask()
        going_on = self._next
        if address == self.source and going_on is not None and going_on.index == ask.index:
            ask = going_on
        request = LogRequest(
            node_id=self._node_id,
            was_member=self._node_id in self._feed.state.nodes,
            ask=ask,
            wait_ms=HOLD_MS,
        )
        self._is_more = False
        try:
            answer = await self._remote.log(address, request)
            taken = await self._log.take(address, answer)
        except Redirected as redirect:
            self._sources.on_redirect(address, redirect.leader, self._clock.monotonic_ms())
            self._lose(address, "")
        except (Unavailable, BadPacket) as error:
            self._sources.on_result(address, Result.FAILED, self._clock.monotonic_ms())
            self._lose(address, str(error))
        else:
            result = Result.FINE if taken.is_current else Result.STALE
            self._sources.on_result(address, result, self._clock.monotonic_ms())
            self._next, self._is_more = taken.next, taken.is_more
            if self.source != address:
                _log.info("following source=%s index=%d", address, taken.next.index)
                self.source, self._last_cause = address, ""

    def _lose(self, address: str, cause: str) -> None:
        if self.source == address:
            self.source = self._next = None
        if cause and cause != self._last_cause:
            _log.warning("follow_failed source=%s cause=%s", address, cause)
            self._last_cause = cause
            self._on_obstacle(f"following the log: {cause}")
