"""/ui/: the dashboard's files, read once. Nothing a request says becomes a path."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from cube.api.call import Call
from cube.api.errors import Problem

_FOLDER = Path(__file__).parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    path.name: (path.read_bytes(), _TYPES[path.suffix])
    for path in sorted(_FOLDER.iterdir())
    if path.suffix in _TYPES
}


async def go_to_dashboard(call: Call) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/ui/"})


async def show_index(call: Call) -> web.StreamResponse:
    return _file("index.html")


async def show_file(call: Call) -> web.StreamResponse:
    return _file(call.path("file"))


def _file(name: str) -> web.Response:
    found = _FILES.get(name)
    if found is None:
        raise Problem("not_found", "the dashboard has no such file")
    body, content_type = found
    return web.Response(
        body=body,
        headers={
            "Content-Type": content_type,
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )
