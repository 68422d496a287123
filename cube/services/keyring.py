"""The keys that this node keeps in its data directory, and how they follow the cluster's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from cube.model.commands import Body, RemoveGossipKey, UseGossipKey
from cube.model.errors import BadPacket, OutcomeUnknown, Unavailable
from cube.model.trust import KEY_BYTES, GossipKey, NodeKeys, TrustState, key_id
from cube.ports.cluster import MemberView
from cube.ports.disk import Disk
from cube.services.state_feed import StateFeed

KEYS = "keys.json"  # file in the data directory, 0600
ROTATION_LOOK_S = 2.0  # between looks at a rotation: statistics are as old
GOSSIP_PURPOSE = "gossip-key"  # of an envelope in the log

_log = logging.getLogger(__name__)

OpenEnvelope = Callable[[bytes, str, bytes], bytes]  # cluster key, purpose, envelope
SealEnvelope = Callable[[bytes, str, bytes], bytes]  # cluster key, purpose, secret


class Keyring:
    """The keys and their file, always equal. There are some before the node's record names a
    cluster: whoever is in a cluster has its keys."""

    def __init__(self, disk: Disk) -> None:
        """What the file says. Raises BadPacket when it is damaged."""
        self._disk = disk
        self.now: NodeKeys | None = None
        data = disk.read(KEYS)
        if data is not None:
            try:
                self.now = msgspec.json.decode(data, type=NodeKeys)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                # Without the cause: it might quote a key.
                raise BadPacket(f"{KEYS} in the data directory is damaged") from None

    @property
    def known(self) -> NodeKeys:
        """Raises Unavailable when there are none."""
        if self.now is None:
            raise Unavailable(
                f"this data directory belongs to a cluster and has no {KEYS}; put the file back, or "
                "start with an empty data directory as a new node"
            )
        return self.now

    def create(self, random_bytes: Callable[[int], bytes]) -> NodeKeys:
        """Keys of a new cluster; those of an attempt that a crash cut short are used again."""
        if self.now is None:
            self.take(
                NodeKeys(
                    cluster_key=random_bytes(KEY_BYTES), gossip_keys=(random_bytes(KEY_BYTES),)
                )
            )
        return self.known

    def take(self, keys: NodeKeys) -> None:
        """Durable before they are used."""
        self._disk.replace(KEYS, msgspec.json.encode(keys))
        self.now = keys


def first_gossip_key(keys: NodeKeys, seal_envelope: SealEnvelope) -> GossipKey:
    """What the node that made the cluster tells it, so that the key can be rotated."""
    secret = keys.gossip_keys[0]
    return GossipKey(key_id(secret), seal_envelope(keys.cluster_key, GOSSIP_PURPOSE, secret))


def cluster_gossip_keys(
    trust: TrustState, cluster_key: bytes, open_envelope: OpenEnvelope
) -> tuple[bytes, ...]:
    """The cluster's gossip keys, the one in use first; () when it has agreed on none. Raises
    BadPacket when one cannot be opened."""
    found: dict[str, bytes] = {}
    for key in trust.gossip_keys:
        secret = open_envelope(cluster_key, GOSSIP_PURPOSE, key.sealed)
        if len(secret) != KEY_BYTES or key_id(secret) != key.id:
            raise BadPacket(f"gossip key {key.id} is not what it says")
        found[key.id] = secret
    return tuple(sorted(found.values(), key=lambda secret: key_id(secret) != trust.gossip_in_use))


def rotation_step(
    trust: TrustState, applied: Iterable[int]
) -> UseGossipKey | RemoveGossipKey | None:
    """The next safe step of a rotation, once all who are alive have taken the last one; None while
    they have not, or there is nothing to do. `applied`: the applied index of each member alive.

    All that is needed is in the state: whoever leads goes on where the last leader died.
    """
    keys = trust.gossip_keys
    if len(keys) < 2 or any(index < trust.gossip_changed_index for index in applied):
        return None
    if trust.gossip_in_use != keys[-1].id:
        return UseGossipKey(keys[-1].id)
    return RemoveGossipKey(keys[0].id)


async def rotate_keys(
    feed: StateFeed,
    leads: Callable[[], bool],
    members: Callable[[], Sequence[MemberView]],
    propose: Callable[[Body], Awaitable[object]],
) -> None:
    """For ever: while this node leads, a rotation that somebody has begun goes on."""
    while True:
        await asyncio.sleep(ROTATION_LOOK_S)
        trust = feed.state.trust
        if len(trust.gossip_keys) < 2 or not leads():
            continue
        # Who is suspect or has not said what it applied is waited for; the dead are not.
        waited_for = [m for m in members() if m.state in ("alive", "suspect")]
        step = rotation_step(trust, (m.stats.applied_index if m.stats else 0 for m in waited_for))
        if step is None:
            continue
        try:
            await propose(step)
            _log.info("gossip_key_rotation step=%s key=%s", type(step).__name__, step.id)
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("gossip_key_rotation_waits cause=%s", error)


async def follow_keys(
    feed: StateFeed,
    keyring: Keyring,
    open_envelope: OpenEnvelope,
    use: Callable[[Sequence[bytes]], None],
) -> None:
    """For ever: what the cluster agrees on is in the file, and in use. A cluster that has agreed on
    nothing yet goes on with the keys of the file."""
    index, seen = -1, None
    while True:
        state = await feed.changed(index)
        index = state.index
        if state.trust is seen:
            continue
        seen = state.trust
        keys = keyring.known
        try:
            gossip_keys = cluster_gossip_keys(state.trust, keys.cluster_key, open_envelope)
            if gossip_keys and gossip_keys != keys.gossip_keys:
                keyring.take(msgspec.structs.replace(keys, gossip_keys=gossip_keys))
                use(gossip_keys)
                _log.info("gossip_keys_changed keys=%d", len(gossip_keys))
        except (BadPacket, Unavailable) as error:
            # The old keys serve as long as the others keep them; the next change is another try.
            _log.error("gossip_keys_not_taken cause=%s", error)
