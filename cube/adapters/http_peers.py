"""ports.remote.RemoteNodes over the peers' HTTP API (/v1/internal/…)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import TypeVar

import aiohttp
import msgspec

from cube.model.addresses import split_address
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import NodeId
from cube.ports.cluster import BootstrapView, JoinGrant, JoinRequest, LogRequest
from cube.ports.log import FEED_BYTES_MAX, Progress
from cube.ports.remote import Redirected

HEARTBEAT_TIMEOUT_S = 0.9  # below the heartbeat's second, so that beats never pile up
JOIN_TIMEOUT_S = 5.0
PROGRESS_TIMEOUT_S = 2.0  # somebody waits for the list, which is of use without it, too
VOTE_TIMEOUT_S = 20.0  # a membership change waits for its turn and its commit
LOG_LATE_S = 1.0  # beyond what was agreed: then another voter is asked
LOG_TRANSFER_S = 30.0  # for a large answer over a slow line, as long as it moves
ANSWER_BYTES_MAX = 1 << 20

_T = TypeVar("_T")
# msgspec lets the last two through: for text that is not UTF-8, and for deep nesting.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Noted(msgspec.Struct, frozen=True):
    lease_index: int | None = None


class _Late(Unavailable):
    """It was asked, and no answer came: unknown, where asking changes something."""


class HttpPeers:
    """One connection pool for all peers."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        """`tls` shows this node's certificate and accepts nodes of its cluster only. None: HTTP."""
        self._session: aiohttp.ClientSession | None = None
        self._scheme = "http" if tls is None else "https"
        self._tls: ssl.SSLContext | bool = True if tls is None else tls

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=100, limit_per_host=8, keepalive_timeout=30, ssl=self._tls
                )
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def join(self, address: str, request: JoinRequest) -> JoinGrant:
        body = await self._call("POST", address, "join", request, JOIN_TIMEOUT_S)
        return _decode(body, JoinGrant, address)

    async def remove_vote(self, address: str, node_id: NodeId) -> None:
        try:
            await self._call("POST", address, "remove_vote", {"node_id": node_id}, VOTE_TIMEOUT_S)
        except _Late as error:
            raise OutcomeUnknown(str(error)) from error

    async def transfer(self, address: str, node_id: NodeId | None) -> None:
        try:
            await self._call("POST", address, "transfer", {"node_id": node_id}, VOTE_TIMEOUT_S)
        except _Late as error:
            raise OutcomeUnknown(str(error)) from error

    async def progress(self, address: str) -> tuple[Progress, ...]:
        body = await self._call("GET", address, "progress", None, PROGRESS_TIMEOUT_S)
        return _decode(body, tuple[Progress, ...], address)

    async def heartbeat(
        self, address: str, node_id: NodeId, log_index: int, *, wants_lease: bool = False
    ) -> int | None:
        beat: dict[str, object] = {"node_id": node_id, "log_index": log_index}
        if wants_lease:
            beat["wants_lease"] = True
        body = await self._call("POST", address, "heartbeat", beat, HEARTBEAT_TIMEOUT_S)
        return _decode(body, _Noted, address).lease_index if wants_lease else None

    async def log(self, address: str, request: LogRequest) -> bytes:
        silence_s = request.wait_ms / 1000 + LOG_LATE_S
        return await self._call(
            "GET", address, "log", None, silence_s,
            query=_log_query(request), total_s=silence_s + LOG_TRANSFER_S, bytes_max=FEED_BYTES_MAX,
        )  # fmt: skip

    async def bootstrap(self, address: str) -> BootstrapView:
        body = await self._call("GET", address, "bootstrap", None, JOIN_TIMEOUT_S)
        return _decode(body, BootstrapView, address)

    async def _call(
        self,
        method: str,
        address: str,
        verb: str,
        body: object,
        timeout_s: float,
        *,
        query: Mapping[str, str] | None = None,
        total_s: float | None = None,
        bytes_max: int = ANSWER_BYTES_MAX,
    ) -> bytes:
        """The answer's body. `timeout_s` is for silence, and for all of it unless `total_s` says more.
        Raises Unavailable, Redirected."""
        data = None if body is None else msgspec.json.encode(body)
        try:
            split_address(address)  # a redirect may name anything
            async with self._open().request(
                method,
                f"{self._scheme}://{address}/v1/internal/{verb}",
                data=data,
                headers={"Content-Type": "application/json"},
                params=query,
                timeout=aiohttp.ClientTimeout(total=total_s or timeout_s, sock_read=timeout_s),
                allow_redirects=False,
            ) as response:
                answer = await _read(response, bytes_max)
                status = response.status
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(f"cannot reach {address}: {error.strerror or error}") from error
        except TimeoutError as error:
            raise _Late(f"no answer from {address} within {timeout_s} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable(f"no answer from {address[:300]}: {error}") from error
        if status < 300:
            return answer
        problem = _problem(answer)
        leader = problem.get("leader")
        if isinstance(leader, str) and leader:
            raise Redirected(leader)
        detail = f"{address} answered {status}: {problem.get('detail', '')}"
        raise _Late(detail) if status == 504 else Unavailable(detail)


async def _read(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """The whole body: read(n) alone stops at what has come so far."""
    pieces: list[bytes] = []
    left = bytes_max
    async for piece in response.content.iter_any():
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            raise ValueError(f"more than {bytes_max} bytes")
    return b"".join(pieces)


def _log_query(request: LogRequest) -> dict[str, str]:
    ask = request.ask
    return {
        "node": request.node_id,
        "member": str(int(request.was_member)),
        "after": str(ask.index),
        "term": str(ask.term),
        "office": ask.office,
        "snapshot": str(ask.snapshot),
        "offset": str(ask.offset),
        "wait_ms": str(request.wait_ms),
    }


def _problem(answer: bytes) -> dict[str, object]:
    try:
        return msgspec.json.decode(answer, type=dict[str, object])
    except _UNREADABLE:
        return {}


def _decode(body: bytes, type_: type[_T], address: str) -> _T:
    try:
        return msgspec.json.decode(body, type=type_)
    except _UNREADABLE as error:
        raise Unavailable(f"{address} is not a Cube agent of this version: {error}") from error
