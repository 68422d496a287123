"""How a member proves to the others who it is, and what it wants to know of them (X3, S4).

This package encrypts and compares; which certificates there are, and which node belongs where, is
for whoever makes the log to say.
"""

from __future__ import annotations

import ssl
from typing import Protocol

from cube.model.errors import BadPacket
from cube.model.ids import NodeId


class PeerTls(Protocol):
    """Asked on the Raft thread, whenever two members connect and in every recheck_peers(): each
    method answers at once, from values that another thread may replace but never changes.

    A context is never changed once it was handed out: OpenSSL crashes when that happens while this
    thread makes a connection of it. A new certificate comes with a new context, and is shown by the
    connections made from then on. Required (asserted): TLS 1.3 only, certificates required, no
    session tickets.
    """

    @property
    def server(self) -> ssl.SSLContext: ...

    @property
    def client(self) -> ssl.SSLContext: ...

    @property
    def node_id(self) -> NodeId:
        """This member's own, as its certificate has it."""
        ...

    def peer_id(self, connection: ssl.SSLObject) -> NodeId:
        """Whose certificate the other end has shown, after the handshake. Raises BadPacket when it
        showed none, or one of another cluster."""
        ...

    def is_removed(self, node_id: NodeId) -> bool:
        """It was a node of this cluster, and is none any more."""
        ...

    def expected_id(self, address: str) -> NodeId | None:
        """The node that is known to have this Raft address; None when none is."""
        ...


def admit(tls: PeerTls, node_id: NodeId, address: str) -> None:
    """`node_id` may speak for `address`. Raises BadPacket for a removed node, and for another than
    the one known there: a host that came back without its disk is a new node, and must not vote
    under the address whose promises it has lost (S4)."""
    if tls.is_removed(node_id):
        raise BadPacket(f"node {node_id} was removed from the cluster")
    expected = tls.expected_id(address)
    if expected is not None and node_id != expected:
        raise BadPacket(f"{address} is node {expected}, not {node_id}")


def check_contexts(tls: PeerTls) -> None:
    """A bug in the wiring, not an attack: says so at once."""
    for context in (tls.server, tls.client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
    assert tls.server.num_tickets == 0, "a resumed session would show no certificate"
