"""A connection that we dial: we only send on it."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from typing import TYPE_CHECKING

from cube.adapters.raft.library import POLL_ERROR, POLL_READ, POLL_WRITE, Peer, monotonic
from cube.adapters.raft.peer_tls import admit
from cube.adapters.raft.sockets import is_loopback, tune
from cube.adapters.raft.streams import (
    STRANGER_RECEIVE_BYTES,
    PlainStream,
    Stream,
    TlsStream,
)
from cube.model.errors import BadPacket
from cube.model.ids import NodeId

if TYPE_CHECKING:
    from cube.adapters.raft.transport import PeerTransport

logger = logging.getLogger(__name__)

# A peer that does not take its messages is cut off beyond this; it catches up when it is back.
PENDING_BYTES_MAX = 64 << 20
# Shorter messages wait for the end of this step of the turn, and leave together.
FLUSH_AT_BYTES = 64 << 10
DIAL_RETRY_MIN_S = 0.03
DIAL_RETRY_MAX_S = 0.5
DIAL_TIMEOUT_S = 2.0
# While a host name is looked up.
NAME_RETRY_S = 0.02
HANDSHAKE_TIMEOUT_S = 3.0
# A link that broke sooner was probably refused: it is dialled less and less often.
STEADY_S = 1.0


class Link:
    """`node_id` is whose certificate the peer has shown; None before, and without TLS."""

    def __init__(self, transport: PeerTransport, peer: Peer, *, is_guest: bool) -> None:
        self.transport = transport
        self.peer = peer
        self.is_guest = is_guest
        self.sock: socket.socket | None = None
        self.node_id: NodeId | None = None
        self.is_up = False
        self.next_dial = monotonic()
        self._up_at = 0.0
        self._dial_retry = DIAL_RETRY_MIN_S
        self._dial_deadline = 0.0
        self._stream: Stream | None = None
        self._mask = 0

    @property
    def pending_bytes(self) -> int:
        """Sent, and not yet taken by the socket."""
        return self._stream.pending_bytes if self._stream is not None else 0

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
        """It leaves with the next flush(), or before. False when it certainly does not."""
        if not self.is_up:
            return False
        assert self._stream is not None
        pending_bytes = self._stream.pending_bytes + len(frame)
        if pending_bytes > PENDING_BYTES_MAX:
            logger.warning("raft_peer_stalled peer=%s", self.peer.id)
            self.close()
            return False
        self._stream.put(frame)
        if pending_bytes >= FLUSH_AT_BYTES:
            self.flush()
        else:
            self.transport.flush_later(self)
        return self.is_up

    def flush(self) -> None:
        """What the socket takes has left."""
        stream = self._stream
        if stream is None or not self.is_up or self._mask & POLL_WRITE:
            return  # or the poller says when there is room
        try:
            stream.flush()
        except OSError:
            self.close()
        else:
            self._watch(stream)

    def close(self) -> None:
        """Dials again after a while, unless it was dropped."""
        sock, self.sock = self.sock, None
        was_up, self.is_up = self.is_up, False
        if sock is not None:
            self.transport.poller.unsubscribe(sock.fileno())
            sock.close()
        self._stream = None
        self.node_id = None
        now = monotonic()
        if was_up and now - self._up_at >= STEADY_S:
            self._dial_retry = DIAL_RETRY_MIN_S
        self.next_dial = now + self._dial_retry
        self._dial_retry = min(2 * self._dial_retry, DIAL_RETRY_MAX_S)
        if was_up:
            self.transport.on_link_down(self)

    def _dial(self, now: float) -> None:
        self._dial_deadline = now + DIAL_TIMEOUT_S
        try:
            found = self.transport.names.find(self.peer.id)
            if found is None:
                self.next_dial = now + NAME_RETRY_S
                return
            family, place = found
            if self.transport.tls is None and not is_loopback(place):
                raise OSError("not a loopback address, and there is no TLS")
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            logger.debug("raft_dial_failed peer=%s error=%s", self.peer.id, error)
            self.close()
            return
        self.sock = sock
        tune(sock)
        code = sock.connect_ex(place)
        if code not in (0, errno.EINPROGRESS):
            self.close()
            return
        self._subscribe(sock, POLL_READ | POLL_WRITE | POLL_ERROR)

    def _on_ready(self, _descr: int, events: int) -> None:
        sock = self.sock
        if sock is None:
            return
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.close()
            return
        try:
            if not self.is_up:
                self._step_up(sock)
            elif events & POLL_WRITE:
                assert self._stream is not None
                self._stream.flush()
                self._watch(self._stream)
            if events & POLL_READ and self.is_up:
                self._expect_silence()
            if events & POLL_ERROR:
                self.close()  # after a look at what it said last
        except (BadPacket, ssl.SSLError) as error:
            self.transport.on_refused(self.peer.id, error)
            self._dial_retry = DIAL_RETRY_MAX_S
            self.close()
        except OSError:
            self.close()

    def _step_up(self, sock: socket.socket) -> None:
        """Connected, then sure who is there, then up. Raises BadPacket, OSError."""
        tls = self.transport.tls
        if self._stream is None:
            if sock.getsockname() == sock.getpeername():
                # Dialling a free ephemeral port on loopback can connect a socket to itself.
                self.close()
                return
            self._dial_deadline = monotonic() + HANDSHAKE_TIMEOUT_S
            if tls is None:
                self._stream = PlainStream(sock)
            else:
                self._stream = TlsStream(sock, tls.client, is_server=False)
        stream = self._stream
        if isinstance(stream, TlsStream):
            is_done = self.transport.shake(stream)
            self._watch(stream)
            if not is_done:
                return
            assert tls is not None
            self.node_id = self.transport.identify(stream)
            admit(tls, self.node_id, self.peer.id)
        self.is_up = True
        self._up_at = monotonic()
        self._subscribe(sock, POLL_READ | POLL_ERROR)
        self.send(self.transport.hello(self.peer.id))
        if self.is_up:
            self.transport.on_link_up(self)

    def _expect_silence(self) -> None:
        """The other end never sends here: readable means that it is gone, or not one of us."""
        assert self._stream is not None
        said = bytearray()
        if not self._stream.receive(said, STRANGER_RECEIVE_BYTES) or said:
            self.close()

    def _watch(self, stream: Stream) -> None:
        """The poller is asked for room in the socket while there is something to send."""
        assert self.sock is not None
        mask = POLL_READ | POLL_ERROR | (POLL_WRITE if stream.wants_write else 0)
        if mask != self._mask:
            self._subscribe(self.sock, mask)

    def _subscribe(self, sock: socket.socket, mask: int) -> None:
        self._mask = mask
        self.transport.poller.subscribe(sock.fileno(), self._on_ready, mask)
