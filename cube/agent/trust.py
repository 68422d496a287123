"""One node's part of the cluster's trust, wired: what it founds, gets by a token, shows and renews.

Who may join, and what a certificate says, is decided in cube.services.enrolment and founding.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from aiohttp import web

from cube.adapters import entropy
from cube.adapters.file_disk import FileDisk
from cube.adapters.trust.authority import X509Certificates, read_node_certificate
from cube.adapters.trust.envelope import open_envelope, seal_envelope
from cube.adapters.trust.http_join import HttpJoin
from cube.adapters.trust.tls import CERTIFICATE, NodeTls
from cube.config import Config
from cube.model.cluster import ClusterState
from cube.model.commands import Body
from cube.model.errors import BadConfig, BadPacket, ConfigError, OutcomeUnknown, Unavailable
from cube.model.ids import ClusterId, CommandId, NodeId
from cube.model.trust import (
    SHARED_SECRET_CHARS_MAX,
    SHARED_SECRET_CHARS_MIN,
    JoinToken,
    NodeCertificate,
    NodeIdentity,
    NodeRole,
    parse_join_token,
    shared_envelope_key,
    shared_join_secret,
)
from cube.ports.clock import Clock
from cube.ports.cluster import BootstrapView
from cube.services import founding
from cube.services.certificates import Renewal
from cube.services.enrolment import CA, KEY, NAMES_MAX, EnrolDesk, Enrolment
from cube.services.keyring import Keyring
from cube.services.state_feed import StateFeed
from cube.services.token_desk import TokenDesk

RETRY_S = 1.0
NONCE_BYTES = 16  # of a question whose answer must be new
MEANWHILE_CERTIFICATE, MEANWHILE_KEY = "meanwhile.crt", "meanwhile.key"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:.]+")


class NodeTrust:
    """Keys and certificates of this node's data directory, and what is done with them."""

    def __init__(
        self,
        config: Config,
        disk: FileDisk,
        keyring: Keyring,
        node_id: NodeId,
        clock: Clock,
        state: Callable[[], ClusterState],
    ) -> None:
        """Raises BadConfig for a secret file that cannot be used."""
        self.is_insecure = config.insecure
        self._config = config
        self._disk = disk
        self._keyring = keyring
        self._node_id = node_id
        self._clock = clock
        self._state = state
        self._certificates = X509Certificates()
        self._shared = _read_shared(config.cluster.secret_file)
        self.tls = NodeTls(Path(config.node.data_dir))
        self.tokens = TokenDesk(
            state, keyring, self._certificates, open_envelope, seal_envelope, entropy.secret
        )
        self.desk = EnrolDesk(
            state,
            keyring,
            self._certificates,
            open_envelope,
            clock,
            needs_token=not config.insecure,
        )

    # Names

    @property
    def names(self) -> tuple[str, ...]:
        return host_names(self._config)

    # What the API shows

    @property
    def has_certificate(self) -> bool:
        return self._disk.read(CERTIFICATE) is not None

    def show_meanwhile(self) -> None:
        """The API can listen: with the node's certificate, or, before it has one, with another that
        proves nothing. Raises Unavailable."""
        if self.is_insecure:
            return
        if self.has_certificate:
            self.tls.open(self.cluster_id())
            return
        key = self._certificates.make_key()
        made = self._certificates.make_ca(ClusterId("none yet"), key, self._clock.now_ms())
        self._disk.replace(MEANWHILE_KEY, key.encode())
        self._disk.replace(MEANWHILE_CERTIFICATE, made.encode())
        self.tls.show_meanwhile(MEANWHILE_CERTIFICATE, MEANWHILE_KEY)

    def open(self) -> ClusterId:
        """TLS works in both directions, in the cluster that this is. Raises Unavailable, BadPacket."""
        cluster_id = self.cluster_id()
        self.tls.open(cluster_id)
        for name in (MEANWHILE_KEY, MEANWHILE_CERTIFICATE):
            self._disk.delete(name)
        return cluster_id

    def cluster_id(self) -> ClusterId:
        return self.certificate().cluster_id

    def certificate(self) -> NodeCertificate:
        """This node's. Raises Unavailable, BadPacket."""
        data = self._disk.read(CERTIFICATE)
        if data is None:
            raise Unavailable(
                f"this data directory belongs to a cluster and has no {CERTIFICATE}; put the file "
                "back, or start with an empty data directory as a new node"
            )
        return read_node_certificate(data.decode("ascii", "replace"))

    def node_of(self, request: web.BaseRequest) -> NodeIdentity | None:
        """See cube.api.auth.Access."""
        shown = request.get_extra_info("ssl_object")
        if shown is None or not shown.getpeercert():
            return None
        return self.tls.peer(shown)

    # What Raft asks (cube.adapters.raft.peer_tls.PeerTls), on its own thread

    @property
    def server(self) -> ssl.SSLContext:
        return self.tls.raft_server

    @property
    def client(self) -> ssl.SSLContext:
        return self.tls.raft_client

    @property
    def node_id(self) -> NodeId:
        return self._node_id

    def peer_id(self, connection: ssl.SSLObject) -> NodeId:
        return self.tls.peer(connection).node_id

    def is_removed(self, node_id: NodeId) -> bool:
        return self._state().trust.is_removed(node_id)

    def expected_id(self, address: str) -> NodeId | None:
        nodes = self._state().nodes.values()
        return next((node.id for node in nodes if node.facts.raft_address == address), None)

    # Becoming a node

    def found(self, cluster_id: ClusterId) -> JoinToken:
        """This node is the first of the cluster: all that it needs is in its data directory. The
        token lets others in."""
        made = founding.found(
            cluster_id,
            self._node_id,
            self.names,
            self._keyring.create(entropy.secret),
            self._disk,
            self._certificates,
            seal_envelope,
            entropy.secret,
            self._clock.now_ms(),
            has_tokens=not self.is_insecure,
            join_secret=None if self._shared is None else shared_join_secret(self._shared),
        )
        return made.join_token

    async def tell(self, cluster_id: str, propose: Callable[..., Awaitable[object]]) -> None:
        """The cluster has agreed on what this node has founded, if it has founded it."""
        command = founding.pending(self._disk)
        if command is None:
            return
        while not self._state().trust.ca_certificate_pem:
            try:
                body: Body = command
                await propose(body, actor="node", command_id=CommandId(f"trust-{cluster_id}"))
            except (Unavailable, OutcomeUnknown):
                continue  # propose() has waited for a leader already
        founding.forget_pending(self._disk)

    async def enrol(
        self, addresses: Sequence[str], fingerprint: str, on_obstacle: Callable[[str], None]
    ) -> None:
        """This node has a certificate of the cluster at these addresses. `fingerprint` of its CA,
        where the shared secret said so. Raises Unavailable when it never will."""
        token = await self._join_token(addresses, fingerprint, on_obstacle)
        enrolment = Enrolment(
            self._disk,
            self._keyring,
            HttpJoin(is_insecure=self.is_insecure),
            self._certificates,
            on_obstacle,
        )
        if enrolment.is_done(token):
            return
        refusal = await enrolment.run(addresses, token, self._node_id, self.names)
        if refusal is not None:
            raise Unavailable(f"the cluster does not let this node in: {refusal.message}")

    async def _join_token(
        self, addresses: Sequence[str], fingerprint: str, on_obstacle: Callable[[str], None]
    ) -> JoinToken | None:
        if self.is_insecure:
            return None
        text = self._config.auth.join_token
        if text and not fingerprint:
            return parse_join_token(text)
        if self._shared is None:
            raise BadConfig(
                [
                    ConfigError(
                        "--token",
                        "joining a cluster needs its join token",
                        "`cube cluster join-token` on a node of the cluster prints it; "
                        "CUBE_JOIN_TOKEN and [auth] join_token work too",
                    )
                ]
            )
        if not fingerprint:
            fingerprint = await self._ask_fingerprint(addresses, on_obstacle)
        return JoinToken(fingerprint, shared_join_secret(self._shared))

    async def _ask_fingerprint(
        self, addresses: Sequence[str], on_obstacle: Callable[[str], None]
    ) -> str:
        while True:
            for address in addresses:
                try:
                    return (await self.look(address)).ca_fingerprint
                except Unavailable as error:
                    on_obstacle(f"joining: {error}")
            await asyncio.sleep(RETRY_S)

    async def look(self, address: str) -> BootstrapView:
        """What a node with the same shared secret says of itself. One that has a cluster says which
        CA, too. Raises Unavailable."""
        assert self._shared is not None, "bootstrap_expect goes with a secret file"
        nonce = entropy.secret(NONCE_BYTES).hex()
        view = await HttpJoin().bootstrap(address, self._shared, nonce)
        if view.cluster_id is not None and not view.ca_fingerprint:
            raise Unavailable(f"{address} is still making its cluster")
        return view

    @property
    def seal_shared(self) -> Callable[[str, bytes], bytes] | None:
        if self._shared is None:
            return None
        return partial(seal_envelope, shared_envelope_key(self._shared))

    def ca_fingerprint(self) -> str:
        """Of this node's cluster; empty before it has one."""
        ca_pem = self._disk.read(CA)
        if ca_pem is None:
            return ""
        return self._certificates.fingerprint(ca_pem.decode("ascii", "replace"))

    # Afterwards

    async def watch_removals(self, feed: StateFeed, on_removal: Callable[[], None]) -> None:
        """For ever: `on_removal` is called after nodes were removed from the cluster."""
        index, seen = -1, feed.state.trust.removed_nodes
        while True:
            state = await feed.changed(index)
            index = state.index
            if state.trust.removed_nodes is not seen:
                seen = state.trust.removed_nodes
                on_removal()

    def renewal(self) -> Renewal:
        return Renewal(self._clock, self.certificate, self._renew)

    async def _renew(self) -> None:
        """Every node can sign: this one signs for itself, and keeps its key. Raises Unavailable."""
        key = self._disk.read(KEY)
        if key is None:
            raise Unavailable(f"there is no {KEY} in the data directory")
        identity = NodeIdentity(self.cluster_id(), NodeRole.NODE, self._node_id)
        request = self._certificates.make_request(key.decode("ascii", "replace"))
        answer = self.desk.renew(identity, request, self.names)
        if not isinstance(answer, str):
            raise Unavailable(answer.message)
        self._disk.replace(CERTIFICATE, answer.encode())
        self.tls.renew()


def host_names(config: Config) -> tuple[str, ...]:
    """The hosts at which HTTPS clients find this node."""
    bind = config.bind
    own = [bind.advertise or bind.address, bind.address, "127.0.0.1", "localhost"]
    own += [config.node.name, socket.gethostname(), "::1"]
    valid = [name for name in own if _NAME.fullmatch(name) and name not in ("0.0.0.0", "::")]
    return tuple(dict.fromkeys(valid))[:NAMES_MAX]


def _read_shared(path: str) -> bytes | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            data = file.read(SHARED_SECRET_CHARS_MAX + 1).strip()
    except OSError as error:
        problem = f"cannot read {path}: {error.strerror or error}"
        raise BadConfig([ConfigError("cluster.secret_file", problem)]) from error
    if not SHARED_SECRET_CHARS_MIN <= len(data) <= SHARED_SECRET_CHARS_MAX:
        problem = (
            f"{path} has {len(data)} characters; a secret has {SHARED_SECRET_CHARS_MIN} to "
            f"{SHARED_SECRET_CHARS_MAX}"
        )
        hint = "cube cluster new-secret makes one for all hosts"
        raise BadConfig([ConfigError("cluster.secret_file", problem, hint)])
    return data


def check_cluster(found: ClusterId, wanted: str) -> None:
    """Raises BadPacket: the files of two data directories are mixed."""
    if found != wanted:
        raise BadPacket(
            f"{CERTIFICATE} is of cluster {found}, node.json of {wanted}: the data directory is a "
            "mixture of two"
        )
