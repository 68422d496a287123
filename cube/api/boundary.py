"""Around every request: an id, a bound, the headers all answers carry, and errors as problem+json.

One of the three places in Cube that catch Exception: what gets here unexpectedly is a bug, which is
logged with its trace and answered without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterator

import msgspec
from aiohttp import web

from cube.api.auth import check_browser, identity_of
from cube.api.call import Api, Call, Kind, Route
from cube.api.errors import IN_SHORT, Problem, problem_of, short_of
from cube.model.errors import CubeError

log = logging.getLogger(__name__)

API: web.AppKey[Api] = web.AppKey("api", Api)
REQUEST_ID = web.RequestKey("request_id", str)
INDEX = web.RequestKey("index", int)
PROBLEM_JSON = "application/problem+json"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PRECONDITIONS = ("If-Match", "If-None-Match")

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def boundary(request: web.Request, handler: Answer) -> web.StreamResponse:
    """Whatever a handler raises is a problem in the answer, and each answer is counted."""
    api = request.app[API]
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if _REQUEST_ID.fullmatch(given) else api.next_request_id()
    try:
        check_browser(request.headers, api.access.hosts)
        response = await handler(request)
    except Problem as problem:
        response = _answer_problem(request, problem)
    except CubeError as error:
        response = _answer_problem(request, problem_of(error))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = _answer_problem(request, problem_of(error))
    except ConnectionError:  # the client went while it was answered
        raise
    except Exception:
        log.exception(
            "request_failed method=%s path=%s request_id=%s",
            request.method, request.path[:200], request[REQUEST_ID],
        )  # fmt: skip
        bug = Problem("internal", "this is a bug in Cube; the agent's log has more")
        response = _answer_problem(request, bug)
    api.count(
        request.method if request.method in _METHODS else "other", _path(request), response.status
    )
    return response


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


def _path(request: web.Request) -> str:
    """The route's, never the user's: labels must not grow with what people ask for."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical


def _answer_problem(request: web.Request, problem: Problem) -> web.Response:
    headers = problem.headers
    if "Upgrade" in request.headers:
        headers = {**headers, IN_SHORT: short_of(problem)}
    return web.Response(
        status=problem.status,
        body=msgspec.json.encode(problem.view(request[REQUEST_ID])),
        content_type=PROBLEM_JSON,
        headers=headers,
    )


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal on_response_prepare: also of streams, and of what aiohttp answers by itself."""
    api = request.app[API]
    headers = response.headers
    index = request.get(INDEX)
    headers["X-Cube-Index"] = str(api.cluster.state().index if index is None else index)
    headers["X-Cube-Node"] = api.cluster.node_id()
    headers["X-Content-Type-Options"] = "nosniff"
    if REQUEST_ID in request:
        headers["X-Request-Id"] = request[REQUEST_ID]
    if "Cache-Control" not in headers:
        headers["Cache-Control"] = "no-store"


def answering(route: Route) -> Answer:
    """The aiohttp handler of a route."""

    async def answer(request: web.Request) -> web.StreamResponse:
        api = request.app[API]
        trust = api.cluster.state().trust
        try:
            identity = identity_of(
                api.access, route.role, request, api.cluster.node_id(), trust, api.now_ms()
            )
        except Problem as problem:
            _check_caught_up(api, request, problem)
            raise
        _check_preconditions(route, request)
        call = Call(api, route, request, identity)
        if route.kind in (Kind.PLAIN, Kind.PEER):
            return await route.answer(call)
        sentence = api.cluster.joined()
        if sentence is not None:
            raise Problem("not_joined", sentence)
        with _admitted(call):
            if route.kind is not Kind.WRITE:
                await call.settle()
                if call.blocks:  # long enough for a token to end meanwhile
                    call.check_still_good()
            response = await route.answer(call)
            request[INDEX] = call.state.index
            return response

    return answer


def _check_caught_up(api: Api, request: web.Request, problem: Problem) -> None:
    """A token is unknown where it would be known: which there are is in the state, and a node that
    has not caught up must not condemn any. Raises Problem."""
    sentence = api.cluster.joined()
    if problem.code == "unauthenticated" and "Authorization" in request.headers and sentence:
        raise Problem("not_joined", sentence) from None


def _check_preconditions(route: Route, request: web.Request) -> None:
    """A guard that a route does not know must not be passed over in silence."""
    if route.kind is Kind.WRITE and not route.versioned:
        for header in _PRECONDITIONS:
            if header in request.headers:
                raise Problem("bad_request", f"this route does not know {header}")


@contextlib.contextmanager
def _admitted(call: Call) -> Iterator[None]:
    """Counted while it is answered. Raises Problem when there are too many."""
    api = call.api
    if call.route.kind is Kind.STREAM or call.blocks:
        if len(api.lasting) >= api.settings.streams_max:
            raise Problem(
                "too_many_streams", f"{api.settings.streams_max} are open on this node",
                headers={"Retry-After": "5"},
            )  # fmt: skip
        task = asyncio.current_task()
        assert task is not None
        api.lasting.add(task)
        try:
            yield
        finally:
            api.lasting.discard(task)
        return
    if api.requests >= api.settings.requests_max:
        raise Problem("overloaded", f"{api.settings.requests_max} requests are being answered")
    api.requests += 1
    try:
        yield
    finally:
        api.requests -= 1
