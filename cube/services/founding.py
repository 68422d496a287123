"""What the first node of a cluster makes: its CA, its join token, the first operator's token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from cube.model.commands import InitTrust
from cube.model.errors import BadPacket
from cube.model.ids import ClusterId, NodeId
from cube.model.places import OPERATOR_TOKEN_FILE
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
    format_api_token,
    secret_hash,
)
from cube.ports.disk import Disk
from cube.ports.trust import Certificates
from cube.services.enrolment import CA, CA_KEY_PURPOSE, CERTIFICATE, JOIN_TOKEN_PURPOSE, KEY
from cube.services.keyring import SealEnvelope, first_gossip_key

FOUNDING = "founding.json"  # in the data directory, 0600: what the log has not got yet

RandomBytes = Callable[[int], bytes]


class Authority(Certificates, Protocol):
    def make_ca(self, cluster_id: ClusterId, key_pem: str, now_ms: int) -> str:
        """A CA's certificate, signed by its own key."""
        ...


class Founding(msgspec.Struct, frozen=True):
    """`command` goes into the log; the first node's own files are in its data directory already.
    `operator_token` None: the API of this cluster asks for none."""

    command: InitTrust
    join_token: JoinToken
    operator_token: ApiToken | None

    def __repr__(self) -> str:
        return "Founding()"


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
    *,
    has_tokens: bool = True,
    join_secret: bytes | None = None,
) -> Founding:
    """A CA, and on disk: the first node's key, CA and certificate, the operator's token, and the
    command until the log has it. Called anew after a crash it makes all of it anew: nothing leaves
    this host before the node's record names the cluster. The certificate is written last.
    `join_secret` None: a random one."""
    ca_key = authority.make_key()
    ca_pem = authority.make_ca(cluster_id, ca_key, now_ms)
    key = authority.make_key()
    identity = NodeIdentity(cluster_id, NodeRole.NODE, node_id)
    certificate = authority.issue(
        ca_pem, ca_key, authority.make_request(key), identity, names, now_ms
    )
    join_token = JoinToken(
        authority.fingerprint(ca_pem), join_secret or random_bytes(JOIN_SECRET_BYTES)
    )
    operator = make_api_token(random_bytes) if has_tokens else None
    command = InitTrust(
        ca_certificate_pem=ca_pem,
        ca_key_sealed=seal_envelope(keys.cluster_key, CA_KEY_PURPOSE, ca_key.encode()),
        join_token_hash=secret_hash(join_token.secret),
        gossip_key=first_gossip_key(keys, seal_envelope),
        operator=None
        if operator is None
        else TokenRecord(
            id=operator.id,
            hash=secret_hash(operator.secret),
            role=TokenRole.OPERATOR,
            description="made with the cluster",
            key=authority.token_key(operator.secret),
        ),
        join_token_sealed=seal_envelope(keys.cluster_key, JOIN_TOKEN_PURPOSE, join_token.secret),
    )
    disk.replace(FOUNDING, msgspec.json.encode(command))
    if operator is not None:
        disk.replace(OPERATOR_TOKEN_FILE, format_api_token(operator).encode() + b"\n")
    for name, pem in ((KEY, key), (CA, ca_pem), (CERTIFICATE, certificate)):
        disk.replace(name, pem.encode())
    return Founding(command, join_token, operator)


def pending(disk: Disk) -> InitTrust | None:
    """What this node has founded and the log may not have. Raises BadPacket for a damaged file."""
    data = disk.read(FOUNDING)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=InitTrust)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadPacket(f"{FOUNDING} in the data directory is damaged") from error


def forget_pending(disk: Disk) -> None:
    """The log has it."""
    disk.delete(FOUNDING)
