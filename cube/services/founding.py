"""What the first node of a cluster makes: its CA, its join token, the first operator's token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from cube.model.commands import InitTrust
from cube.model.ids import ClusterId, NodeId
from cube.model.trust import (
    JOIN_SECRET_BYTES,
    KEY_BYTES,
    TOKEN_ID_CHARS,
    ApiToken,
    JoinToken,
    NodeIdentity,
    NodeKeys,
    NodeRole,
    TokenRecord,
    TokenRole,
    secret_hash,
)
from cube.ports.disk import Disk
from cube.ports.trust import Certificates
from cube.services.enrolment import CA, CA_KEY_PURPOSE, CERTIFICATE, KEY
from cube.services.keyring import SealEnvelope, first_gossip_key

RandomBytes = Callable[[int], bytes]


class Authority(Certificates, Protocol):
    def make_ca(self, cluster_id: ClusterId, key_pem: str, now_ms: int) -> str:
        """A CA's certificate, signed by its own key."""
        ...


class Founding(msgspec.Struct, frozen=True):
    """`command` goes into the log; the tokens are shown once, to who made the cluster; the first
    node's own files are in its data directory already."""

    command: InitTrust
    join_token: JoinToken
    operator_token: ApiToken

    def __repr__(self) -> str:
        return "Founding()"


def make_join_token(
    ca_pem: str, certificates: Certificates, random_bytes: RandomBytes
) -> JoinToken:
    """A new one for this CA. Its hash is for RotateJoinToken."""
    return JoinToken(certificates.fingerprint(ca_pem), random_bytes(JOIN_SECRET_BYTES))


def make_api_token(random_bytes: RandomBytes) -> ApiToken:
    """A new one. Its id and hash are for CreateToken."""
    return ApiToken(random_bytes(TOKEN_ID_CHARS // 2).hex(), random_bytes(KEY_BYTES))


def found(
    cluster_id: ClusterId,
    node_id: NodeId,
    names: Sequence[str],
    keys: NodeKeys,
    disk: Disk,
    authority: Authority,
    seal_envelope: SealEnvelope,
    random_bytes: RandomBytes,
    now_ms: int,
) -> Founding:
    """A CA, and the first node's key, CA and certificate on disk. Called anew after a crash it makes
    all of it anew: nothing has left this host before the command is in the log."""
    ca_key = authority.make_key()
    ca_pem = authority.make_ca(cluster_id, ca_key, now_ms)
    key = authority.make_key()
    identity = NodeIdentity(cluster_id, NodeRole.NODE, node_id)
    certificate = authority.issue(
        ca_pem, ca_key, authority.make_request(key), identity, names, now_ms
    )
    for name, pem in ((KEY, key), (CA, ca_pem), (CERTIFICATE, certificate)):
        disk.replace(name, pem.encode())
    join_token = make_join_token(ca_pem, authority, random_bytes)
    operator = make_api_token(random_bytes)
    command = InitTrust(
        ca_certificate_pem=ca_pem,
        ca_key_sealed=seal_envelope(keys.cluster_key, CA_KEY_PURPOSE, ca_key.encode()),
        join_token_hash=secret_hash(join_token.secret),
        gossip_key=first_gossip_key(keys, seal_envelope),
        operator=TokenRecord(
            id=operator.id,
            hash=secret_hash(operator.secret),
            role=TokenRole.OPERATOR,
            description="made with the cluster",
        ),
    )
    return Founding(command, join_token, operator)
