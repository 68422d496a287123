"""A connection that a peer dialled: we only read from it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from cube.adapters.raft import wire
from cube.adapters.raft.library import POLL_ERROR, POLL_READ, POLL_WRITE, Peer, monotonic
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

# Handshake and hello, from the moment it was accepted.
HELLO_DEADLINE_S = 3.0
# Per readiness event, so that one busy peer does not starve the others.
RECEIVE_BYTES_PER_EVENT_MAX = 2 << 20


class Inbound:
    """A stranger until its hello was accepted; then `peer` says whose messages come here.

    `node_id` is whose certificate it has shown; None before, and without TLS.
    """

    def __init__(self, transport: PeerTransport, sock: socket.socket) -> None:
        self.transport = transport
        self.sock = sock
        self.peer: Peer | None = None
        self.node_id: NodeId | None = None
        self.hello_deadline = monotonic() + HELLO_DEADLINE_S
        self.is_open = True
        # TLS costs memory: a stranger gets it with its first bytes.
        self._stream: Stream | None = None if transport.tls else PlainStream(sock)
        self._is_shaking = transport.tls is not None
        self._wants_write = False
        self._buffer = bytearray()
        transport.poller.subscribe(sock.fileno(), self._on_ready, POLL_READ | POLL_ERROR)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.transport.poller.unsubscribe(self.sock.fileno())
            self.sock.close()
            self._stream = None
            self._buffer = bytearray()
            self.transport.on_inbound_closed(self)

    def _on_ready(self, _descr: int, events: int) -> None:
        if not self.is_open:
            return
        try:
            is_there = self._step()
            # What came before the end counts, too.
            is_there = is_there and not events & POLL_ERROR
            if self._stream is not None:
                self._watch(self._stream)
        except (BadPacket, OSError) as error:
            self.transport.on_refused(self.peer.id if self.peer else "unknown", error)
            is_there = False
        if not is_there:
            self.close()

    def _step(self) -> bool:
        """False once the peer is gone. Raises BadPacket, OSError."""
        stream = self._stream
        if stream is None:
            assert self.transport.tls is not None
            stream = TlsStream(self.sock, self.transport.tls.server, is_server=True)
            self._stream = stream
        if self._is_shaking:
            assert isinstance(stream, TlsStream)
            if not self.transport.shake(stream):
                return True
            self._is_shaking = False
            self.node_id = self.transport.identify(stream)
        limit = RECEIVE_BYTES_PER_EVENT_MAX if self.peer else STRANGER_RECEIVE_BYTES
        is_there = stream.receive(self._buffer, limit)
        self._deliver()
        return is_there

    def _watch(self, stream: Stream) -> None:
        wants_write = stream.wants_write
        if wants_write and self._wants_write:
            stream.flush()
            wants_write = stream.wants_write
        if wants_write != self._wants_write:
            self._wants_write = wants_write
            mask = POLL_READ | POLL_ERROR | (POLL_WRITE if wants_write else 0)
            self.transport.poller.subscribe(self.sock.fileno(), self._on_ready, mask)

    def _deliver(self) -> None:
        """Every whole frame is handled. Raises BadPacket."""
        buffer, offset = self._buffer, 0
        prefix = wire.LENGTH.size
        while self.is_open and len(buffer) - offset >= prefix:
            (length,) = wire.LENGTH.unpack_from(buffer, offset)
            if length > (wire.FRAME_BYTES_MAX if self.peer else wire.HELLO_BYTES_MAX):
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
