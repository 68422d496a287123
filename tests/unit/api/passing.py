"""Two nodes with tokens, one of which passes on what it is asked. Who says that a node passed a
request on stands for a connection that has shown that node's certificate."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from multidict import CIMultiDictProxy

from cube.adapters.trust.tickets import Ed25519Tickets, token_key
from cube.api.auth import FORWARDED, Access
from cube.model import commands as c
from cube.model.ids import ClusterId, NodeId
from cube.model.trust import NodeIdentity, NodeRole, TokenRole, secret_hash
from tests.unit.api.test_api_auth import IDS, SECRET

Heard = Callable[[CIMultiDictProxy[str]], None]


def passed_on_access(heard: Heard = lambda _: None) -> Access:
    def node_of(request: web.BaseRequest) -> NodeIdentity | None:
        heard(request.headers)
        by = request.headers.get(FORWARDED)
        if by is None:
            return None
        return NodeIdentity(ClusterId("cluster-1"), NodeRole.NODE, NodeId(by))

    return Access(tokens=True, node_of=node_of, signer=Ed25519Tickets())


def create_token(role: TokenRole, secret: bytes = SECRET, id_: str = "") -> c.CreateToken:
    return c.CreateToken(id_ or IDS[role], secret_hash(secret), role, key=token_key(secret))
