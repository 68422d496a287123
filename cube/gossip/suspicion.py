"""How long a suspect has to say that it lives.

Source: Lifeguard §III-B (LHA-Suspicion); memberlist suspicion.go, util.go:suspicionTimeout.
"""

from __future__ import annotations

import math

from cube.gossip.settings import GossipSettings
from cube.model.ids import NodeId


class Suspicion:
    """One suspect's time. Starts long and shrinks with each further member that accuses it too:
    one accuser may itself be the sick one, several are not. Relayed accusations do not count."""

    def __init__(
        self, settings: GossipSettings, now_ms: int, live_count: int, accuser: NodeId
    ) -> None:
        scale = max(1.0, math.log10(max(1, live_count)))
        self._min_ms = round(settings.suspicion_mult * scale * settings.probe_ms)
        self._max_ms = round(settings.suspicion_max_mult * self._min_ms)
        others = live_count - 2  # those who could agree: not the suspect, not the first accuser
        self._wanted = settings.confirmations if others >= settings.confirmations else 0
        self._started_ms = now_ms
        self._accusers = {accuser}

    @property
    def deadline_ms(self) -> int:
        if self._wanted == 0:
            return self._started_ms + self._min_ms
        agreed = math.log(len(self._accusers)) / math.log(self._wanted + 1)
        span_ms = self._max_ms - round(agreed * (self._max_ms - self._min_ms))
        return self._started_ms + max(self._min_ms, span_ms)

    def confirm(self, accuser: NodeId) -> bool:
        """Whether it is one more accuser that counts, and so worth telling others."""
        if accuser in self._accusers or len(self._accusers) > self._wanted:
            return False
        self._accusers.add(accuser)
        return True

    def postpone(self, by_ms: int) -> None:
        """We stood still ourselves for so long: that is not the suspect's fault."""
        self._started_ms += by_ms
