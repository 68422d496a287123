"""/v1/tokens, and the cluster's join token and gossip keys. Secrets are shown when they are made."""

from __future__ import annotations

import msgspec
from aiohttp import web

from cube.api import query
from cube.api.bodies import read_json, read_nothing
from cube.api.call import Call
from cube.api.errors import Problem
from cube.api.render import rfc3339
from cube.model import commands
from cube.model.outcome import Done
from cube.model.trust import (
    DESCRIPTION_CHARS_MAX,
    JoinToken,
    TokenRecord,
    TokenRole,
    format_api_token,
    format_join_token,
    secret_hash,
)
from cube.model.units import parse_duration_ms
from cube.model.views import (
    JoinTokenView,
    KeyRotation,
    Page,
    ProblemError,
    TokenChanged,
    TokenMade,
    TokenView,
)


class TokenBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`lifetime` None: until it is removed."""

    role: TokenRole
    lifetime: str | int | float | None = None
    description: str = ""


async def list_tokens(call: Call) -> web.Response:
    tokens = sorted(call.state.trust.tokens.values(), key=_id_of)
    page, following = query.page_by_name(tokens, _id_of, call.query)
    return call.json(Page(tuple(map(_view, page)), following, call.state.index))


def _id_of(token: TokenRecord) -> str:
    return token.id


def _view(token: TokenRecord) -> TokenView:
    return TokenView(
        id=token.id,
        role=token.role.value,
        description=token.description,
        created_at=rfc3339(token.created_at_ms),
        expires_at=None if token.expires_at_ms is None else rfc3339(token.expires_at_ms),
    )


async def show_token(call: Call) -> web.Response:
    token = call.state.trust.tokens.get(call.path("name"))
    if token is None:
        raise Problem("not_found", "there is no such token", hint="GET /v1/tokens lists them")
    return call.json(_view(token))


async def create_token(call: Call) -> web.Response:
    body, data = await read_json(call, TokenBody)
    if len(body.description) > DESCRIPTION_CHARS_MAX or not body.description.isprintable():
        raise _invalid(
            "description", f"must be at most {DESCRIPTION_CHARS_MAX} printable characters"
        )
    lifetime_ms: int | None = None
    if body.lifetime is not None:
        try:
            lifetime_ms = parse_duration_ms(body.lifetime)
        except ValueError as error:
            raise _invalid("lifetime", str(error)) from None
    token = call.api.tokens.api_token(call.command_id)
    command = commands.CreateToken(
        token.id,
        secret_hash(token.secret),
        body.role,
        lifetime_ms,
        body.description,
        call.api.tokens.token_key(token.secret),
    )
    proposed = await call.propose(command, data)
    made = call.state.trust.tokens.get(token.id)
    expires_at_ms = None if made is None else made.expires_at_ms
    view = TokenMade(
        id=token.id,
        token=format_api_token(token),
        role=body.role.value,
        description=body.description,
        expires_at=None if expires_at_ms is None else rfc3339(expires_at_ms),
        index=proposed.index,
    )
    return call.json(view, 201)


async def remove_token(call: Call) -> web.Response:
    data = await read_nothing(call)
    id_ = call.path("name")
    proposed = await call.propose(commands.RemoveToken(id_), data)
    assert isinstance(proposed.outcome, Done), proposed.outcome
    return call.json(TokenChanged(id_, proposed.outcome.changed, proposed.index))


def _invalid(key: str, problem: str) -> Problem:
    return Problem("invalid", f"{key}: {problem}", errors=(ProblemError(f"/{key}", problem, key),))


# How other hosts become nodes, and what gossip is sealed with


async def show_join_token(call: Call) -> web.Response:
    return call.json(_join_view(call, call.api.tokens.join_token(), call.state.index))


async def rotate_join_token(call: Call) -> web.Response:
    data = await read_nothing(call)
    command, token = call.api.tokens.new_join_token(call.command_id)
    proposed = await call.propose(command, data)
    return call.json(_join_view(call, token, proposed.index))


def _join_view(call: Call, token: JoinToken, index: int) -> JoinTokenView:
    node = call.state.nodes.get(call.api.cluster.node_id())
    return JoinTokenView(
        token=format_join_token(token),
        join=None if node is None else node.facts.http_address,
        needed=call.api.access.tokens,
        index=index,
    )


async def rotate_keys(call: Call) -> web.Response:
    """The new key is known to all; nodes go over to it by themselves, step by step."""
    data = await read_nothing(call)
    command = call.api.tokens.new_gossip_key(call.command_id)
    proposed = await call.propose(command, data)
    return call.json(KeyRotation(command.key.id, proposed.index))
