"""An image registry that answers, and has no image."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator

_UNKNOWN = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_root = self.path == "/v2/"
        body = b"{}" if is_root else _UNKNOWN
        self.send_response(200 if is_root else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def empty_registry() -> Iterator[str]:
    """Its address, as it begins the name of an image. On loopback engines do without TLS."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
