"""Requests to whichever agent answers: addresses in turn, kept connections, reads never in the past.

Every request may be sent twice: reads change nothing, and writes carry an Idempotency-Key.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import urllib.parse
from collections.abc import Mapping

import msgspec

from cube.client.credentials import Credentials
from cube.client.errors import ApiProblem, BadAnswer, NoAgent
from cube.model.addresses import is_loopback, join_address
from cube.model.views import ProblemView

PORT_DEFAULT = 7700
ANSWER_BYTES_MAX = 256 << 20  # a thousand tasks are a few MB: what is larger is no agent
ROUNDS = 2  # through all addresses, when a connection broke or an outcome is unknown
# Another agent may well answer these better.
_ELSEWHERE = frozenset(
    {"unavailable", "not_joined", "not_ready", "behind", "overloaded",
     "node_unreachable", "too_many_streams"}
)  # fmt: skip

Query = Mapping[str, str]


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


class Request(msgspec.Struct, frozen=True):
    """`fresh`: a read asks for state no older than what was seen before. `reads`: a POST that does."""

    method: str
    path: str
    query: dict[str, str] = {}
    body: bytes | None = None
    headers: dict[str, str] = {}
    fresh: bool = True
    reads: bool = False


class Address(msgspec.Struct, frozen=True):
    """`scheme` empty: not said."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme or 'http'}://{join_address(self.host, self.port)}"


def parse_address(text: str) -> Address:
    """`http://host:port`, `https://host:port`, `host:port` or `host`. Raises ValueError."""
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "", text.strip()
    if scheme not in ("", "http", "https"):
        raise ValueError(f"{text!r}: only http:// and https:// are known")
    parts = urllib.parse.urlsplit(f"http://{rest}")
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.username is not None:
        raise ValueError(f"{text!r} is not an address; write http://127.0.0.1:{PORT_DEFAULT}")
    return Address(scheme, parts.hostname, parts.port or PORT_DEFAULT)


class Transport:
    """Not for several threads. `index` is the highest state this client has seen."""

    def __init__(self, addresses: list[str], credentials: Credentials, timeout_s: float) -> None:
        """Raises ValueError for an address or a CA that is none."""
        if not addresses:
            raise ValueError("at least one address is needed")
        # Where the cluster's CA is known, an agent is asked over HTTPS unless somebody says http.
        default = "https" if credentials.ca_file else ""
        self._addresses = [
            found if found.scheme else Address(default, found.host, found.port)
            for found in map(parse_address, addresses)
        ]
        self._unsaid = {
            Address("https", found.host, found.port)
            for found in map(parse_address, addresses)
            if not found.scheme
        }
        self._credentials = credentials
        self._tls: ssl.SSLContext | None = None
        if any(address.scheme == "https" for address in self._addresses):
            self._tls = _context(credentials)
        self._timeout_s = timeout_s
        self._kept: dict[Address, http.client.HTTPConnection] = {}
        self.index = 0

    def close(self) -> None:
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()

    def send(self, request: Request) -> Answer:
        """The first answer that another agent could not better. Raises ApiProblem, NoAgent."""
        causes: list[tuple[str, str]] = []
        problem: ApiProblem | None = None
        for _ in range(ROUNDS):
            again = False
            for address in list(self._addresses):
                try:
                    answer = self._try(address, request)
                except ssl.SSLError as error:
                    if self._plain_instead(address, error) is not None:
                        again = True
                        continue
                    causes.append((str(address), _cause(error)))
                except ConnectionRefusedError as error:
                    causes.append((str(address), _cause(error)))
                except (OSError, http.client.HTTPException) as error:
                    causes.append((str(address), _cause(error)))
                    again = True
                else:
                    self._prefer(address)
                    if answer.status < 400:
                        return answer
                    problem = problem_of(answer)
                    if problem.status == 504:
                        again = True
                    elif problem.code not in _ELSEWHERE:
                        raise problem
            if not again:
                break
        if problem is not None:
            raise problem
        raise NoAgent(_each_once(causes))

    def _plain_instead(self, address: Address, error: ssl.SSLError) -> Address | None:
        """An agent of this host speaks plain HTTP (--insecure), and nobody has said https: from now
        on it is asked so. What goes over loopback, no other host hears; a found token stays here."""
        plain = error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")
        if not (plain and address in self._unsaid and is_loopback(address.host)):
            return None
        plain_address = Address("http", address.host, address.port)
        self._addresses[self._addresses.index(address)] = plain_address
        return plain_address

    @property
    def scheme(self) -> str:
        """Of the agent that answered last."""
        return self._addresses[0].scheme or "http"

    def _connect(self, address: Address) -> http.client.HTTPConnection:
        if address.scheme == "https":
            return http.client.HTTPSConnection(
                address.host, address.port, timeout=self._timeout_s, context=self._tls
            )
        return http.client.HTTPConnection(address.host, address.port, timeout=self._timeout_s)

    def _prefer(self, address: Address) -> None:
        """The one that answers is asked first from now on."""
        if self._addresses[0] != address:
            self._addresses.remove(address)
            self._addresses.insert(0, address)

    def _try(self, address: Address, request: Request) -> Answer:
        """A kept connection may turn out to be closed: that is what the second round is for."""
        connection = self._kept.pop(address, None)
        if connection is None:
            connection = self._connect(address)
        done = False
        try:
            response = self._ask(connection, request)
            body = response.read(ANSWER_BYTES_MAX + 1)
            if len(body) > ANSWER_BYTES_MAX:
                raise BadAnswer(f"{address} answered more than {ANSWER_BYTES_MAX} bytes")
            answer = Answer(response.status, _headers(response), body)
            self.note_index(answer.headers)
            done = not response.will_close
            return answer
        finally:
            if done:
                self._kept[address] = connection
            else:
                connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, request: Request
    ) -> http.client.HTTPResponse:
        query = dict(request.query)
        is_read = request.method == "GET" or request.reads
        if request.fresh and is_read and self.index:
            query["min_index"] = str(self.index)
        target = request.path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", **request.headers}
        is_safe = isinstance(connection, http.client.HTTPSConnection)
        if self._credentials.token and (is_safe or not self._credentials.is_found):
            headers["Authorization"] = f"Bearer {self._credentials.token}"
        try:
            connection.request(request.method, target, body=request.body, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            # The agent may have refused the body before it had all of it: its answer says why.
            if request.body is None or connection.sock is None:
                raise
        return connection.getresponse()

    def note_index(self, headers: Mapping[str, str]) -> None:
        text = headers.get("x-cube-index", "")
        if text.isdigit():
            self.index = max(self.index, int(text))

    def open_stream(
        self, request: Request, idle_timeout_s: float | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A connection of its own, whose answer is a success and not read yet (101: there is none, and
        the socket speaks what was asked for). The caller closes it. Raises ApiProblem, NoAgent."""
        causes: list[tuple[str, str]] = []
        problem: ApiProblem | None = None
        queue = list(self._addresses)
        while queue:
            address = queue.pop(0)
            connection = self._connect(address)
            try:
                response = self._ask(connection, request)
                if response.status in (101, 200):
                    self.note_index(_headers(response))
                    self._prefer(address)
                    if connection.sock is not None:
                        connection.sock.settimeout(idle_timeout_s)
                    return connection, response
                answer = Answer(
                    response.status, _headers(response), response.read(ANSWER_BYTES_MAX)
                )
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if isinstance(error, ssl.SSLError):
                    plain = self._plain_instead(address, error)
                    if plain is not None:
                        queue.insert(0, plain)
                        continue
                causes.append((str(address), _cause(error)))
                continue
            connection.close()
            problem = problem_of(answer)
            if problem.code not in _ELSEWHERE:
                raise problem
        if problem is not None:
            raise problem
        raise NoAgent(_each_once(causes))


def keep_alive(connection: socket.socket) -> None:
    """The kernel finds out within half a minute when the other host has gone, however quiet it is."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def random_key() -> str:
    return os.urandom(16).hex()


def problem_of(answer: Answer) -> ApiProblem:
    try:
        return ApiProblem(msgspec.json.decode(answer.body, type=ProblemView))
    except msgspec.MsgspecError:
        text = answer.body[:200].decode(errors="replace")
        view = ProblemView(
            type="about:blank",
            title="Not an answer of an agent",
            status=answer.status,
            detail=f"status {answer.status}: {text}",
            code="not_an_agent",
        )
        return ApiProblem(view)


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _context(credentials: Credentials) -> ssl.SSLContext:
    """Raises ValueError."""
    ca_file = credentials.ca_file
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{ca_file} holds no CA certificate ({error})") from None
    if credentials.node_files is not None:
        with contextlib.suppress(OSError, ssl.SSLError):  # without it, a token is asked for
            context.load_cert_chain(*credentials.node_files)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The cluster's CA vouches for its nodes only, and every node answers everything: which of them
    # it is does not matter, and they are reached under addresses that they do not know of.
    context.check_hostname = ca_file is None
    return context


def _cause(error: Exception) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return (
                f"it is not a node of the cluster whose CA is known here ({error.verify_message})"
            )
        case ssl.SSLError():
            return f"no HTTPS ({error.reason or error})"
        case ConnectionRefusedError():
            return "connection refused"
        case TimeoutError():
            return "timed out"
        case http.client.RemoteDisconnected() | ConnectionResetError() | BrokenPipeError():
            return "the connection was closed"
        case OSError():
            return error.strerror or str(error)
        case _:
            return f"not HTTP: {error!r}"


def _each_once(causes: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(causes))
