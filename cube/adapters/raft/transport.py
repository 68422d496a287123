"""Frames between members over TCP, on the library's poller and in its thread.

Every voter dials every other, the leader its learners too, and each sends on the connection that it
dialled; what a peer sends arrives on the one that the peer dialled. So there is nothing to agree on
when two dial at once, and a leader that this member has not heard of yet (it is a learner, or was
away while the voters changed) is answered by dialling back: a guest.

It takes no utility commands and no observers (X2), refuses long frames (X4), flushes what a socket
did not take as soon as it can (L7), and outlives running out of descriptors (L8). It does not know
who speaks: until there is TLS it listens on loopback only.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import logging
import socket
from collections import deque
from collections.abc import Callable

from cube.adapters.raft import wire
from cube.adapters.raft.library import (
    POLL_ERROR,
    POLL_READ,
    POLL_WRITE,
    Message,
    Peer,
    Poller,
    monotonic,
)
from cube.adapters.raft.peer_tls import PeerTls
from cube.model.errors import BadConfig, BadPacket, ConfigError, Unavailable
from cube.ports.log import LEARNERS_MAX

logger = logging.getLogger(__name__)

# A peer that does not take its messages is cut off beyond this; it catches up when it is back.
PENDING_BYTES_MAX = 64 << 20
RECEIVE_BYTES = 256 << 10
# Per readiness event, so that one busy peer does not starve the others.
RECEIVE_BYTES_PER_EVENT_MAX = 2 << 20
# Peers not in the configuration that are answered: leaders unknown here, members once removed.
GUESTS_MAX = 8
# Voters, learners and some that are not introduced yet.
INBOUND_MAX = LEARNERS_MAX + 64
HELLO_DEADLINE_S = 3.0
DIAL_RETRY_MIN_S = 0.03
DIAL_RETRY_MAX_S = 0.5
DIAL_TIMEOUT_S = 2.0
# The kernel gives a connection up when what was sent is not acknowledged for this long.
UNACKNOWLEDGED_MS_MAX = 3_000
_GATHER_MAX = 64  # buffers per sendmsg, well under IOV_MAX


class _Inbound:
    """A connection that a peer dialled: we only read from it."""

    def __init__(self, transport: PeerTransport, sock: socket.socket) -> None:
        self.transport = transport
        self.sock = sock
        self.peer: Peer | None = None
        self.hello_deadline = monotonic() + HELLO_DEADLINE_S
        self.is_open = True
        self._buffer = bytearray()
        transport.poller.subscribe(sock.fileno(), self._on_ready, POLL_READ | POLL_ERROR)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.transport.poller.unsubscribe(self.sock.fileno())
            self.sock.close()
            self._buffer.clear()
            self.transport.on_inbound_closed(self)

    def _on_ready(self, _descr: int, events: int) -> None:
        if not self.is_open:
            return
        is_over = not self._receive() or bool(events & POLL_ERROR)
        try:
            self._deliver()
        except BadPacket as error:
            peer = self.peer.id if self.peer else "unknown"
            logger.warning("raft_bad_frame peer=%s error=%s", peer, error)
            is_over = True
        if is_over:
            self.close()

    def _receive(self) -> bool:
        """False once the peer is gone."""
        received = 0
        while received < RECEIVE_BYTES_PER_EVENT_MAX:
            try:
                data = self.sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._buffer += data
            received += len(data)
        return True

    def _deliver(self) -> None:
        """Every whole frame is handled. Raises BadPacket."""
        buffer, offset = self._buffer, 0
        prefix = wire.LENGTH.size
        while self.is_open and len(buffer) - offset >= prefix:
            (length,) = wire.LENGTH.unpack_from(buffer, offset)
            if length > wire.FRAME_BYTES_MAX:
                raise BadPacket(f"a frame of {length} bytes")
            end = offset + prefix + length
            if end > len(buffer):
                break
            message = wire.decode(buffer[offset + prefix : end])
            offset = end
            if self.peer is None:
                self.transport.on_hello(self, message)
            else:
                self.transport.on_message(self.peer, message)
        if self.is_open:
            del buffer[:offset]


class _Link:
    """A connection that we dial: we only send on it."""

    def __init__(self, transport: PeerTransport, peer: Peer, *, is_guest: bool) -> None:
        self.transport = transport
        self.peer = peer
        self.is_guest = is_guest
        self.sock: socket.socket | None = None
        self.is_up = False
        self.next_dial = monotonic()
        self._dial_retry = DIAL_RETRY_MIN_S
        self._dial_deadline = 0.0
        self._out: deque[memoryview] = deque()
        self.pending_bytes = 0
        self._wants_write = False

    def next_wake(self) -> float:
        if self.sock is None:
            return self.next_dial
        return float("inf") if self.is_up else self._dial_deadline

    def on_tick(self, now: float) -> None:
        if self.sock is None and now >= self.next_dial:
            self._dial(now)
        elif self.sock is not None and not self.is_up and now >= self._dial_deadline:
            self.close()

    def send(self, frame: bytes) -> bool:
        """False when it certainly did not leave."""
        if not self.is_up:
            return False
        if self.pending_bytes + len(frame) > PENDING_BYTES_MAX:
            logger.warning("raft_peer_stalled peer=%s", self.peer.id)
            self.close()
            return False
        self._out.append(memoryview(frame))
        self.pending_bytes += len(frame)
        if not self._wants_write:
            self._flush()
        return self.is_up

    def close(self) -> None:
        """Dials again after a while, unless it was dropped."""
        sock, self.sock = self.sock, None
        was_up, self.is_up = self.is_up, False
        if sock is not None:
            self.transport.poller.unsubscribe(sock.fileno())
            sock.close()
        self._out.clear()
        self.pending_bytes = 0
        self._wants_write = False
        self.next_dial = monotonic() + self._dial_retry
        self._dial_retry = min(2 * self._dial_retry, DIAL_RETRY_MAX_S)
        if was_up:
            self.transport.on_link_down(self)

    def _dial(self, now: float) -> None:
        self._dial_deadline = now + DIAL_TIMEOUT_S
        try:
            family, address = _resolve(self.peer.id)
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            logger.debug("raft_dial_failed peer=%s error=%s", self.peer.id, error)
            self.close()
            return
        self.sock = sock
        _tune(sock)
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self.close()
            return
        mask = POLL_READ | POLL_WRITE | POLL_ERROR
        self.transport.poller.subscribe(sock.fileno(), self._on_ready, mask)

    def _on_ready(self, _descr: int, events: int) -> None:
        sock = self.sock
        if sock is None:
            return
        if events & POLL_ERROR or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.close()
            return
        if events & POLL_WRITE and not self.is_up:
            self._on_connected(sock)
        elif events & POLL_WRITE:
            self._flush()
        if events & POLL_READ and self.sock is not None:
            self._expect_silence(sock)

    def _on_connected(self, sock: socket.socket) -> None:
        if sock.getsockname() == sock.getpeername():
            # Dialling a free ephemeral port on loopback can connect a socket to itself.
            self.close()
            return
        self.is_up = True
        self._dial_retry = DIAL_RETRY_MIN_S
        self.transport.poller.subscribe(sock.fileno(), self._on_ready, POLL_READ | POLL_ERROR)
        self.send(self.transport.hello(self.peer.id))
        if self.is_up:
            self.transport.on_link_up(self)

    def _expect_silence(self, sock: socket.socket) -> None:
        """The other end never sends here: readable means that it is gone, or not one of us."""
        try:
            sock.recv(1)
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    def _flush(self) -> None:
        sock = self.sock
        assert sock is not None
        while self._out:
            try:
                sent = sock.sendmsg(list(itertools.islice(self._out, _GATHER_MAX)))
            except BlockingIOError:
                break
            except OSError:
                self.close()
                return
            self.pending_bytes -= sent
            while sent:
                head = self._out[0]
                if sent < len(head):
                    self._out[0] = head[sent:]
                    break
                sent -= len(head)
                self._out.popleft()
        wants_write = bool(self._out)
        if wants_write != self._wants_write:
            self._wants_write = wants_write
            mask = POLL_READ | POLL_ERROR | (POLL_WRITE if wants_write else 0)
            self.transport.poller.subscribe(sock.fileno(), self._on_ready, mask)


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
        assert tls is None, "peers are not encrypted yet"
        self.address = address
        self.cluster = cluster
        self.listen_at = listen_at or address
        self.is_mute = False  # nothing is said or heard: see mute()
        self.is_transfer = False  # our vote requests follow a leader's own wish
        self.on_peer_silent: Callable[[Peer], None] = lambda _peer: None
        self.poller: Poller
        self._on_message: Callable[[Peer, Message], None] | None = None
        self._on_up: Callable[[Peer], None] | None = None
        self._on_down: Callable[[Peer], None] | None = None
        self._listener: socket.socket | None = None
        self._accepts_again_at = float("inf")
        self._links: dict[str, _Link] = {}
        self._inbound: dict[str, _Inbound] = {}
        self._strangers: set[_Inbound] = set()

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
        """Peers can connect. Raises BadConfig off loopback, Unavailable when the port is taken."""
        self.poller = poller
        family, address = _resolve(self.listen_at)
        if not ipaddress.ip_address(address[0]).is_loopback:
            problem = f"{self.listen_at} is not a loopback address"
            hint = "node-to-node traffic is not encrypted yet"
            raise BadConfig([ConfigError("bind.raft", problem, hint)])
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(INBOUND_MAX)
        except OSError as error:
            listener.close()
            raise Unavailable(f"cannot listen on {self.listen_at}: {error.strerror}") from None
        self._listener = listener
        poller.subscribe(listener.fileno(), self._on_acceptable, POLL_READ | POLL_ERROR)

    def add(self, peer: Peer) -> None:
        """`peer` is dialled until it is dropped."""
        link = self._links.get(peer.id)
        if link is None:
            self._links[peer.id] = _Link(self, peer, is_guest=False)
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

    def pending_bytes(self, peer: Peer) -> int:
        link = self._links.get(peer.id)
        return link.pending_bytes if link is not None else 0

    def is_up(self, peer: Peer) -> bool:
        link = self._links.get(peer.id)
        return link is not None and link.is_up

    def next_wake(self) -> float:
        """When on_tick() has something to do, by the library's clock."""
        wakes = [link.next_wake() for link in self._links.values()]
        wakes += [stranger.hello_deadline for stranger in self._strangers]
        return min([*wakes, self._accepts_again_at])

    def on_tick(self, now: float) -> None:
        for link in list(self._links.values()):
            link.on_tick(now)
        for stranger in [s for s in self._strangers if now >= s.hello_deadline]:
            stranger.close()
        if now >= self._accepts_again_at and self._listener is not None:
            self._accepts_again_at = float("inf")
            mask = POLL_READ | POLL_ERROR
            self.poller.subscribe(self._listener.fileno(), self._on_acceptable, mask)

    def hello(self, receiver: str) -> bytes:
        return wire.encode(
            {
                "type": wire.HELLO,
                "sender": self.address,
                "receiver": receiver,
                "cluster": self.cluster,
            }
        )

    # --- what connections report

    def on_hello(self, inbound: _Inbound, message: Message) -> None:
        """The stranger is a peer from now on. Raises BadPacket when it is not one of ours."""
        if message["type"] != wire.HELLO or message["sender"] == self.address:
            raise BadPacket("not introduced")
        if message["receiver"] != self.address or message["cluster"] != self.cluster:
            raise BadPacket("meant for another member or cluster")
        sender: str = message["sender"]
        link = self._links.get(sender)
        if link is None:
            if sum(one.is_guest for one in self._links.values()) >= GUESTS_MAX:
                raise BadPacket("too many guests")
            try:
                _resolve(sender)
            except OSError:
                raise BadPacket("an address that cannot be dialled") from None
            link = self._links[sender] = _Link(self, Peer(sender), is_guest=True)
        self._strangers.discard(inbound)
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

    def on_inbound_closed(self, inbound: _Inbound) -> None:
        self._strangers.discard(inbound)
        peer = inbound.peer
        if peer is None or self._inbound.get(peer.id) is not inbound:
            return
        del self._inbound[peer.id]
        link = self._links.get(peer.id)
        if link is not None and link.is_guest:
            self._drop(link)
        self.on_peer_silent(peer)

    def on_link_up(self, link: _Link) -> None:
        if self._on_up is not None:
            self._on_up(link.peer)

    def on_link_down(self, link: _Link) -> None:
        if self._on_down is not None:
            self._on_down(link.peer)

    def _drop(self, link: _Link) -> None:
        if self._links.get(link.peer.id) is link:
            del self._links[link.peer.id]
        link.close()

    def _on_acceptable(self, _descr: int, _events: int) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors: look away for a moment, or poll() would spin on it.
            logger.warning("raft_accept_failed error=%s", error)
            self.poller.unsubscribe(self._listener.fileno())
            self._accepts_again_at = monotonic() + DIAL_RETRY_MAX_S
            return
        sock.setblocking(False)
        _tune(sock)
        if len(self._strangers) + len(self._inbound) >= INBOUND_MAX:
            sock.close()
            return
        self._strangers.add(_Inbound(self, sock))


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS_MAX)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _resolve(address: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Where host:port is. Raises OSError."""
    host, _, port_text = address.rpartition(":")
    if not host or not port_text.isdigit() or not 0 < int(port_text) < 65536:
        raise OSError(f"{address!r} is not host:port")
    found = socket.getaddrinfo(host.strip("[]"), int(port_text), type=socket.SOCK_STREAM)
    family, _, _, _, place = found[0]
    return family, (str(place[0]), int(place[1]))
