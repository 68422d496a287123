"""What goes through one socket: bytes as they are, or in TLS. Neither kind ever blocks.

TLS runs in memory between our buffers and the socket: one send() for all that a turn has to say to
a peer, one recv() for all that has come, whatever the number of records.
"""

from __future__ import annotations

import itertools
import socket
import ssl
from collections import deque
from collections.abc import Callable

RECEIVE_BYTES = 256 << 10
# Of one who is not introduced yet: a flight of a handshake, or a hello.
STRANGER_RECEIVE_BYTES = 16 << 10
_GATHER_MAX = 64  # buffers per sendmsg, well under IOV_MAX
# Encrypted, or decrypted, in one go. Joining short frames up to it saves records and calls; a socket
# that takes no more leaves at most this much encrypted and not sent. OpenSSL's memory never shrinks:
# a connection keeps this and a third, beside 28 KiB of its own.
_PIECE_BYTES = 64 << 10
_RECORD_BYTES = 16 << 10  # TLS has none longer
# Encrypted and not sent: more than a piece is one who asks (for new keys) and does not read.
_ANSWERS_BYTES_MAX = 2 * _PIECE_BYTES


class PlainStream:
    """`pending_bytes` were put and not yet taken by the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._out: deque[memoryview] = deque()
        self.pending_bytes = 0

    @property
    def wants_write(self) -> bool:
        """flush() has something to do once the socket takes more."""
        return bool(self._out)

    def put(self, frame: bytes) -> None:
        """It leaves with the next flush()."""
        self._out.append(memoryview(frame))
        self.pending_bytes += len(frame)

    def flush(self) -> None:
        """Raises OSError."""
        while self._out:
            try:
                if len(self._out) == 1:
                    sent = self._sock.send(self._out[0])
                else:
                    sent = self._sock.sendmsg(list(itertools.islice(self._out, _GATHER_MAX)))
            except BlockingIOError:
                return
            self.pending_bytes -= sent
            while sent:
                head = self._out[0]
                if sent < len(head):
                    self._out[0] = head[sent:]
                    break
                sent -= len(head)
                self._out.popleft()

    def receive(self, into: bytearray, bytes_max: int) -> bool:
        """What has come, about `bytes_max` of it, is in `into`. False once the peer is gone. Raises
        OSError."""
        received = 0
        while received < bytes_max:
            size = min(RECEIVE_BYTES, bytes_max)
            data = self._recv(size)
            if data is None:
                return True
            if not data:
                return False
            into += data
            received += len(data)
            if len(data) < size:
                return True  # that was all; if not, the poller tells
        return True

    def _recv(self, size: int) -> bytes | None:
        """None: nothing has come. Empty: the peer is gone."""
        try:
            return self._sock.recv(size)
        except BlockingIOError:
            return None


class TlsStream:
    """The same in TLS. shake() comes first."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, is_server: bool) -> None:
        self._wire = PlainStream(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.connection = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)
        self.is_begun = is_server  # a client speaks first
        self._out: deque[memoryview] = deque()
        self._clear_bytes = 0

    @property
    def pending_bytes(self) -> int:
        return self._clear_bytes + self._wire.pending_bytes

    @property
    def wants_write(self) -> bool:
        return self._wire.wants_write or not self.is_begun

    def shake(self) -> bool:
        """True once the handshake is over: at the client, before the server has looked at its
        certificate. Raises OSError (ssl.SSLError)."""
        self.is_begun = True
        data = self._wire._recv(STRANGER_RECEIVE_BYTES)
        if data == b"":
            raise ConnectionResetError("hung up in the handshake")
        if data:
            self._incoming.write(data)
        try:
            self.connection.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._answer()  # and on an error the reason, if it can be told
        return True

    def put(self, frame: bytes) -> None:
        self._out.append(memoryview(frame))
        self._clear_bytes += len(frame)

    def flush(self) -> None:
        """Raises OSError."""
        self._wire.flush()
        while self._out and not self._wire.wants_write:
            piece = self._take_piece()
            written = self.connection.write(piece)
            assert written == len(piece), "memory takes everything"
            self._wire.put(self._outgoing.read())
            self._wire.flush()

    def _take_piece(self) -> memoryview | bytes:
        head = self._out[0]
        if len(head) >= _PIECE_BYTES:
            self._clear_bytes -= _PIECE_BYTES
            if len(head) == _PIECE_BYTES:
                self._out.popleft()
            else:
                self._out[0] = head[_PIECE_BYTES:]
            return head[:_PIECE_BYTES]
        frames = [self._out.popleft()]
        size = len(head)
        while self._out and size + len(self._out[0]) <= _PIECE_BYTES:
            size += len(self._out[0])
            frames.append(self._out.popleft())
        self._clear_bytes -= size
        return head if len(frames) == 1 else b"".join(frames)

    def receive(self, into: bytearray, bytes_max: int) -> bool:
        """See PlainStream. What came with the end of the handshake counts as come."""
        received = 0
        is_there = self._decrypt(into)
        size = min(_PIECE_BYTES, bytes_max)
        while is_there and received < bytes_max:
            data = self._wire._recv(size)
            if data is None:
                break
            if not data:
                return False
            received += len(data)
            self._incoming.write(data)
            is_there = self._decrypt(into)
            if len(data) < size:
                break
        if self._outgoing.pending:
            self._answer()  # new keys were asked for
        return is_there

    def _decrypt(self, into: bytearray) -> bool:
        """False once the peer has said goodbye."""
        read: Callable[[int], bytes] = self.connection.read
        try:
            while self._incoming.pending or self.connection.pending():
                data = read(_RECORD_BYTES)
                if not data:
                    return False
                into += data
        except ssl.SSLWantReadError:
            pass  # the rest of a record is still on its way
        return True

    def _answer(self) -> None:
        if self._outgoing.pending:
            self._wire.put(self._outgoing.read())
        self._wire.flush()
        if self._wire.pending_bytes > _ANSWERS_BYTES_MAX:
            raise ConnectionResetError("does not read what it asks for")


Stream = PlainStream | TlsStream
