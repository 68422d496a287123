"""What is secret and made on request: API tokens, join tokens, gossip keys. ports.cluster.TokenDesk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cube.model.cluster import ClusterState
from cube.model.commands import InstallGossipKey, RotateJoinToken
from cube.model.errors import BadPacket, Unavailable
from cube.model.trust import (
    JOIN_SECRET_BYTES,
    KEY_BYTES,
    TOKEN_ID_CHARS,
    ApiToken,
    GossipKey,
    JoinToken,
    key_id,
    secret_hash,
)
from cube.ports.trust import Certificates
from cube.services.enrolment import JOIN_TOKEN_PURPOSE
from cube.services.keyring import GOSSIP_PURPOSE, Keyring, OpenEnvelope, SealEnvelope

RandomBytes = Callable[[int], bytes]


class TokenDesk:
    """A request that is repeated under the same key must get the secret of the first time, on
    whichever node: then it is derived from the cluster's key, which all nodes have."""

    def __init__(
        self,
        state: Callable[[], ClusterState],
        keyring: Keyring,
        certificates: Certificates,
        open_envelope: OpenEnvelope,
        seal_envelope: SealEnvelope,
        random_bytes: RandomBytes,
    ) -> None:
        self._state = state
        self._keyring = keyring
        self._certificates = certificates
        self._open_envelope = open_envelope
        self._seal_envelope = seal_envelope
        self._random_bytes = random_bytes

    def _secret(self, purpose: bytes, seed: str | None, length: int) -> bytes:
        if seed is None:
            return self._random_bytes(length)
        key = self._keyring.known.cluster_key
        return hashlib.blake2b(seed.encode(), digest_size=length, key=key, person=purpose).digest()

    def api_token(self, seed: str | None) -> ApiToken:
        id_ = self._secret(b"cube-token-id", seed, TOKEN_ID_CHARS // 2).hex()
        return ApiToken(id_, self._secret(b"cube-token", seed, KEY_BYTES))

    def token_key(self, secret: bytes) -> bytes:
        return self._certificates.token_key(secret)

    def join_token(self) -> JoinToken:
        trust = self._state().trust
        if not trust.join_token_hash:
            raise Unavailable(
                "nobody can join by token; `cube cluster join-token --rotate` ends that"
            )
        try:
            secret = self._open_envelope(
                self._keyring.known.cluster_key, JOIN_TOKEN_PURPOSE, trust.join_token_sealed
            )
        except BadPacket:
            raise Unavailable(
                "the present join token cannot be read any more; `cube cluster join-token --rotate` "
                "makes a new one"
            ) from None
        return JoinToken(self._certificates.fingerprint(trust.ca_certificate_pem), secret)

    def new_join_token(self, seed: str | None) -> tuple[RotateJoinToken, JoinToken]:
        trust = self._state().trust
        if not trust.ca_certificate_pem:
            raise Unavailable("this cluster has no CA yet")
        secret = self._secret(b"cube-join-token", seed, JOIN_SECRET_BYTES)
        sealed = self._seal_envelope(self._keyring.known.cluster_key, JOIN_TOKEN_PURPOSE, secret)
        token = JoinToken(self._certificates.fingerprint(trust.ca_certificate_pem), secret)
        return RotateJoinToken(secret_hash(secret), sealed), token

    def new_gossip_key(self, seed: str | None) -> InstallGossipKey:
        secret = self._secret(b"cube-gossip-key", seed, KEY_BYTES)
        sealed = self._seal_envelope(self._keyring.known.cluster_key, GOSSIP_PURPOSE, secret)
        return InstallGossipKey(GossipKey(key_id(secret), sealed))
