"""ports.trust.JoinRemote over HTTPS: two questions to a node, before one is a node."""

from __future__ import annotations

import ssl

import aiohttp
import msgspec

from cube.adapters.trust.envelope import open_envelope
from cube.adapters.trust.tls import ca_only_context, unverified_context
from cube.model.addresses import split_address
from cube.model.errors import BadPacket, Unavailable
from cube.model.trust import shared_envelope_key
from cube.ports.cluster import BootstrapView
from cube.ports.trust import EnrolGrant, EnrolRefusal, EnrolRequest, bootstrap_purpose

CALL_TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 64 << 10  # a grant is a few kilobytes

CA_PATH = "/v1/internal/ca"  # GET: the CA certificate as PEM, for anyone
BOOTSTRAP_PATH = "/v1/internal/bootstrap"  # GET, nonce: a sealed BootstrapView
ENROL_PATH = "/v1/internal/enrol"  # POST: EnrolRequest; 200 EnrolGrant, 403 EnrolRefusal


class HttpJoin:
    """A session per call: each speaks TLS of another kind, and there are few. This CA certifies
    nodes only, so whoever gets past a ca_only_context is one."""

    def __init__(self, *, is_insecure: bool = False) -> None:
        """`is_insecure`: plain HTTP, on loopback."""
        self._scheme = "http" if is_insecure else "https"

    async def bootstrap(self, address: str, shared: bytes, nonce: str) -> BootstrapView:
        """What the node at this address says of itself; it has the same shared secret, and answers
        this very question. Raises Unavailable."""
        path = f"{BOOTSTRAP_PATH}?nonce={nonce}"
        status, body = await self._call("GET", address, path, b"", unverified_context())
        if status != 200:
            raise Unavailable(f"{address} answered {status}")
        try:
            opened = open_envelope(shared_envelope_key(shared), bootstrap_purpose(nonce), body)
            return msgspec.json.decode(opened, type=BootstrapView)
        except BadPacket:
            raise Unavailable(f"{address} has another [cluster] secret_file") from None
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Unavailable(f"{address} is not a Cube agent of this version") from error

    async def ca(self, address: str) -> str:
        status, body = await self._call("GET", address, CA_PATH, b"", unverified_context())
        if status != 200:
            raise Unavailable(f"{address} answered {status}: it has no CA to show")
        try:
            return body.decode("ascii")
        except UnicodeDecodeError as error:
            raise BadPacket("not a CA certificate") from error

    async def enrol(
        self, address: str, ca_pem: str, request: EnrolRequest
    ) -> EnrolGrant | EnrolRefusal:
        data = msgspec.json.encode(request)
        status, body = await self._call("POST", address, ENROL_PATH, data, ca_only_context(ca_pem))
        try:
            if status == 200:
                return msgspec.json.decode(body, type=EnrolGrant)
            if status == 403:
                return msgspec.json.decode(body, type=EnrolRefusal)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            # Without the cause: it might quote a key.
            raise Unavailable(f"{address} is not a Cube agent of this version") from None
        raise Unavailable(f"{address} answered {status}")

    async def _call(
        self, method: str, address: str, path: str, data: bytes, context: ssl.SSLContext
    ) -> tuple[int, bytes]:
        """Status and body. Raises Unavailable."""
        try:
            split_address(address)
            timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
            connector = aiohttp.TCPConnector(ssl=context, limit=1, force_close=True)
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.request(
                    method,
                    f"{self._scheme}://{address}{path}",
                    data=data,
                    headers={"Content-Type": "application/json"},
                    allow_redirects=False,
                ) as response,
            ):
                return response.status, await _read(response)
        except TimeoutError as error:
            raise Unavailable(f"no answer from {address} within {CALL_TIMEOUT_S} s") from error
        except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            raise Unavailable(f"cannot ask {address}: {error}") from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises ValueError when it is too long."""
    pieces: list[bytes] = []
    left = ANSWER_BYTES_MAX
    async for piece in response.content.iter_any():
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            raise ValueError(f"more than {ANSWER_BYTES_MAX} bytes")
    return b"".join(pieces)
