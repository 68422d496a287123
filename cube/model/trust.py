"""Who may do what, and what proves it: keys, tokens, certificates as values. Nothing here can
encrypt or sign; cube.adapters.trust does.

Secrets are bytes in structs whose repr does not show them. What enters the log is a hash (tokens)
or sealed with the cluster key (the CA's key, the gossip keys), which is never in the log.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re

import msgspec

from cube.model.ids import ClusterId, NodeId

KEY_BYTES = 32  # AES-256; also of an API token's secret
SHARED_SECRET_CHARS_MIN = 32  # of [cluster] secret_file: nobody may guess it offline
SHARED_SECRET_CHARS_MAX = 1_024
JOIN_SECRET_BYTES = 16  # 128 bits: never guessed through a rate-limited door
HASH_BYTES = 32  # SHA-256
TOKEN_KEY_BYTES = 32  # Ed25519: what tickets of an API token are checked with
TOKEN_ID_CHARS = 8  # hex; says which token, proves nothing
TOKENS_MAX = 1_000  # per cluster: people and pipelines, not tasks
GOSSIP_KEYS_MAX = 4  # the one in use, its successor, and the past one on its way out
REMOVED_NODES_MAX = 10_000  # as many as a cluster may have nodes (cube.statemachine.nodes)
DESCRIPTION_CHARS_MAX = 200
PEM_CHARS_MAX = 16_384
SEALED_BYTES_MAX = 4_096  # of a key in its envelope: a P-256 key is a tenth of it

NODE_CERTIFICATE_MS = 90 * 86_400_000
CA_CERTIFICATE_DAYS = 20 * 365
BACKDATE_MS = 3_600_000  # a node whose clock is behind must not find its certificate unborn

_JOIN_TOKEN = re.compile(r"CUBE-1-([0-9a-f]{64})-([0-9a-f]{32})")
_API_TOKEN = re.compile(r"cube_([0-9a-f]{8})_([0-9a-f]{64})")
_NODE_URI = re.compile(r"cube://([!-.0-~]{1,64})/([a-z]{1,16})/([!-.0-~]{1,64})")


class TokenRole(enum.StrEnum):
    """Who holds an API token. Each may do what those before it may."""

    VIEWER = "viewer"
    DEPLOYER = "deployer"
    OPERATOR = "operator"


class NodeRole(enum.StrEnum):
    """What a certificate says its holder is. Every agent is a node: Raft alone says who votes."""

    NODE = "node"


class TokenRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An API token without its secret. `expires_at_ms` is the leader's clock; None: never. `key`: what
    a ticket is checked with that the secret has signed; empty for a token of an older version."""

    id: str
    hash: bytes  # SHA-256 of the secret
    role: TokenRole
    created_at_ms: int = 0
    expires_at_ms: int | None = None
    description: str = ""
    key: bytes = b""

    def __repr__(self) -> str:
        return f"TokenRecord({self.id}, {self.role})"

    def is_expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms


class GossipKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A gossip key as the log has it: sealed with the cluster key. `id` is key_id() of it."""

    id: str
    sealed: bytes

    def __repr__(self) -> str:
        return f"GossipKey({self.id})"


class TrustState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the cluster agrees on. Writer: manager, but `removed_nodes`: apply of RemoveNode.

    Invariants: `gossip_in_use` is the id of one of `gossip_keys`, or there are none. The last of
    `gossip_keys` is the newest: while there are others, a rotation to it is under way. A removed id
    never comes back; the record says since when (leader's clock).
    """

    ca_certificate_pem: str = ""
    ca_key_sealed: bytes = b""
    join_token_hash: bytes = b""  # empty: nobody can join by token
    join_token_sealed: bytes = b""  # its secret, so that any node can print the token again
    gossip_keys: tuple[GossipKey, ...] = ()
    gossip_in_use: str = ""
    gossip_changed_index: int = 0  # of the entry that changed the keys last
    tokens: dict[str, TokenRecord] = {}
    removed_nodes: dict[NodeId, int] = {}

    def __repr__(self) -> str:
        return f"TrustState({len(self.tokens)} tokens, {len(self.gossip_keys)} gossip keys)"

    def is_removed(self, node_id: NodeId) -> bool:
        return node_id in self.removed_nodes


NO_TRUST = TrustState()


class NodeKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a node keeps for itself (0600) and hands to whom it lets join: the one secret that is
    not in the log, and the gossip keys, the one in use first."""

    cluster_key: bytes
    gossip_keys: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"NodeKeys({len(self.gossip_keys)} gossip keys)"

    def __post_init__(self) -> None:
        keys = (self.cluster_key, *self.gossip_keys)
        if not self.gossip_keys or len(self.gossip_keys) > GOSSIP_KEYS_MAX:
            raise ValueError(f"one to {GOSSIP_KEYS_MAX} gossip keys, not {len(self.gossip_keys)}")
        if any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"a key that has not {KEY_BYTES} bytes")


class NodeCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate as read. `fingerprint` is the SHA-256 of its DER, in hex."""

    cluster_id: ClusterId
    node_id: NodeId
    role: NodeRole
    serial: int
    fingerprint: str
    not_before_ms: int
    not_after_ms: int

    def renew_at_ms(self) -> int:
        """Half of its life is over: a failing renewal has the other half to be noticed."""
        born_ms = self.not_before_ms + BACKDATE_MS
        return born_ms + (self.not_after_ms - born_ms) // 2


class JoinToken(msgspec.Struct, frozen=True):
    """What the operator carries from one host to the next. `fingerprint`: SHA-256 of the CA's DER,
    in hex, checked before `secret` is sent."""

    fingerprint: str
    secret: bytes

    def __repr__(self) -> str:
        return f"JoinToken({self.fingerprint[:8]}…)"


class ApiToken(msgspec.Struct, frozen=True):
    id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"ApiToken({self.id})"


class NodeIdentity(msgspec.Struct, frozen=True):
    """What a certificate's subject alternative name says."""

    cluster_id: ClusterId
    role: NodeRole
    node_id: NodeId


def secret_hash(secret: bytes) -> bytes:
    """What is kept of a secret. It is random and long, so one round is enough."""
    return hashlib.sha256(secret).digest()


def secret_matches(secret: bytes, kept: bytes) -> bool:
    """In a time that does not depend on where they differ. Nothing matches an empty hash."""
    return len(kept) == HASH_BYTES and hmac.compare_digest(secret_hash(secret), kept)


def key_id(key: bytes) -> str:
    """A key's name: 8 hex digits that tell nothing about it."""
    return hashlib.blake2b(key, digest_size=4, person=b"cube-key-id").hexdigest()


def shared_join_secret(shared: bytes) -> bytes:
    """The join token's secret in a cluster whose hosts share `[cluster] secret_file`."""
    return hashlib.blake2b(shared, digest_size=JOIN_SECRET_BYTES, person=b"cube-join").digest()


def shared_envelope_key(shared: bytes) -> bytes:
    """What those hosts seal with what they say of themselves, before there is a CA."""
    return hashlib.blake2b(shared, digest_size=KEY_BYTES, person=b"cube-bootstrap").digest()


def format_join_token(token: JoinToken) -> str:
    """`CUBE-1-<sha256 of the CA>-<secret>`, all lower-case hex."""
    return f"CUBE-1-{token.fingerprint}-{token.secret.hex()}"


def parse_join_token(text: str) -> JoinToken:
    """Raises ValueError with a sentence that does not repeat the token."""
    text = text.strip()
    match = _JOIN_TOKEN.fullmatch(text)
    if match is not None:
        return JoinToken(match[1], bytes.fromhex(match[2]))
    if text.startswith("cube_"):
        raise ValueError("this is an API token; `cube cluster join-token` prints the join token")
    if re.match(r"CUBE-(?!1-)\d+-", text):
        raise ValueError("this join token is of another version of Cube")
    if text.startswith("CUBE-1-"):
        length = len("CUBE-1-") + 2 * HASH_BYTES + 1 + 2 * JOIN_SECRET_BYTES
        problem = f"it has {len(text)} characters, not {length}" if len(text) != length else (
            "only 0-9, a-f and - may follow CUBE-1-"
        )  # fmt: skip
        raise ValueError(f"this join token is damaged: {problem}; copy the whole of it again")
    raise ValueError("a join token begins with CUBE-1-; `cube cluster join-token` prints it")


def format_api_token(token: ApiToken) -> str:
    return f"cube_{token.id}_{token.secret.hex()}"


def parse_api_token(text: str) -> ApiToken:
    """Raises ValueError with a sentence that does not repeat the token."""
    match = _API_TOKEN.fullmatch(text)
    if match is None:
        raise ValueError("an API token is cube_, 8 hex digits, _, 64 hex digits")
    return ApiToken(match[1], bytes.fromhex(match[2]))


def node_uri(identity: NodeIdentity) -> str:
    """`cube://<cluster>/node/<node id>`: what a certificate's subject alternative name holds."""
    return f"cube://{identity.cluster_id}/{identity.role}/{identity.node_id}"


def parse_node_uri(text: str) -> NodeIdentity:
    """Raises ValueError."""
    match = _NODE_URI.fullmatch(text)
    if match is None:
        raise ValueError("no name of a Cube node")
    return NodeIdentity(ClusterId(match[1]), NodeRole(match[2]), NodeId(match[3]))
