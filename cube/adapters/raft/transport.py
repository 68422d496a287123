"""Frames between members over TCP, on the library's poller and in its thread.

Every voter dials every other, a learner the leader, and each sends on the connection that it
dialled; what a peer sends arrives on the one that the peer dialled. So there is nothing to agree on
when two dial at once, and a peer that this member does not count on (a learner that forwards, a
leader that it has not heard of yet) is answered by dialling back: a guest.

With TLS both ends show a certificate and are who it says (X3); the hello names the same node, which
must be the one that is known at its address (S4). Without TLS anyone on this host can pose as a
member, so it listens and dials on loopback only.

It takes no utility commands and no observers (X2), refuses long frames (X4), flushes what a socket
did not take as soon as it can (L7), and outlives running out of descriptors (L8). Strangers cost
little: few at a time, the oldest making way; nothing long is taken from them; and their handshakes
get a share of each turn.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from cube.adapters.raft import wire
from cube.adapters.raft.inbound import Inbound
from cube.adapters.raft.library import POLL_ERROR, POLL_READ, Message, Peer, Poller, monotonic
from cube.adapters.raft.links import DIAL_RETRY_MAX_S, Link
from cube.adapters.raft.names import Names
from cube.adapters.raft.peer_tls import PeerTls, admit, check_contexts
from cube.adapters.raft.sockets import is_everywhere, is_loopback, resolve, split_address, tune
from cube.adapters.raft.streams import TlsStream
from cube.model.errors import BadConfig, BadPacket, ConfigError, Unavailable
from cube.model.ids import NodeId
from cube.ports.log import LEARNERS_MAX

logger = logging.getLogger(__name__)

# Peers not in the configuration that are answered: learners that forward, leaders unknown here,
# members once removed.
GUESTS_MAX = LEARNERS_MAX + 8
# Accepted and not introduced. One that is refused here for want of room is dialled again; half of
# them in a handshake are some 10 MiB.
STRANGERS_MAX = 256
# The kernel keeps as many more for us, in the order they came.
BACKLOG = 256
ACCEPTS_PER_TURN_MAX = 16
# A handshake costs one or two milliseconds. Beyond this share of a turn they wait for the next
# one: messages and heartbeats come between.
SHAKE_S_PER_TURN_MAX = 0.005
# What strangers did wrong is counted, and told once in a while.
REFUSALS_TELL_S = 10.0


class PeerTransport:
    """The library's transport interface (camelCase) and what our overrides need besides.

    `on_peer_silent(peer)` is called when the connection that a peer dialled closes: the quickest
    sign of a dead process.
    """

    ready = True

    def __init__(
        self,
        address: str,
        cluster: str,
        tls: PeerTls | None = None,
        listen_at: str | None = None,
    ) -> None:
        if tls is not None:
            check_contexts(tls)
        self.address = address
        self.cluster = cluster
        self.tls = tls
        self.listen_at = listen_at or address
        self.names = Names()
        self.is_mute = False  # nothing is said or heard: see mute()
        self.is_transfer = False  # our vote requests follow a leader's own wish
        self.on_peer_silent: Callable[[Peer], None] = lambda _peer: None
        self.poller: Poller
        self._on_message: Callable[[Peer, Message], None] | None = None
        self._on_up: Callable[[Peer], None] | None = None
        self._on_down: Callable[[Peer], None] | None = None
        self._listener: socket.socket | None = None
        self._accepts_again_at = float("inf")
        self._links: dict[str, Link] = {}
        self._inbound: dict[str, Inbound] = {}
        self._strangers: dict[Inbound, None] = {}  # in the order they came
        self._unflushed: list[Link] = []
        self._shake_s = 0.0  # spent on handshakes in this turn
        self.refusals = 0  # since the start
        self._refusals_told = 0
        self._refusals_tell_at = 0.0

    # --- what the library calls

    def setOnMessageReceivedCallback(self, callback: Callable[[Peer, Message], None]) -> None:  # noqa: N802
        self._on_message = callback

    def setOnNodeConnectedCallback(self, callback: Callable[[Peer], None]) -> None:  # noqa: N802
        self._on_up = callback

    def setOnNodeDisconnectedCallback(self, callback: Callable[[Peer], None]) -> None:  # noqa: N802
        self._on_down = callback

    def setOnReadonlyNodeConnectedCallback(self, _callback: object) -> None:  # noqa: N802
        """There are no observers."""

    def setOnReadonlyNodeDisconnectedCallback(self, _callback: object) -> None:  # noqa: N802
        """There are no observers."""

    def setOnUtilityMessageCallback(self, _message: str, _callback: object) -> None:  # noqa: N802
        """There are no utility commands (X2)."""

    def send(self, node: Peer, message: Message) -> bool:
        if self.is_transfer and message["type"] == "request_vote":
            message = {**message, "transfer": True}
        return self.send_frame(node, wire.encode(message))

    def destroy(self) -> None:
        self._on_message = self._on_up = self._on_down = None
        self.on_peer_silent = lambda _peer: None
        self.flush()
        for link in list(self._links.values()):
            self._drop(link)
        for inbound in [*self._inbound.values(), *self._strangers]:
            inbound.close()
        if self._listener is not None:
            self.poller.unsubscribe(self._listener.fileno())
            self._listener.close()
            self._listener = None

    # --- what our own overrides call

    def listen(self, poller: Poller) -> None:
        """Peers can connect. Raises BadConfig for an address that will not do, Unavailable when the
        port is taken."""
        self.poller = poller
        try:
            family, place = resolve(self.listen_at)
        except OSError as error:
            raise Unavailable(f"cannot listen on {self.listen_at}: {error}") from None
        if self.tls is None and not is_loopback(place):
            problem = f"{self.listen_at} is not a loopback address"
            hint = "without TLS nodes talk on one host only"
            raise BadConfig([ConfigError("bind.raft", problem, hint)])
        if is_everywhere(self.address):
            problem = f"{self.address} is no address that other nodes can dial"
            raise BadConfig([ConfigError("bind.advertise", problem, "say which one they can")])
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise Unavailable(f"cannot listen on {self.listen_at}: {error.strerror}") from None
        self._listener = listener
        poller.subscribe(listener.fileno(), self._on_acceptable, POLL_READ | POLL_ERROR)

    def add(self, peer: Peer) -> None:
        """`peer` is dialled until it is dropped."""
        link = self._links.get(peer.id)
        if link is None:
            self._links[peer.id] = Link(self, peer, is_guest=False)
        else:
            link.is_guest = False
            if link.is_up and self._on_up is not None:
                self._on_up(peer)

    def mute(self) -> None:
        """Nothing leaves this member from now on, not even what is about to be sent: its disk
        failed, and anything it said could be a promise that it cannot keep. What comes is dropped,
        too: there is nowhere to put it."""
        self.is_mute = True

    def unmute(self) -> None:
        self.is_mute = False

    def hang_up(self) -> None:
        """The peers see at once that this member is gone; it dials again."""
        for link in list(self._links.values()):
            if link.is_up:
                link.close()

    def part(self, peer: Peer) -> None:
        """`peer` is not dialled any more; while it keeps up a connection to us it is answered."""
        link = self._links.get(peer.id)
        if link is not None and peer.id in self._inbound:
            link.is_guest = True
        elif link is not None:
            self._drop(link)

    def recheck_peers(self) -> None:
        """Nobody stays connected who would not be let in now."""
        for inbound in list(self._inbound.values()):
            if inbound.peer is not None and not self._may_stay(inbound.node_id, inbound.peer):
                inbound.close()
        for link in list(self._links.values()):
            if not self._may_stay(link.node_id, link.peer):
                link.close()

    def _may_stay(self, node_id: NodeId | None, peer: Peer) -> bool:
        if self.tls is None or node_id is None:
            return True
        try:
            admit(self.tls, node_id, peer.id)
        except BadPacket as error:
            logger.warning("raft_peer_turned_out peer=%s reason=%s", peer.id, error)
            return False
        return True

    def drop(self, peer: Peer) -> None:
        link = self._links.get(peer.id)
        if link is not None:
            self._drop(link)
        inbound = self._inbound.get(peer.id)
        if inbound is not None:
            inbound.close()

    def send_frame(self, peer: Peer, frame: bytes) -> bool:
        """False when it certainly did not leave."""
        link = None if self.is_mute else self._links.get(peer.id)
        return link is not None and link.send(frame)

    def flush_later(self, link: Link) -> None:
        self._unflushed.append(link)

    def flush(self) -> None:
        """All that was sent has left, as far as the sockets take it: before the thread waits, for
        peers or for its disk."""
        if self._unflushed:
            links, self._unflushed = self._unflushed, []
            for link in links:
                link.flush()

    def pending_bytes(self, peer: Peer) -> int:
        link = self._links.get(peer.id)
        return link.pending_bytes if link is not None else 0

    def is_up(self, peer: Peer) -> bool:
        link = self._links.get(peer.id)
        return link is not None and link.is_up

    def is_heard(self, peer: Peer) -> bool:
        """`peer` has a connection to us."""
        return peer.id in self._inbound

    def dials(self, peer: Peer) -> bool:
        """It was added, and neither parted nor dropped since."""
        link = self._links.get(peer.id)
        return link is not None and not link.is_guest

    def is_dialling(self, peer: Peer) -> bool:
        """It is on its way up, or will be in this turn."""
        link = self._links.get(peer.id)
        if link is None or link.is_up:
            return False
        return link.sock is not None or link.next_dial <= monotonic()

    def next_wake(self) -> float:
        """When on_tick() has something to do, by the library's clock."""
        wakes = [link.next_wake() for link in self._links.values()]
        wakes += [stranger.hello_deadline for stranger in self._strangers]
        return min([*wakes, self._accepts_again_at])

    def on_tick(self, now: float) -> None:
        self._shake_s = 0.0
        for link in list(self._links.values()):
            link.on_tick(now)
        for stranger in [s for s in self._strangers if now >= s.hello_deadline]:
            stranger.close()
        if now >= self._accepts_again_at and self._listener is not None:
            self._accepts_again_at = float("inf")
            mask = POLL_READ | POLL_ERROR
            self.poller.subscribe(self._listener.fileno(), self._on_acceptable, mask)

    def hello(self, receiver: str) -> bytes:
        message = {
            "type": wire.HELLO,
            "sender": self.address,
            "receiver": receiver,
            "cluster": self.cluster,
        }
        if self.tls is not None:
            message["node"] = self.tls.node_id
        return wire.encode(message)

    # --- what connections report

    def shake(self, stream: TlsStream) -> bool:
        """True once its handshake is over; False while it waits for the peer, or for its turn: what
        has come stays in the socket then. Raises OSError."""
        if self._shake_s > SHAKE_S_PER_TURN_MAX:
            return False
        began = monotonic()
        try:
            return stream.shake()
        finally:
            self._shake_s += monotonic() - began

    def identify(self, stream: TlsStream) -> NodeId:
        """Who is at the other end. Raises BadPacket for a stranger and for a removed node."""
        assert self.tls is not None
        node_id = self.tls.peer_id(stream.connection)
        if self.tls.is_removed(node_id):
            raise BadPacket(f"node {node_id} was removed from the cluster")
        return node_id

    def on_hello(self, inbound: Inbound, message: Message) -> None:
        """The stranger is a peer from now on. Raises BadPacket when it is not one of ours."""
        if message["type"] != wire.HELLO or message["sender"] == self.address:
            raise BadPacket("not introduced")
        if message["receiver"] != self.address or message["cluster"] != self.cluster:
            raise BadPacket("meant for another member or cluster")
        sender: str = message["sender"]
        if self.tls is not None:
            if inbound.node_id is None or message.get("node") != inbound.node_id:
                raise BadPacket("it is not the node that its certificate says")
            admit(self.tls, inbound.node_id, sender)
        link = self._links.get(sender)
        if link is None:
            if sum(one.is_guest for one in self._links.values()) >= GUESTS_MAX:
                raise BadPacket("too many guests")
            try:
                split_address(sender)
            except OSError:
                raise BadPacket("an address that cannot be dialled") from None
            link = self._links[sender] = Link(self, Peer(sender), is_guest=True)
        self._strangers.pop(inbound, None)
        previous = self._inbound.pop(sender, None)
        if previous is not None:
            previous.close()
        inbound.peer = link.peer
        self._inbound[sender] = inbound
        if link.sock is None:
            link.next_dial = monotonic()  # it is there: no need to wait out the retry

    def on_message(self, peer: Peer, message: Message) -> None:
        if message["type"] == wire.HELLO:
            raise BadPacket("introduced twice")
        if self._on_message is not None and not self.is_mute:
            self._on_message(peer, message)

    def on_inbound_closed(self, inbound: Inbound) -> None:
        self._strangers.pop(inbound, None)
        peer = inbound.peer
        if peer is None or self._inbound.get(peer.id) is not inbound:
            return
        del self._inbound[peer.id]
        link = self._links.get(peer.id)
        if link is not None and link.is_guest:
            self._drop(link)
        self.on_peer_silent(peer)

    def on_refused(self, who: str, error: Exception) -> None:
        self.refusals += 1
        now = monotonic()
        if now >= self._refusals_tell_at:
            count = self.refusals - self._refusals_told
            logger.warning("raft_refused peer=%s count=%d error=%s", who, count, error)
            self._refusals_told = self.refusals
            self._refusals_tell_at = now + REFUSALS_TELL_S

    def on_link_up(self, link: Link) -> None:
        if self._on_up is not None:
            self._on_up(link.peer)

    def on_link_down(self, link: Link) -> None:
        if self._on_down is not None:
            self._on_down(link.peer)

    def _drop(self, link: Link) -> None:
        if self._links.get(link.peer.id) is link:
            del self._links[link.peer.id]
        link.close()

    def _on_acceptable(self, _descr: int, _events: int) -> None:
        for _ in range(ACCEPTS_PER_TURN_MAX):
            if self._listener is None or not self._accept(self._listener):
                return

    def _accept(self, listener: socket.socket) -> bool:
        """False when nobody waits, or none can be taken now."""
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            # Out of descriptors: look away for a moment, or poll() would spin on it.
            logger.warning("raft_accept_failed error=%s", error)
            self.poller.unsubscribe(listener.fileno())
            self._accepts_again_at = monotonic() + DIAL_RETRY_MAX_S
            return False
        try:
            sock.setblocking(False)
            tune(sock)
        except OSError:  # gone again
            sock.close()
            return True
        while len(self._strangers) >= STRANGERS_MAX:
            # Who means well is done in a moment; who has been here longest does not.
            next(iter(self._strangers)).close()
        self._strangers[Inbound(self, sock)] = None
        return True
