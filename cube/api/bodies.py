"""Reading request bodies: bounded in bytes and time, of a declared type, decoded strictly."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from aiohttp import web

from cube.api.call import JSON, Call
from cube.api.errors import Problem, did_you_mean
from cube.model.views import ProblemError

T = TypeVar("T")

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<where>[^`]*)`)?$", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"unknown field `(?P<field>.*)`")
_WHERE_PART = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+|\.\.\.)\]")
DETAIL_CHARS_MAX = 300


def media_type(call: Call) -> str:
    """Of the body; "" when the client did not say."""
    header = call.request.headers.get("Content-Type", "")
    return header.partition(";")[0].strip().lower()


def check_media_type(call: Call, *accepted: str) -> str:
    found = media_type(call)
    if found not in accepted:
        raise Problem(
            "unsupported_media_type",
            f"this route does not read {found[:64]!r}" if found else "the body has no Content-Type",
            hint=f"send Content-Type: {' or '.join(accepted)}",
        )
    return found


async def read_body(call: Call, bytes_max: int | None = None) -> bytes:
    """The whole body. Raises Problem: compressed, too large, too slow, cut off."""
    request, settings = call.request, call.api.settings
    limit = settings.body_bytes_max if bytes_max is None else bytes_max
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Problem("unsupported_encoding", f"Content-Encoding {encoding[:32]!r} is not accepted")
    too_large = Problem("too_large", f"the body is larger than {limit} bytes")
    if request.content_length is not None and request.content_length > limit:
        raise too_large
    try:
        async with asyncio.timeout(settings.body_timeout_ms / 1000):
            data = await request.read()
    except TimeoutError:
        raise Problem(
            "body_timeout",
            f"the body was not complete after {settings.body_timeout_ms / 1000:g} s",
            headers={"Connection": "close"},
        ) from None
    except web.RequestPayloadError as error:
        raise Problem("bad_body", f"the body is cut off or malformed: {error}") from None
    if len(data) > limit:
        raise too_large
    return data


async def read_nothing(call: Call) -> bytes:
    """For routes whose body says nothing: empty, or an empty JSON object."""
    data = await read_body(call)
    if data.strip() not in (b"", b"{}", b"null"):
        raise Problem("invalid", "this route takes no body")
    return data


async def read_json(call: Call, shape: type[T]) -> tuple[T, bytes]:
    """The body as a value of `shape`, and its bytes. Raises Problem."""
    check_media_type(call, JSON)
    data = await read_body(call)
    return decode_json(data, shape), data


def decode_json(data: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=shape)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), shape) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = str(error)[:DETAIL_CHARS_MAX]
        raise Problem("bad_body", f"the body is not JSON: {text}") from None


def _invalid(message: str, shape: object) -> Problem:
    """msgspec's sentence as a pointer and a sentence."""
    match = _AT.match(message[:DETAIL_CHARS_MAX])
    assert match is not None
    what = match["what"].replace("`", "'")
    pointer = ""
    for key, index in _WHERE_PART.findall(match["where"] or ""):
        pointer += f"/{key or index}"
    hint = ""
    unknown = _UNKNOWN_FIELD.search(match["what"])
    if unknown is not None:
        field = unknown["field"]
        pointer = f"{pointer}/{field.replace('~', '~0').replace('/', '~1')}"
        known = getattr(shape, "__struct_fields__", ())
        hint = did_you_mean(field, known) or f"known are {', '.join(known)}"
        what = f"unknown key {field!r}"
    path = pointer[1:].replace("/", ".")
    return Problem(
        "invalid", f"{path}: {what}" if path else what, hint=hint,
        errors=(ProblemError(pointer, what, path, hint),),
    )  # fmt: skip
