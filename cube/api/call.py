"""One request, as the functions that answer it see it: the state to read, the door to write.

Api is what all requests of one node share; Call is one of them. Neither knows a route.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import ClientSession, web

from cube.api.auth import Access, Identity, Role, check_still_good
from cube.api.errors import Problem, did_you_mean, refused
from cube.api.lookup import nodes_by_http_address, nodes_by_raft_address, nodes_in_order
from cube.api.query import flag, integer
from cube.api.rendered import RenderedTasks
from cube.api.slots import SlotsOfJobs
from cube.model.cluster import ClusterState
from cube.model.commands import Body
from cube.model.derived import Derived
from cube.model.ids import CommandId, NodeId
from cube.model.outcome import Rejected
from cube.model.units import parse_duration_ms
from cube.ports.clock import Clock
from cube.ports.cluster import Cluster, LocalTasks, Peers, Proposed, SealSecret, TokenDesk
from cube.ports.housekeeping import Housekeeping

JSON = "application/json"
_KEY = re.compile(r"[\x21-\x7e]{1,128}")  # an Idempotency-Key: room for a UUID and a prefix
_VERSION = re.compile(r'"(\d{1,15})"')


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the API. Times in ms."""

    body_bytes_max: int = 1 << 20  # a job is at most a quarter of it, encoded
    body_timeout_ms: int = 30_000  # a slow sender must not hold a request for ever
    requests_max: int = 256  # being answered at once, beside streams
    streams_max: int = 256  # logs, events and blocking queries: each holds a socket for long
    barrier_timeout_ms: int = 5_000
    min_index_timeout_ms: int = 10_000
    wait_ms_default: int = 30_000
    wait_ms_max: int = 300_000
    heartbeat_ms: int = 15_000  # of an event stream: proxies close what is silent for a minute
    stream_poll_ms: int = 1_000  # how soon a stream notices that its client has gone
    stream_write_ms: int = 30_000  # a client that reads nothing for so long is dropped
    connect_timeout_ms: int = 3_000  # to another node


class Kind(enum.StrEnum):
    """What a route does with state, and so which parameters and bounds it has beside its own."""

    PLAIN = "plain"  # answers without the cluster: also before the node has joined
    READ = "read"  # consistent, min_index, index, wait
    PAGE = "page"  # a read that lists: limit, cursor
    WRITE = "write"  # Idempotency-Key
    STREAM = "stream"  # min_index; lasts
    PEER = "peer"  # node to node: never refused for load


READ_PARAMETERS = frozenset({"consistent", "min_index", "index", "wait"})
PAGE_PARAMETERS = frozenset({"limit", "cursor"})


class Route(msgspec.Struct, frozen=True):
    """`query`: its own parameters, `versioned`: it honours If-Match and If-None-Match."""

    method: str
    path: str
    role: Role
    kind: Kind
    answer: Callable[[Call], Awaitable[web.StreamResponse]]
    query: frozenset[str] = frozenset()
    versioned: bool = False
    any_query: bool = False  # what is not built yet is said before what it is asked with

    @property
    def parameters(self) -> frozenset[str]:
        match self.kind:
            case Kind.READ:
                return self.query | READ_PARAMETERS
            case Kind.PAGE:
                return self.query | READ_PARAMETERS | PAGE_PARAMETERS
            case Kind.STREAM:
                return self.query | {"min_index"}
            case _:
                return self.query


class Api:
    """What the requests of one node share. One owner: the event loop."""

    def __init__(
        self,
        cluster: Cluster,
        local_tasks: LocalTasks,
        peers: Peers,
        tokens: TokenDesk,
        seal: SealSecret,
        settings: ApiSettings,
        *,
        clock: Clock,
        new_id: Callable[[], str],
        version: str,
        access: Access,
        housekeeping: Housekeeping,
    ) -> None:
        self.access = access
        self.housekeeping = housekeeping
        self.cluster = cluster
        self.local_tasks = local_tasks
        self.peers = peers
        self.tokens = tokens
        self.seal = seal
        self.settings = settings
        self.clock = clock
        self.new_id = new_id
        self.version = version
        self.session: ClientSession | None = None  # to other nodes; open while the app runs
        self.scheme = "https" if access.node_tls is not None else "http"  # of every node's API
        self.slots = SlotsOfJobs()
        self.rendered = RenderedTasks()
        self.nodes_in_order = Derived(nodes_in_order)
        self.nodes_by_raft_address = Derived(nodes_by_raft_address)
        self._nodes_by_http = Derived(nodes_by_http_address)
        self.requests = 0  # being answered now
        self.streams = 0
        self.saves = 0  # snapshots on their way
        self.answers: dict[tuple[str, str, int], int] = {}  # by method, route, status: bounded
        self.lasting: set[asyncio.Task[object]] = set()  # answering streams; ended at shutdown
        self._request_prefix = new_id()[:8]
        self._request_number = 0

    def nodes_at(self, address: str) -> frozenset[NodeId]:
        """Whose API is there, by the state."""
        return self._nodes_by_http.of(self.cluster.state().nodes).get(address, frozenset())

    def now_ms(self) -> int:
        """Never below the cluster's: a slow clock must not lengthen a token."""
        return max(self.cluster.state().now_ms, self.clock.now_ms())

    def next_request_id(self) -> str:
        self._request_number += 1
        return f"{self._request_prefix}-{self._request_number}"

    def count(self, method: str, path: str, status: int) -> None:
        key = (method, path, status)
        self.answers[key] = self.answers.get(key, 0) + 1


class Call:
    """One request. `state` is what the answer speaks of; its index goes out as X-Cube-Index."""

    __slots__ = ("api", "identity", "query", "request", "route", "state")

    def __init__(self, api: Api, route: Route, request: web.Request, identity: Identity) -> None:
        self.api = api
        self.identity = identity
        self.route = route
        self.request = request
        self.state: ClusterState = api.cluster.state()
        self.query: Mapping[str, str] = _query(request, route)

    def path(self, name: str) -> str:
        return self.request.match_info[name]

    @property
    def actor(self) -> str:
        return self.identity.actor

    async def settle(self) -> None:
        """`state` is as new as the query asks for. Raises Problem, Unavailable."""
        query, cluster, settings = self.query, self.api.cluster, self.api.settings
        if not query:
            return
        if flag(query, "consistent"):
            await cluster.barrier(settings.barrier_timeout_ms)
        if "min_index" in query:
            wanted = integer(query, "min_index", 0, 0)
            if not await cluster.wait_index(wanted, settings.min_index_timeout_ms):
                raise Problem(
                    "behind",
                    f"this node has applied {cluster.state().index}, not {wanted}",
                    hint="ask another node, or ask again",
                )
        if "index" in query:
            await cluster.wait_index(integer(query, "index", 0, 0) + 1, self._wait_ms())
        elif "wait" in query:
            raise Problem(
                "bad_parameter", "wait says how long, index says past which index: send both"
            )
        self.state = cluster.state()

    @property
    def command_id(self) -> CommandId | None:
        """The same whenever this request is repeated under its key; None without one. Raises
        Problem."""
        key = self.request.headers.get("Idempotency-Key")
        if key is None:
            return None
        if not _KEY.fullmatch(key):
            raise Problem("bad_request", "Idempotency-Key must be 1 to 128 printable characters")
        parts = (self.actor, self.request.method, self.request.path, key)
        return CommandId(_hash("\0".join(parts).encode()))

    @property
    def is_repeatable(self) -> bool:
        """It carries a key under which the outcome of an earlier try is remembered."""
        return "Idempotency-Key" in self.request.headers

    @property
    def blocks(self) -> bool:
        return "index" in self.query

    def _wait_ms(self) -> int:
        settings = self.api.settings
        text = self.query.get("wait")
        if text is None:
            return settings.wait_ms_default
        try:
            wait_ms = parse_duration_ms(float(text) if _is_number(text) else text)
        except ValueError as error:
            raise Problem("bad_parameter", f"wait: {error}") from None
        return min(wait_ms, settings.wait_ms_max)

    @property
    def remote(self) -> str:
        """The address from which whoever asks asked the first node."""
        return self.identity.remote or self.request.remote or ""

    def check_still_good(self) -> None:
        """See auth.check_still_good. Raises Problem."""
        trust = self.api.cluster.state().trust
        check_still_good(self.identity, self.route.role, trust, self.api.now_ms())

    async def propose(self, body: Body, data: bytes = b"") -> Proposed:
        """The command is committed and applied here, and `state` has it. `data` is what the user
        sent: the same key with other data is refused. Raises Problem when the command is refused;
        Unavailable, OutcomeUnknown."""
        command_id = self.command_id
        digest = "" if command_id is None else _hash(data)
        proposed = await self.api.cluster.propose(
            body, actor=self.actor, command_id=command_id, digest=digest
        )
        self.state = self.api.cluster.state()
        if isinstance(proposed.outcome, Rejected):
            raise refused(proposed.outcome)
        return proposed

    def expected_version(self) -> int | None:
        """What If-Match and If-None-Match ask for: 0 for "must not exist"."""
        match, none_match = (self.request.headers.get(h) for h in ("If-Match", "If-None-Match"))
        if match is not None and none_match is not None:
            raise Problem("bad_request", "send If-Match or If-None-Match, not both")
        if none_match is not None:
            if none_match.strip() != "*":
                raise Problem("bad_request", "If-None-Match can only be *")
            return 0
        if match is None:
            return None
        version = _VERSION.fullmatch(match.strip())
        if version is None or int(version[1]) == 0:
            raise Problem("bad_request", 'If-Match must be a job version in quotes, such as "3"')
        return int(version[1])

    def json(
        self, view: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        return web.Response(
            body=msgspec.json.encode(view), status=status, content_type=JSON, headers=headers
        )


def _query(request: web.Request, route: Route) -> Mapping[str, str]:
    if not request.query_string or route.any_query:
        return {}
    query: dict[str, str] = {}
    known = route.parameters
    for name, value in request.query.items():
        if name not in known:
            hint = did_you_mean(name, known)
            if not hint:
                hint = f"this route knows {', '.join(sorted(known))}" if known else "it knows none"
            raise Problem(
                "unknown_parameter", f"{name[:64]!r} is no parameter of this route", hint=hint
            )
        if name in query:
            raise Problem("bad_parameter", f"{name} is given more than once")
        query[name] = value
    return query


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\d{1,9}(\.\d{1,3})?", text))


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
