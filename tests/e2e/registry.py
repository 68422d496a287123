"""An image registry on loopback, where engines do without TLS: empty, or with images made here."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import platform
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_UNKNOWN = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
_UNAUTHORIZED = b'{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}'
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_APPLETS = ("sh", "cat", "sleep", "echo")


class Registry:
    """`address` begins the name of an image. `pulled` are the references that were asked for, in order.
    With a `login`, a `user:password`, nobody else is served."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.login = ""
        self.pulled: list[str] = []
        self._found: dict[str, tuple[str, bytes]] = {}  # by path: its media type and bytes

    def push(self, name: str, tag: str, content: str) -> str:
        """An image whose /version has that content; its digest. The tag means this one from now on."""
        layer = _layer(content)
        config = json.dumps(
            {
                "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
                "os": "linux",
                "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
                "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
            }
        ).encode()
        packed = gzip.compress(layer, 1, mtime=0)
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": self._blob(name, _CONFIG, config),
                "layers": [self._blob(name, _LAYER, packed)],
            }
        ).encode()
        for reference in (tag, _digest(manifest)):
            self._found[f"/v2/{name}/manifests/{reference}"] = _MANIFEST, manifest
        return _digest(manifest)

    def _blob(self, name: str, media_type: str, data: bytes) -> dict[str, Any]:
        self._found[f"/v2/{name}/blobs/{_digest(data)}"] = "application/octet-stream", data
        return {"mediaType": media_type, "size": len(data), "digest": _digest(data)}

    def answer(self, path: str, authorization: str) -> tuple[int, str, bytes]:
        expected = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        if self.login and authorization != expected:
            return 401, "application/json", _UNAUTHORIZED
        if path == "/v2/":
            return 200, "application/json", b"{}"
        if "/manifests/" in path:
            self.pulled.append(path.rpartition("/")[2])
        media_type, body = self._found.get(path, ("", b""))
        return (200, media_type, body) if media_type else (404, "application/json", _UNKNOWN)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _layer(content: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:

        def add(name: str, data: bytes, mode: int) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))

        add("version", content.encode(), 0o644)
        add("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)  # busybox-static's
        for applet in _APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return buffer.getvalue()


@contextlib.contextmanager
def registry() -> Iterator[Registry]:
    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, media_type, body = served.answer(
                self.path, self.headers.get("Authorization", "")
            )
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="test"')
            elif media_type == _MANIFEST:
                self.send_header("Docker-Content-Digest", _digest(body))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        served = Registry(f"127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield served
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def empty_registry() -> Iterator[str]:
    """Its address, as it begins the name of an image."""
    with registry() as served:
        yield served.address
