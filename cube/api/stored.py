"""/v1/secrets and /v1/configs. A secret's value comes in and never goes out: not in an answer, not in an
error, and what remembers the request has its fingerprint only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from cube.api import query
from cube.api.bodies import check_media_type, decode_json, read_body, read_nothing
from cube.api.call import JSON, Call
from cube.api.errors import Problem
from cube.api.render import rfc3339
from cube.model.cluster import ClusterState
from cube.model.commands import RemoveStored, StoreVersion
from cube.model.outcome import Done, StoredAccepted
from cube.model.stored import NAME, NAME_ACCEPTED, VALUE_BYTES_MAX, Stored, StoredKind, StoredRef
from cube.model.views import (
    Page,
    ProblemError,
    StoredChanged,
    StoredRemoved,
    StoredVersionView,
    StoredView,
)

BYTES = "application/octet-stream"
Answer = Callable[[Call], Awaitable[web.StreamResponse]]


class ValueBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the two. `data` is Base64, for what is no text."""

    value: str | None = None
    data: bytes | None = None

    def __repr__(self) -> str:
        return "ValueBody()"


class NamedBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    value: str | None = None
    data: bytes | None = None

    def __repr__(self) -> str:
        return f"NamedBody({self.name!r})"


def list_all(kind: StoredKind) -> Answer:
    async def answer(call: Call) -> web.StreamResponse:
        found = [one for one in call.state.stored.values() if one.kind is kind]
        found.sort(key=_name_of)
        page, following = query.page_by_name(found, _name_of, call.query)
        users = _users(call.state)
        views = tuple(_view(one, users) for one in page)
        return call.json(Page(views, following, call.state.index))

    return answer


def show(kind: StoredKind) -> Answer:
    async def answer(call: Call) -> web.StreamResponse:
        return call.json(_view(_find(call, kind), _users(call.state)))

    return answer


async def show_config_value(call: Call) -> web.StreamResponse:
    """The bytes that were given."""
    stored = _find(call, StoredKind.CONFIG)
    number = query.integer(call.query, "version", 0, 0)
    version = stored.at(number) if number else stored.newest
    if version is None:
        kept = ", ".join(str(one.version) for one in stored.versions)
        raise Problem("not_found", f"{stored.ref} has no version {number}; it has {kept}")
    return web.Response(
        body=version.data,
        content_type=BYTES,
        headers={"ETag": f'"{version.version}"', "X-Content-Type-Options": "nosniff"},
    )


def make(kind: StoredKind) -> Answer:
    """POST, with the name in the body."""

    async def answer(call: Call) -> web.StreamResponse:
        _ = check_media_type(call, JSON)
        data = await read_body(call)
        body = decode_json(data, NamedBody)
        return await _store(call, kind, body.name, _given(body.value, body.data), data)

    return answer


def put(kind: StoredKind) -> Answer:
    """PUT: the body is JSON, or the value itself."""

    async def answer(call: Call) -> web.StreamResponse:
        is_json = check_media_type(call, BYTES, JSON) == JSON
        data = await read_body(call)
        value = data
        if is_json:
            body = decode_json(data, ValueBody)
            value = _given(body.value, body.data)
        return await _store(call, kind, call.path("name"), value, data)

    return answer


def _given(value: str | None, data: bytes | None) -> bytes:
    if (value is None) == (data is None):
        raise Problem("invalid", "send value (text) or data (Base64), one of the two")
    if data is not None:
        return data
    assert value is not None
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise _wrong("value", "is no text; send data in Base64 instead") from None


async def _store(
    call: Call, kind: StoredKind, name: str, value: bytes, sent: bytes
) -> web.StreamResponse:
    if not NAME.fullmatch(name):
        raise _wrong("name", f"the name of a {kind.value} has {NAME_ACCEPTED}")
    if len(value) > VALUE_BYTES_MAX:
        raise _wrong("value", f"has {len(value)} bytes; at most {VALUE_BYTES_MAX} are accepted")
    expected = call.expected_version()
    data, fingerprint = value, b""
    if kind is StoredKind.SECRET:
        if not value:
            raise _wrong("value", "is empty")
        data, fingerprint = call.api.seal(name, value)
        sent = fingerprint  # a digest of what was sent would be a way to guess it
    command = StoreVersion(kind, name, data, len(value), fingerprint, expected)
    proposed = await call.propose(command, sent)
    outcome = proposed.outcome
    assert isinstance(outcome, StoredAccepted), outcome
    view = StoredChanged(
        name=name,
        version=outcome.version,
        changed=outcome.changed,
        jobs=outcome.jobs,
        job_count=outcome.job_count,
        index=proposed.index,
    )
    is_new = outcome.changed and outcome.version == 1
    return call.json(view, status=201 if is_new else 200)


def remove(kind: StoredKind) -> Answer:
    """DELETE: nothing is kept of it, unless a job needs it."""

    async def answer(call: Call) -> web.StreamResponse:
        sent = await read_nothing(call)
        name = call.path("name")
        if not call.is_repeatable:
            _ = _find(call, kind)
        proposed = await call.propose(RemoveStored(kind, name), sent)
        assert isinstance(proposed.outcome, Done), proposed.outcome
        return call.json(StoredRemoved(name, proposed.outcome.changed, proposed.index))

    return answer


def _wrong(key: str, problem: str) -> Problem:
    return Problem("invalid", f"{key}: {problem}", errors=(ProblemError(f"/{key}", problem, key),))


def _name_of(stored: Stored) -> str:
    return stored.name


def _find(call: Call, kind: StoredKind) -> Stored:
    name = call.path("name")
    stored = call.state.stored.get(StoredRef(kind, name).key)
    if stored is None:
        hint = f"GET /v1/{kind.value}s lists them"
        raise Problem("not_found", f"there is no such {kind.value}", hint=hint)
    return stored


def _users(state: ClusterState) -> dict[str, list[str]]:
    """Who has it in its newest version, by key; sorted."""
    users: dict[str, list[str]] = {}
    for name in sorted(state.job_names):
        job = state.jobs[state.job_names[name]]
        for key in job.versions[-1].uses:
            users.setdefault(key, []).append(name)
    return users


def _view(stored: Stored, users: dict[str, list[str]]) -> StoredView:
    return StoredView(
        name=stored.name,
        version=stored.newest.version,
        size=stored.newest.size_bytes,
        created_at=rfc3339(stored.created_at_ms),
        modified_at=rfc3339(stored.newest.created_at_ms),
        used_by=tuple(users.get(stored.ref.key, ())),
        versions=tuple(
            StoredVersionView(one.version, one.size_bytes, rfc3339(one.created_at_ms), one.actor)
            for one in stored.versions
        ),
    )
