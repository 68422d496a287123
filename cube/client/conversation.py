"""The client's end of a command beside a task: descriptors at one side, a WebSocket at the other.

One thread and one poll(): what cannot be sent is not read, and what cannot be printed is not
received, so that both ends wait for each other and nothing piles up.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
import ssl
from collections.abc import Callable

import msgspec

from cube.client.errors import ApiProblem, BadAnswer, StreamBroken
from cube.client.transport import Request, Transport, keep_alive
from cube.client.websocket import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Messages,
    accepts,
    frame,
    headers,
    new_key,
)
from cube.model.sessions import MESSAGE_BYTES_MAX, ExecOrder, FromCommand, ToCommand
from cube.model.views import ProblemView

READ_BYTES = 64 * 1024
UNSENT_BYTES_MAX = 256 * 1024  # then the input is not read until some of it has left
_FROM = msgspec.json.Decoder(FromCommand)


class Ended(msgspec.Struct, frozen=True):
    """`exit_code` None: nobody knows it. `reason`: more than the code says, or empty."""

    exit_code: int | None
    reason: str


class Conversation:
    """Open from connect() to close()."""

    def __init__(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        assert connection.sock is not None
        self._connection, self._response = connection, response
        self._socket: socket.socket = connection.sock
        self._socket.setblocking(False)
        keep_alive(self._socket)
        self._messages = Messages(MESSAGE_BYTES_MAX)
        self._unsent = bytearray()
        # Owed, and sent once there is room: the last of each will do. An agent that does not read must
        # not make this program grow.
        self._pong: bytes | None = None
        self._size: tuple[int, int] | None = None
        self._ended: Ended | None = None
        self.is_started = False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._response.close()
        self._connection.close()

    def resize(self, rows: int, columns: int) -> None:
        self._size = (rows, columns)

    def begin(self, order: ExecOrder) -> None:
        self._unsent += frame(TEXT, msgspec.json.encode(order))

    def _tell(self, message: ToCommand) -> None:
        self._unsent += frame(TEXT, msgspec.json.encode(message))

    def run(
        self, stdin: int | None, outs: dict[int, int], wake: int, on_wake: Callable[[], None]
    ) -> Ended:
        """Until the command has ended. `stdin` None: it has no input. `outs`: the descriptor for
        stream 1 and 2. Whenever `wake` can be read, it is emptied and `on_wake` called. Raises
        ApiProblem, StreamBroken, BadAnswer; BrokenPipeError when nobody reads the output."""
        if stdin is None:
            self._tell(ToCommand(end_input=True))
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        while self._ended is None:
            takes_input = (
                stdin is not None and self.is_started and len(self._unsent) < UNSENT_BYTES_MAX
            )
            self._pay()
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            if takes_input and stdin is not None:
                poll.register(stdin, select.POLLIN)
            ready = dict(poll.poll(0 if self._has_pending() else None))
            if wake in ready:
                os.read(wake, 4096)
                on_wake()
            if self._socket.fileno() in ready or self._has_pending():
                self._receive(outs)
            if self._unsent:
                self._send()
            if takes_input and stdin is not None:
                poll.unregister(stdin)  # a closed one would be told of even when nobody asks
                if stdin in ready and not self._take(stdin):
                    stdin = None
        return self._ended

    def _pay(self) -> None:
        if len(self._unsent) >= UNSENT_BYTES_MAX:
            return
        if self._pong is not None:
            self._unsent += frame(PONG, self._pong)
            self._pong = None
        if self._size is not None:
            self._tell(ToCommand(resize=self._size))
            self._size = None

    def _has_pending(self) -> bool:
        """TLS has decrypted more than was asked for: poll() does not know of that."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def _take(self, stdin: int) -> bool:
        """Some input is on its way. False: it has ended, and the command is told."""
        try:
            data = os.read(stdin, READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            self._tell(ToCommand(end_input=True))
            return False
        self._unsent += frame(BINARY, data)
        return True

    def _send(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise StreamBroken(_broken(error)) from None
        del self._unsent[:sent]

    def _receive(self, outs: dict[int, int]) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise StreamBroken(_broken(error)) from None
        if not data:
            raise StreamBroken(_broken(None))
        for kind, message in self._messages.feed(data):
            if kind == BINARY and message[:1] in (b"\x01", b"\x02"):
                _print(outs[message[0]], message[1:])
            elif kind == TEXT:
                self._hear(message)
            elif kind == PING:
                self._pong = message
            elif kind == CLOSE and self._ended is None:
                raise StreamBroken(_broken(None))
            if self._ended is not None:
                return

    def _hear(self, message: bytes) -> None:
        try:
            told = _FROM.decode(message)
            if told.problem is not None:
                raise ApiProblem(msgspec.convert(told.problem, ProblemView))
        except msgspec.MsgspecError as error:
            raise BadAnswer(f"the agent's answer is not understood: {error}") from None
        self.is_started = self.is_started or told.started
        if told.ended:
            self._ended = Ended(told.exit_code, told.reason)


def connect(transport: Transport, path: str, order: ExecOrder) -> Conversation:
    """The order is on its way through the first agent that answers. Raises ApiProblem, NoAgent,
    BadAnswer."""
    key = new_key()
    connection, response = transport.open_stream(Request("GET", path, {}, None, headers(key)), None)
    if response.status != 101 or not accepts(key, response.getheader("Sec-WebSocket-Accept") or ""):
        connection.close()
        raise BadAnswer("what answers there does not speak WebSocket")
    conversation = Conversation(connection, response)
    conversation.begin(order)
    return conversation


def _print(fd: int, data: bytes) -> None:
    """All of it, however long whoever reads takes."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody else made it so
            select.select([], [fd], [])


def _broken(error: OSError | None) -> str:
    why = f" ({error.strerror or error})" if error is not None else ""
    return f"the connection to the command broke off{why}; it was hung up, its exit code is unknown"
