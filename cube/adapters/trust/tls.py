"""TLS 1.3 between nodes: both sides show a certificate of the cluster's CA, and who they are is
read from it.

Python's TLS can take keys from files only; they are in the node's data directory (0600). After
renew() new connections show the new certificate; those that are open stay as they are.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from cube.adapters.trust.authority import identity_of
from cube.model.errors import BadPacket, Unavailable
from cube.model.ids import ClusterId, NodeId
from cube.model.places import CA_FILE, NODE_CERTIFICATE_FILE, NODE_KEY_FILE
from cube.model.trust import NodeIdentity

CERTIFICATE, KEY, CA = NODE_CERTIFICATE_FILE, NODE_KEY_FILE, CA_FILE  # in the data directory


class NodeTls:
    """One node's contexts, for as long as its process lives. They are there from the start, and
    good once the node has a certificate."""

    def __init__(self, directory: Path, cluster_id: ClusterId | None = None) -> None:
        """With a cluster as after open(), which see."""
        self._directory = directory
        self._cluster_id = cluster_id
        self.server = _context(ssl.PROTOCOL_TLS_SERVER)
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT)
        # A user's client shows no certificate; who shows one must show one of this cluster.
        self.api_server = _context(ssl.PROTOCOL_TLS_SERVER)
        self.api_server.verify_mode = ssl.CERT_OPTIONAL
        # For a thread beside the one that calls renew(): OpenSSL crashes when a context is changed
        # while another thread makes a connection of it, so these two are replaced as a whole.
        self.raft_server, self.raft_client = self.server, self.client
        if cluster_id is not None:
            self.open(cluster_id)

    def show_meanwhile(self, certificate: str, key: str) -> None:
        """Until open() the API shows the certificate of these files of the directory, which proves
        nothing: it says why the node is not ready to whoever asks without looking. Raises
        Unavailable."""
        try:
            self.api_server.load_cert_chain(self._directory / certificate, self._directory / key)
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(f"cannot use {self._directory / certificate}: {error}") from error

    def open(self, cluster_id: ClusterId | None) -> None:
        """The node's own certificate is shown, and the others' are verified. None: of whatever
        cluster the CA is (the node is about to learn which). Raises Unavailable when the files are
        not there or do not fit each other."""
        self._cluster_id = cluster_id
        try:
            for context in self._contexts():
                context.load_verify_locations(cafile=self._directory / CA)
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(f"cannot use {self._directory / CA}: {error}") from error
        self.renew()

    def _contexts(self) -> tuple[ssl.SSLContext, ...]:
        return self.server, self.client, self.api_server

    def renew(self) -> None:
        """New connections show the certificate that is in the file now. Raises Unavailable."""
        raft_server = _context(ssl.PROTOCOL_TLS_SERVER)
        raft_client = _context(ssl.PROTOCOL_TLS_CLIENT)
        try:
            for context in (raft_server, raft_client):
                context.load_verify_locations(cafile=self._directory / CA)
            for context in (*self._contexts(), raft_server, raft_client):
                context.load_cert_chain(self._directory / CERTIFICATE, self._directory / KEY)
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(f"cannot use {self._directory / CERTIFICATE}: {error}") from error
        self.raft_server, self.raft_client = raft_server, raft_client

    def peer(self, connection: ssl.SSLObject | ssl.SSLSocket) -> NodeIdentity:
        """Who is at the other end, whose certificate the handshake has verified. Raises BadPacket
        when it showed none, or is of another cluster."""
        if self._cluster_id is None:
            raise BadPacket("this node belongs to no cluster yet")
        return peer_identity(connection, self._cluster_id)


def peer_identity(connection: ssl.SSLObject | ssl.SSLSocket, cluster_id: ClusterId) -> NodeIdentity:
    """See NodeTls.peer."""
    shown = connection.getpeercert()
    if not shown:
        raise BadPacket("a peer without a certificate")
    uris = [
        str(pair[1])
        for pair in shown.get("subjectAltName", ())
        if len(pair) == 2 and pair[0] == "URI"
    ]
    identity = identity_of(uris)
    if identity.cluster_id != cluster_id:
        raise BadPacket("a certificate of another cluster")
    return identity


def admit(
    identity: NodeIdentity, is_removed: Callable[[NodeId], bool], expected: NodeId | None = None
) -> NodeId:
    """The peer may speak. To be asked after each handshake and, where a connection lasts, again
    when the state changes. Raises BadPacket for a removed node, and for another than expected."""
    if is_removed(identity.node_id):
        raise BadPacket(f"node {identity.node_id} was removed from the cluster")
    if expected is not None and identity.node_id != expected:
        raise BadPacket(f"this is node {identity.node_id}, not {expected}")
    return identity.node_id


def ca_only_context(ca_pem: str) -> ssl.SSLContext:
    """For a joiner: it has no certificate yet, and talks only to who has one of this CA."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise BadPacket("not a CA certificate") from error
    return context


def unverified_context() -> ssl.SSLContext:
    """For the one question that needs no trust: which CA do you have? Nothing secret is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Nodes are known by id, not by host name: the URI in the certificate says who it is.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # a session that is resumed would skip the look at the certificate
    return context
