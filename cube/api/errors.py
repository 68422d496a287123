"""Every answer that is not a success: one table of codes, and what becomes which.

A refusal is raised as a Problem and becomes application/problem+json in cube.api.boundary; nowhere
else is an error answer made.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

import msgspec
from aiohttp import web

from cube.model.errors import (
    BadConfig,
    ConfigError,
    CubeError,
    DriverFailed,
    OutcomeUnknown,
    Unavailable,
)
from cube.model.outcome import Rejected, RejectReason
from cube.model.views import ProblemError, ProblemView

RETRY_AFTER_S = 1  # an election takes less; a client that comes back then finds a leader

# code: (status, title). The codes are part of the API: scripts branch on them.
CODES: Mapping[str, tuple[int, str]] = {
    "bad_request": (400, "The request cannot be understood"),
    "unknown_parameter": (400, "The query has a parameter that this route does not know"),
    "bad_parameter": (400, "A query parameter has a value that cannot be used"),
    "bad_body": (400, "The body cannot be read"),
    "unauthenticated": (401, "The request does not say who sends it"),
    "forbidden": (403, "The sender may not do this"),
    "foreign_origin": (403, "The request comes from another site's page"),
    "not_found": (404, "There is no such thing"),
    "no_route": (404, "There is no such route"),
    "method_not_allowed": (405, "The route does not know this method"),
    "body_timeout": (408, "The body did not arrive in time"),
    "refused": (409, "The state of the cluster does not allow it"),
    "ambiguous": (409, "More than one thing has this name"),
    "key_reused": (409, "The idempotency key was used with another request"),
    "limit": (409, "A limit of the cluster is reached"),
    "not_leader": (409, "This node does not lead"),
    "conflict": (412, "The object is not at the version that was named"),
    "too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "The body is of a type that this route does not read"),
    "unsupported_encoding": (415, "Compressed bodies are not accepted"),
    "misdirected": (421, "The request is meant for another host"),
    "invalid": (422, "The request is well formed, but wrong"),
    "invalid_job": (422, "The job is not valid"),
    "too_many_streams": (429, "Too many streams and blocking queries are open"),
    "internal": (500, "A bug in Cube"),
    "not_built": (501, "This is planned, and not there yet"),
    "driver_failed": (502, "The node's driver could not do it"),
    "unavailable": (503, "Nothing was done; it may work later"),
    "not_joined": (503, "This node is not part of a cluster yet"),
    "not_ready": (503, "This node has not caught up, or knows no leader"),
    "behind": (503, "This node has not caught up with the index that was asked for"),
    "overloaded": (503, "This node answers as many requests as it can"),
    "node_unreachable": (503, "The node that could answer is out of reach"),
    "outcome_unknown": (504, "It may or may not have happened"),
}

_REFUSALS: Mapping[RejectReason, str] = {
    RejectReason.NOT_FOUND: "not_found",
    RejectReason.CONFLICT: "conflict",
    RejectReason.KEY_REUSED: "key_reused",
    RejectReason.REFUSED: "refused",
    RejectReason.INVALID: "invalid",
    RejectReason.LIMIT: "limit",
    RejectReason.STALE_TERM: "unavailable",
    RejectReason.INTERNAL: "internal",
}

_BY_STATUS = {
    400: "bad_request",
    404: "no_route",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}


class Problem(Exception):
    """An answer that is not a success. `code` is a key of CODES."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        hint: str = "",
        errors: tuple[ProblemError, ...] = (),
        leader: str | None = None,
        candidates: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = CODES[code]
        self.detail = detail
        self.hint = hint
        self.errors = errors
        self.leader = leader
        self.candidates = candidates
        self.headers = dict(headers or {})
        if self.status == 503 and "Retry-After" not in self.headers:
            self.headers["Retry-After"] = str(RETRY_AFTER_S)

    def view(self, request_id: str) -> ProblemView:
        return ProblemView(
            type=f"urn:cube:problem:{self.code}",
            title=self.title,
            status=self.status,
            detail=self.detail,
            code=self.code,
            hint=self.hint,
            errors=self.errors,
            request_id=request_id,
            leader=msgspec.UNSET if self.leader is None else self.leader,
            candidates=self.candidates or msgspec.UNSET,
        )


# Who asks for a WebSocket and is refused cannot read the body of the answer (aiohttp, and every
# browser): what a node says to another is in a header, too.
IN_SHORT = "X-Cube-Problem"
_SHORT_CHARS_MAX = 1_000  # of a sentence, before it is quoted: headers are bounded


class _Short(msgspec.Struct, frozen=True):
    code: str
    detail: str
    hint: str = ""


def short_of(problem: Problem) -> str:
    """Of the header IN_SHORT."""
    detail, hint = problem.detail[:_SHORT_CHARS_MAX], problem.hint[:_SHORT_CHARS_MAX]
    return quote(msgspec.json.encode(_Short(problem.code, detail, hint)))


def problem_in_short(text: str) -> Problem | None:
    """What the header says; None for one that says nothing."""
    try:
        short = msgspec.json.decode(unquote(text), type=_Short)
        return Problem(short.code, short.detail, hint=short.hint)
    except (msgspec.MsgspecError, KeyError, RecursionError):
        return None


def problem_of(error: CubeError | web.HTTPException) -> Problem:
    """What the API answers for an error that is not a bug."""
    match error:
        case Unavailable():
            return Problem("unavailable", _sentence(error), hint="nothing was done; try again")
        case OutcomeUnknown():
            return Problem(
                "outcome_unknown",
                _sentence(error),
                hint="send the same request with the same Idempotency-Key to any node: it happens once",
            )
        case DriverFailed(code="too_many_sessions"):
            return Problem("too_many_streams", error.message, headers={"Retry-After": "5"})
        case DriverFailed():
            return Problem("driver_failed", error.message)
        case BadConfig():
            return job_problem(error)
        case web.HTTPException():
            return _http_problem(error)
        case _:
            return Problem("bad_request", str(error))


def _sentence(error: Exception) -> str:
    return str(error) or "the node gave no reason"


def _http_problem(error: web.HTTPException) -> Problem:
    code = _BY_STATUS.get(error.status, "bad_request" if error.status < 500 else "internal")
    detail = error.text or error.reason
    headers: dict[str, str] = {}
    hint = ""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        headers["Allow"] = allowed
        detail = f"{error.method} is not one of this route's methods"
        hint = f"use {allowed}"
    elif error.status == 404:
        detail = "no route has this path"
        hint = "GET /v1/status is one; the README lists the others"
    elif error.status == 413:
        detail = "the body is larger than this route accepts"
    return Problem(code, detail, hint=hint, headers=headers)


def refused(rejected: Rejected) -> Problem:
    """A command that apply refused."""
    code = _REFUSALS[rejected.reason]
    if code == "internal":  # its message is a bug's; it is in the log of the node that applied it
        return Problem("internal", "the command met a bug and changed nothing")
    return Problem(code, rejected.message)


def job_problem(error: BadConfig, code: str = "invalid_job") -> Problem:
    """Every error of a job at once."""
    errors = tuple(_config_error(found) for found in error.errors)
    first = error.errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(code, f"{first.path}: {first.problem}{more}", hint=first.hint, errors=errors)


_PATH_PART = re.compile(r'"((?:\\.|[^"\\])*)"|\[(\d+)\]|([^.\[\]"]+)')


def _config_error(error: ConfigError) -> ProblemError:
    return ProblemError(pointer_of(error.path), error.problem, error.path, error.hint)


def pointer_of(path: str) -> str:
    """A JSON pointer (RFC 6901) from `groups.web.checks[0].prt`. The whole document is ""."""
    if path.startswith("("):  # "(file)"
        return ""
    parts = (quoted or index or bare for quoted, index, bare in _PATH_PART.findall(path))
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint, or "" when nothing is near."""
    near = difflib.get_close_matches(word[:64], sorted(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""
