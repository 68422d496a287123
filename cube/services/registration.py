"""This node's facts in the cluster's state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cube.model.cluster import NodeFacts
from cube.model.commands import Body, RegisterNode
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.outcome import NodeRegistered, Rejected
from cube.ports.cluster import Proposed
from cube.services.leader_loop import Propose

RETRY_S = 0.5  # first pause when the cluster could not be told; doubles up to
RETRY_MAX_S = 5.0

_log = logging.getLogger(__name__)


class Registration:
    """The state says of this node what `facts` says: told at the start, and after each touch()."""

    def __init__(
        self, facts: Callable[[], NodeFacts], propose: Propose, may_begin: asyncio.Event
    ) -> None:
        """`may_begin`: `facts` is complete. (Without its drivers a node would be given nothing.)"""
        self._facts = facts
        self._may_begin = may_begin
        self._propose = propose
        self._touched = asyncio.Event()
        self._touched.set()
        self._registered = asyncio.Event()
        self._name = ""

    async def name(self) -> str:
        """As the cluster calls this node, once it is registered."""
        await self._registered.wait()
        return self._name

    def touch(self) -> None:
        """The facts may have changed."""
        self._touched.set()

    async def run(self) -> None:
        told: NodeFacts | None = None
        pause_s = RETRY_S
        await self._may_begin.wait()
        while True:
            await self._touched.wait()
            self._touched.clear()
            facts = self._facts()
            if facts == told:
                continue
            if await self._tell(RegisterNode(facts)):
                told = facts
                pause_s = RETRY_S
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RETRY_MAX_S)
                self._touched.set()

    async def _tell(self, body: Body) -> bool:
        try:
            proposed: Proposed = await self._propose(body, actor="node")
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("registration_failed cause=%s", error)
            return False
        match proposed.outcome:
            case NodeRegistered(name=name):
                _log.info("registered node=%s", name)
                self._name = name
                self._registered.set()
                return True
            case Rejected(reason=reason, message=message):
                _log.error("registration_refused reason=%s message=%s", reason, message)
                return False
            case outcome:
                raise AssertionError(f"a registration cannot end as {outcome!r}")
