"""What the command line finds by itself, and to whom it shows it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from cube.adapters.trust.tls import NodeTls
from cube.client.client import Client
from cube.client.credentials import Credentials, find
from cube.client.errors import NoAgent
from tests.unit.trust.test_node_tls import CLUSTER, Authority

TOKEN = "cube_00000000_" + "a" * 64


@pytest.fixture
def authority() -> Authority:
    return Authority()


def data_dir(authority: Authority, directory: Path, *, has_token: bool) -> Path:
    authority.node(directory, "n1")
    if has_token:
        (directory / "operator-token").write_text(TOKEN + "\n")
    return directory


def test_given_before_environment_before_the_data_directory(
    authority: Authority, tmp_path: Path
) -> None:
    directory = data_dir(authority, tmp_path / "d", has_token=True)
    env = {"CUBE_DATA_DIR": str(directory)}
    found = find(env, token=None, ca_file=None)
    assert (found.token, found.ca_file, found.is_found) == (TOKEN, f"{directory}/ca.crt", True)
    assert found.node_files is None
    env |= {"CUBE_TOKEN": "of the environment"}
    found = find(env, token=None, ca_file=None)
    assert (found.token, found.is_found) == ("of the environment", False)
    assert find(env, token="given", ca_file=None).token == "given"
    # Another CA is another cluster: this one's token is not for it.
    env = {"CUBE_DATA_DIR": str(directory), "CUBE_CACERT": "/other"}
    found = find(env, token=None, ca_file=None)
    assert (found.token, found.ca_file) == (None, "/other")
    assert find(env, token=None, ca_file="/given").ca_file == "/given"
    assert TOKEN not in repr(find({"CUBE_DATA_DIR": str(directory)}, token=None, ca_file=None))


def test_a_node_without_a_token_is_a_reader(authority: Authority, tmp_path: Path) -> None:
    directory = data_dir(authority, tmp_path / "d", has_token=False)
    found = find({"CUBE_DATA_DIR": str(directory)}, token=None, ca_file=None)
    assert found.node_files == (f"{directory}/node.crt", f"{directory}/node.key")
    assert find({"CUBE_DATA_DIR": str(tmp_path)}, token=None, ca_file=None) == Credentials()


async def serve(context: ssl.SSLContext | None) -> tuple[web.AppRunner, int, list[dict[str, str]]]:
    """Answers /v1/livez, and keeps the headers of those who ask."""
    seen: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(dict(request.headers))
        return web.json_response({"status": "alive"})

    app = web.Application()
    app.router.add_get("/v1/livez", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    return runner, runner.addresses[0][1], seen


async def ask(address: str, credentials: Credentials) -> bool:
    def call() -> bool:
        with Client([address], credentials, timeout_s=10) as client:
            return client.is_alive()

    return await asyncio.to_thread(call)


async def with_server(
    context: ssl.SSLContext | None,
    body: Callable[[int, list[dict[str, str]]], Awaitable[None]],
) -> None:
    runner, port, seen = await serve(context)
    try:
        await body(port, seen)
    finally:
        await runner.cleanup()


async def test_a_found_token_goes_to_a_node_of_the_cluster_only(
    authority: Authority, tmp_path: Path
) -> None:
    directory = data_dir(authority, tmp_path / "d", has_token=True)
    found = find({"CUBE_DATA_DIR": str(directory)}, token=None, ca_file=None)
    given = Credentials(token=TOKEN)

    async def of_the_cluster(port: int, seen: list[dict[str, str]]) -> None:
        assert await ask(f"127.0.0.1:{port}", found)
        assert seen[-1]["Authorization"] == f"Bearer {TOKEN}"

    async def of_another(port: int, seen: list[dict[str, str]]) -> None:
        for address in (f"127.0.0.1:{port}", f"https://127.0.0.1:{port}"):
            with pytest.raises(NoAgent, match="not a node of the cluster"):
                await ask(address, found)
        assert seen == []

    async def without_tls(port: int, seen: list[dict[str, str]]) -> None:
        assert await ask(f"127.0.0.1:{port}", found)
        assert "Authorization" not in seen[-1]
        assert await ask(f"http://127.0.0.1:{port}", found)
        assert "Authorization" not in seen[-1]
        assert await ask(f"http://127.0.0.1:{port}", given)  # whoever types it means it
        assert seen[-1]["Authorization"] == f"Bearer {TOKEN}"
        with pytest.raises(NoAgent):
            await ask(f"https://127.0.0.1:{port}", found)

    await with_server(NodeTls(directory, CLUSTER).api_server, of_the_cluster)
    other = Authority().node(tmp_path / "other", "n1")
    await with_server(NodeTls(other, CLUSTER).api_server, of_another)
    await with_server(None, without_tls)


async def test_a_node_shows_its_certificate(authority: Authority, tmp_path: Path) -> None:
    directory = data_dir(authority, tmp_path / "d", has_token=False)
    found = find({"CUBE_DATA_DIR": str(directory)}, token=None, ca_file=None)
    tls = NodeTls(directory, CLUSTER)

    async def body(port: int, _seen: list[dict[str, str]]) -> None:
        assert await ask(f"127.0.0.1:{port}", found)
        with pytest.raises(NoAgent):
            await ask(f"127.0.0.1:{port}", Credentials(ca_file=found.ca_file))

    await with_server(tls.server, body)  # which asks for a certificate
