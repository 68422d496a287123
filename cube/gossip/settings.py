"""What an operator may tune about gossip, with the defaults that Cube is tested with.

Source: SWIM (Das, Gupta, Motivala 2002); Lifeguard (Dadgar, Phillips, Currey 2017); the names of
hashicorp/memberlist's config where it has one.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cube.model.errors import BadConfig, ConfigError


class GossipSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times for a local network. Invariant after check(): every relation in RELATIONS holds."""

    probe_ms: int = 1_000  # one member is probed per period
    probe_timeout_ms: int = 500  # then others are asked to probe it too
    indirect_probes: int = 3  # how many are asked
    suspicion_mult: float = 1.5  # shortest suspicion: this × max(1, log10 n) × probe_ms
    suspicion_max_mult: float = 6.0  # longest (nobody else agrees): this × the shortest
    confirmations: int = 2  # further accusers that bring the longest down to the shortest
    health_max: int = 8  # a sick node probes at most this + 1 times slower
    gossip_ms: int = 200  # while there is news, it is sent this often
    gossip_fanout: int = 3  # to this many members
    retransmit_mult: int = 3  # each member passes news on ceil(this × ln(n + 1)) times
    stats_retransmit_mult: int = 2  # statistics are soon out of date, so they cost less
    sync_ms: int = 30_000  # whole tables are compared with one random member
    reconnect_ms: int = 5_000  # one dead member or unanswered seed is tried
    exchange_timeout_ms: int = 3_000  # for one comparison of tables
    dead_gossip_ms: int = 30_000  # the newly dead still get news: they may not be dead
    reap_ms: int = 24 * 3_600_000  # the dead and the departed are forgotten
    pause_ms: int = 1_000  # a tick this late means that we stood still, not the others
    tick_ms: int = 100  # timers are not looked at more often

    def check(self) -> GossipSettings:
        """Itself. Raises BadConfig with every relation that does not hold."""
        errors = [
            ConfigError(f"gossip.{key}", problem)
            for key, problem, holds in RELATIONS
            if not holds(self)
        ]
        if errors:
            raise BadConfig(errors)
        return self


RELATIONS: tuple[tuple[str, str, Callable[[GossipSettings], bool]], ...] = (
    ("tick_ms", "must be at least 10", lambda s: s.tick_ms >= 10),
    (
        "probe_timeout_ms",
        "must be at least tick_ms",
        lambda s: s.probe_timeout_ms >= s.tick_ms,
    ),
    (
        # The second half of a period is for the indirect answers.
        "probe_timeout_ms",
        "must be at most two thirds of probe_ms",
        lambda s: s.probe_timeout_ms * 3 <= s.probe_ms * 2,
    ),
    (
        # Less, and a suspect has no time to hear of it and to answer.
        "suspicion_mult",
        "must leave a suspect at least five gossip_ms",
        lambda s: s.suspicion_mult * s.probe_ms >= 5 * s.gossip_ms,
    ),
    ("suspicion_max_mult", "must be at least 1", lambda s: s.suspicion_max_mult >= 1),
    ("confirmations", "must be 0 to 10", lambda s: 0 <= s.confirmations <= 10),
    ("indirect_probes", "must be 0 to 10", lambda s: 0 <= s.indirect_probes <= 10),
    ("health_max", "must be 0 to 16", lambda s: 0 <= s.health_max <= 16),
    ("gossip_ms", "must be at least tick_ms", lambda s: s.gossip_ms >= s.tick_ms),
    ("gossip_fanout", "must be 1 to 10", lambda s: 1 <= s.gossip_fanout <= 10),
    ("retransmit_mult", "must be 1 to 10", lambda s: 1 <= s.retransmit_mult <= 10),
    ("stats_retransmit_mult", "must be 1 to 10", lambda s: 1 <= s.stats_retransmit_mult <= 10),
    ("sync_ms", "must be at least probe_ms", lambda s: s.sync_ms >= s.probe_ms),
    ("reconnect_ms", "must be at least probe_ms", lambda s: s.reconnect_ms >= s.probe_ms),
    ("exchange_timeout_ms", "must be positive", lambda s: s.exchange_timeout_ms > 0),
    ("dead_gossip_ms", "must not be negative", lambda s: s.dead_gossip_ms >= 0),
    (
        # Forgotten sooner, a late rumour of its life would be believed again.
        "reap_ms",
        "must be above dead_gossip_ms and ten times sync_ms",
        lambda s: s.reap_ms > max(s.dead_gossip_ms, 10 * s.sync_ms),
    ),
    ("pause_ms", "must be at least twice tick_ms", lambda s: s.pause_ms >= 2 * s.tick_ms),
)
