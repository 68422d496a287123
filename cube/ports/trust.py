"""What joining by token needs, of the other side and of whoever can sign; and what requests that are
passed on are signed with."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

import msgspec

from cube.model.ids import NodeId
from cube.model.trust import NodeIdentity, NodeKeys


class EnrolRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`secret` is the join token's. `request_pem`: a signing request for the node's key. `names`:
    the hosts at which the node will be asked."""

    node_id: NodeId
    secret: bytes
    request_pem: str
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"EnrolRequest({self.node_id})"


class EnrolGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What makes a node one: its certificate, and the keys that every node has."""

    certificate_pem: str
    keys: NodeKeys

    def __repr__(self) -> str:
        return "EnrolGrant()"


class RefusalCode(enum.StrEnum):
    WRONG_SECRET = "wrong_secret"
    REMOVED = "removed"  # the node id was removed from the cluster
    TAKEN = "taken"  # the node id is a registered node's
    INVALID = "invalid"  # the request could never be right
    LIMITED = "limited"  # too many wrong secrets from there; later again
    NOT_READY = "not_ready"  # this node cannot sign yet; later again, or another


class EnrolRefusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: RefusalCode
    message: str

    @property
    def is_final(self) -> bool:
        """Asking again would not help."""
        return self.code not in (RefusalCode.LIMITED, RefusalCode.NOT_READY)


def bootstrap_purpose(nonce: str) -> str:
    """Of the envelope around a BootstrapView: an answer to this very question."""
    return f"bootstrap {nonce}"


class JoinRemote(Protocol):
    """Addresses are host:port. Each call is bounded in time and raises Unavailable."""

    async def ca(self, address: str) -> str:
        """The CA certificate that the peer says it has, as PEM. Nothing is known of the peer, and
        nothing is told to it."""
        ...

    async def enrol(
        self, address: str, ca_pem: str, request: EnrolRequest
    ) -> EnrolGrant | EnrolRefusal:
        """The request is sent only once the peer has shown a certificate of this CA that names a
        node. Raises Unavailable for a peer that has none, too."""
        ...


class Certificates(Protocol):
    """Keys and certificates as PEM. Everything raises BadPacket for what is none."""

    def make_key(self) -> str: ...

    def make_request(self, key_pem: str) -> str: ...

    def fingerprint(self, certificate_pem: str) -> str: ...

    def token_key(self, secret: bytes) -> bytes:
        """The public key that belongs to an API token: see TicketSigner."""
        ...

    def verify_issued(self, certificate_pem: str, ca_pem: str, key_pem: str) -> None:
        """The certificate is by this CA and for this key."""
        ...

    def node_of(self, certificate_pem: str) -> NodeIdentity:
        """Whom it names."""
        ...

    def issue(
        self,
        ca_pem: str,
        ca_key_pem: str,
        request_pem: str,
        identity: NodeIdentity,
        names: Sequence[str],
        now_ms: int,
    ) -> str:
        """A node's certificate."""
        ...


class TicketSigner(Protocol):
    """Signatures that only who has an API token's secret can make, and who has the public key that is
    made of it (Certificates.token_key) can check. Nothing is raised."""

    def sign(self, secret: bytes, message: bytes) -> bytes: ...

    def is_signed(self, key: bytes, message: bytes, signature: bytes) -> bool: ...
