"""Who asks, whether they may, and whether a browser was tricked into asking. Decisions only: values
in, an Identity or a Problem out; cube.api.boundary calls them.

A token is taken from the Authorization header and from nowhere else: what a browser adds by itself
proves nothing.
"""

from __future__ import annotations

import enum
import ipaddress
import ssl
from collections.abc import Callable, Mapping

import msgspec
from aiohttp import web
from multidict import MultiMapping

from cube.api.errors import Problem
from cube.api.tickets import TICKET, TICKET_MS, read_ticket
from cube.model.errors import BadPacket
from cube.model.ids import NodeId
from cube.model.trust import (
    ApiToken,
    NodeIdentity,
    TokenRecord,
    TokenRole,
    TrustState,
    parse_api_token,
    secret_matches,
)
from cube.ports.trust import TicketSigner

FORWARDED = "X-Cube-Forwarded"  # the node that passed the request on: nobody passes it on twice
HEADER_CHARS_MAX = 256  # of Authorization: a token has 78
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="cube"'}
_UNKNOWN_TOKEN = "this token is not one of this cluster's, or was removed"
_TOKEN_HINT = "`cube token create` makes one; send it as Authorization: Bearer TOKEN"
_SCHEMES = {"http": 80, "https": 443}


class Role(enum.StrEnum):
    """Who may use a route. Every route declares one."""

    OPEN = "open"
    VIEWER = "viewer"
    DEPLOYER = "deployer"
    OPERATOR = "operator"
    NODE = "node"


class Standing(enum.StrEnum):
    """What a request has proved about its sender."""

    NOBODY = "nobody"
    VIEWER = "viewer"
    DEPLOYER = "deployer"
    OPERATOR = "operator"
    NODE = "node"
    TRUSTED = "trusted"  # there are no tokens: everyone who can reach the socket


_USERS = frozenset({Standing.VIEWER, Standing.DEPLOYER, Standing.OPERATOR})

# A node may read: it has the whole state anyway, and passes on what others ask it.
MAY_USE: Mapping[Role, frozenset[Standing]] = {
    Role.OPEN: frozenset(Standing),
    Role.VIEWER: _USERS | {Standing.NODE, Standing.TRUSTED},
    Role.DEPLOYER: frozenset({Standing.DEPLOYER, Standing.OPERATOR, Standing.TRUSTED}),
    Role.OPERATOR: frozenset({Standing.OPERATOR, Standing.TRUSTED}),
    Role.NODE: frozenset({Standing.NODE, Standing.TRUSTED}),
}

_STANDING = {
    TokenRole.VIEWER: Standing.VIEWER,
    TokenRole.DEPLOYER: Standing.DEPLOYER,
    TokenRole.OPERATOR: Standing.OPERATOR,
}


_NO_NODE = NodeId("")


class Identity(msgspec.Struct, frozen=True):
    """`actor` is what the cluster's history says of who did it. `token_id`: whose right it is, where it
    is a token's. `node_id`: the node that asks, or passes on what a user asks from `remote`."""

    standing: Standing
    actor: str
    token_id: str = ""
    node_id: NodeId = _NO_NODE
    remote: str = ""


NOBODY = Identity(Standing.NOBODY, "anonymous")
TRUSTED = Identity(Standing.TRUSTED, "anonymous")


def _no_certificate(_request: web.BaseRequest) -> NodeIdentity | None:
    return None


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """`tokens` False: nobody is asked who they are (--insecure). `hosts`: names under which this
    node is asked, beside its loopback names and any IP address. `node_of`: whose certificate the
    connection has shown, None without one; raises BadPacket for one that is worth nothing.
    `node_tls`: how to reach other nodes, showing this node's certificate, and `peer`: whose the other
    end has shown, which raises BadPacket; None: by plain HTTP. `signer`: of tickets."""

    tokens: bool = False
    node_tls: ssl.SSLContext | None = None
    hosts: frozenset[str] = frozenset()
    node_of: Callable[[web.BaseRequest], NodeIdentity | None] = _no_certificate
    peer: Callable[[ssl.SSLObject], NodeIdentity] | None = None
    signer: TicketSigner | None = None


def identify(
    authorization: str | None, node: NodeIdentity | None, trust: TrustState, now_ms: int
) -> Identity:
    """Whom the request proves to come from. A certificate counts before a token. Raises Problem
    (401) for a token that opens nothing: that is an error of the sender, not a visit of nobody."""
    if node is not None:
        _check_not_removed(node.node_id, trust)
        return Identity(Standing.NODE, f"node:{node.node_id}", node_id=node.node_id)
    if authorization is None:
        return NOBODY
    token = token_of(authorization)
    record = _record(token.id, trust, now_ms)
    if not secret_matches(token.secret, record.hash):
        raise _refused(_UNKNOWN_TOKEN)
    return _user(record)


def _check_not_removed(node_id: NodeId, trust: TrustState) -> None:
    if trust.is_removed(node_id):
        raise Problem("forbidden", "this node was removed from the cluster")


def token_of(authorization: str) -> ApiToken:
    """What the header shows. Raises Problem."""
    scheme, _, text = authorization.partition(" ")
    if len(authorization) > HEADER_CHARS_MAX or scheme.lower() != "bearer":
        raise _refused("Authorization must be a Bearer token")
    try:
        return parse_api_token(text.strip())
    except ValueError as error:
        raise _refused(str(error)) from None


def _record(token_id: str, trust: TrustState, now_ms: int) -> TokenRecord:
    """Raises Problem."""
    record = trust.tokens.get(token_id)
    if record is None:
        raise _refused(_UNKNOWN_TOKEN)
    if record.is_expired(now_ms):
        raise _refused("this token has expired")
    return record


def _user(record: TokenRecord, by: NodeId = _NO_NODE, remote: str = "") -> Identity:
    return Identity(_STANDING[record.role], f"token:{record.id}", record.id, by, remote)


def identify_by_ticket(
    access: Access, text: str, node: NodeIdentity, request: web.BaseRequest, here: NodeId,
    trust: TrustState, now_ms: int,
) -> Identity:  # fmt: skip
    """The user whose request this node passes on to us. Raises Problem."""
    _check_not_removed(node.node_id, trust)
    try:
        shown = read_ticket(text)
    except ValueError as error:
        raise Problem("forbidden", str(error)) from None
    ticket = shown.ticket
    asked = (node.node_id, here, request.method, request.rel_url.raw_path)
    if (ticket.by, ticket.to, ticket.method, ticket.path) != asked:
        raise Problem("forbidden", "the ticket is for another request")
    if abs(now_ms - ticket.made_at_ms) > TICKET_MS:
        raise Problem(
            "forbidden",
            f"the ticket was made {abs(now_ms - ticket.made_at_ms) // 1000} s from now: the clocks of "
            f"nodes {ticket.by} and {here} differ",
            hint="set both by NTP",
        )
    record = _record(ticket.token, trust, now_ms)
    if not record.key:
        raise Problem(
            "behind", "this node does not know the key of this token yet", hint="ask again"
        )
    if access.signer is None or not shown.is_signed(access.signer, record.key):
        raise Problem("forbidden", "the ticket is not signed with the token that it names")
    return _user(record, ticket.by, ticket.remote)


def check_still_good(identity: Identity, role: Role, trust: TrustState, now_ms: int) -> None:
    """Whoever asked could ask again: what lasts may outlast its token, and would be worth as much.
    Raises Problem."""
    if identity.node_id:
        _check_not_removed(identity.node_id, trust)
    if identity.token_id:
        authorise(_user(_record(identity.token_id, trust, now_ms)), role)


def authorise(identity: Identity, role: Role) -> None:
    """The identity may use a route of this role. Raises Problem: 401 for nobody, 403 for others."""
    if identity.standing in MAY_USE[role]:
        return
    if identity.standing is Standing.NOBODY:
        raise _refused("this route needs a token")
    raise Problem(
        "forbidden",
        f"this route is for the role {role}; {identity.actor} has the role {identity.standing}",
        hint="a token of that role is needed: CUBE_TOKEN or --token; `cube token create` makes one",
    )


def identity_of(
    access: Access,
    role: Role,
    request: web.BaseRequest,
    here: NodeId,
    trust: TrustState,
    now_ms: int,
) -> Identity:
    """The request's identity, which may use a route of this role. `here`: this node. Raises Problem."""
    if not access.tokens:
        return TRUSTED
    if role is Role.OPEN:
        return NOBODY  # a load balancer's question does not fail over a stale token
    try:
        node = access.node_of(request)
    except BadPacket as error:
        raise Problem("forbidden", str(error)) from None
    ticket = request.headers.get(TICKET)
    if node is not None and ticket is not None:
        identity = identify_by_ticket(access, ticket, node, request, here, trust, now_ms)
    else:
        identity = identify(request.headers.get("Authorization"), node, trust, now_ms)
    authorise(identity, role)
    return identity


def _refused(detail: str) -> Problem:
    return Problem("unauthenticated", detail, hint=_TOKEN_HINT, headers=CHALLENGE)


# What a browser may be tricked into


def check_browser(headers: MultiMapping[str], hosts: frozenset[str]) -> None:
    """The request was not sent by another site's page in somebody's browser. Raises Problem.

    A page of evil.example reaches a loopback port by making its own name mean 127.0.0.1: then the
    Host header still says evil.example (421). Or it sends a request to us as it may to anyone: then
    Origin or Sec-Fetch-Site says so (403). Programs send neither; nothing here stops them.
    """
    host = headers.get("Host")
    is_one = len(headers.getall("Host", ())) == 1
    if host is not None and not (is_one and is_own_host(host, hosts)):
        raise Problem(
            "misdirected",
            f"this node does not answer as {host[:100]!r}",
            hint="ask it by its address, or as localhost",
        )
    origin = headers.get("Origin")
    if origin is not None:
        if host is None or not _is_same(origin, host):
            raise Problem("foreign_origin", f"a page of {origin[:100]!r} may not use this API")
    elif headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and (
        headers.get("Sec-Fetch-Mode") != "navigate"  # a link to the dashboard is fine
    ):
        raise Problem("foreign_origin", "a page of another site may not use this API")


def is_own_host(header: str, hosts: frozenset[str]) -> bool:
    """An address (no name server can bend it), a loopback name, or one of `hosts`."""
    parts = _host_and_port(header)
    if parts is None:
        return False
    host = parts[0].removesuffix(".")
    if host == "localhost" or host.endswith(".localhost") or host in hosts:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_and_port(authority: str) -> tuple[str, str] | None:
    """Lower case, without brackets; None for what is no authority. An absent port is ""."""
    text = authority.strip().lower()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host:
            return None
    else:
        host, colon, rest = text.partition(":")
        rest = colon + rest
    port = rest.removeprefix(":")
    if not host or (rest and not rest.startswith(":")) or (port and not port.isdigit()):
        return None
    return host, port


def _is_same(origin: str, host: str) -> bool:
    """Host and port agree. The scheme may differ: a proxy before us may speak TLS."""
    scheme, separator, authority = origin.partition("://")
    default = _SCHEMES.get(scheme)
    theirs, ours = _host_and_port(authority), _host_and_port(host)
    if not separator or default is None or theirs is None or ours is None:
        return False
    return theirs[0] == ours[0] and (theirs[1] or str(default)) == (ours[1] or str(default))
