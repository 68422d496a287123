"""A client of the docker SDK whose failed connections leave no socket behind.

The SDK's own connection to a unix socket leaves it to the garbage collector when connect() fails:
with an engine that is away for a day, that is a file descriptor for each ping until it runs.
"""

from __future__ import annotations

import socket
from typing import Any

import docker
import docker.errors
from docker.transport import UnixHTTPAdapter
from docker.transport.unixconn import UnixHTTPConnection, UnixHTTPConnectionPool

CONNECTIONS_KEPT_MAX = 80  # the pool's threads and all streams: none is thrown away half-used
ANY_VERSION = "1.24"  # the SDK's oldest; only for asking which one the engine speaks


class _Connection(UnixHTTPConnection):
    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            connection.connect(self.unix_socket)
        except BaseException:
            connection.close()
            raise
        self.sock = connection


class _Pool(UnixHTTPConnectionPool):
    def _new_conn(self) -> Any:
        return _Connection(self.base_url, self.socket_path, self.timeout)  # type: ignore[arg-type]


class _Adapter(UnixHTTPAdapter):
    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        with self.pools.lock:
            pool = self.pools.get(url)
            if pool is None:
                pool = _Pool(url, self.socket_path, self.timeout, maxsize=self.max_pool_size)
                self.pools[url] = pool
        return pool


def connect(where: dict[str, Any], timeout_s: float) -> docker.APIClient:
    """A client that speaks the engine's own API version. Blocks; raises what is in WEATHER."""
    asking = _client(where, ANY_VERSION, timeout_s)
    try:
        # Not /version: that one makes the engine run other programs to ask for theirs.
        answer = asking.get(f"{asking.base_url}/_ping", timeout=timeout_s)
        answer.raise_for_status()
        version = answer.headers.get("Api-Version", "")
    finally:
        asking.close()
    if not version:
        raise docker.errors.DockerException("what answers there is no Docker Engine")
    return _client(where, version, timeout_s)


def _client(where: dict[str, Any], version: str, timeout_s: float) -> docker.APIClient:
    client = docker.APIClient(**where, version=version, timeout=timeout_s)  # type: ignore[arg-type]
    client.trust_env = False  # proxies and netrc: looked up for each request, of no use here
    adapter = client.get_adapter(client.base_url)
    if isinstance(adapter, UnixHTTPAdapter):
        path = f"http+unix://{adapter.socket_path}"
        client.mount(
            "http+docker://",
            _Adapter(path, timeout_s, max_pool_size=CONNECTIONS_KEPT_MAX),  # type: ignore[arg-type]
        )
        adapter.close()
    return client
