"""`cube raft snapshot save`: the file is whole or not there."""

from __future__ import annotations

import contextlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.test_cli_restore import a_world, save

ROOT = Path(__file__).resolve().parents[3]


@contextlib.contextmanager
def agent(data: bytes, length: int) -> Iterator[str]:
    """What answers every POST with `data`, and says that it has `length` bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def save_to(file: Path, address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cube", "--addr", address, "raft", "snapshot", "save", str(file),
         *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> bytes:
    return save(tmp_path / "state", a_world().state).read_bytes()


def test_what_came_is_the_file_and_only_its_owner_reads_it(tmp_path: Path, state: bytes) -> None:
    file = tmp_path / "out"
    with agent(state, len(state)) as address:
        done = save_to(file, address)
        assert done.returncode == 0, done.stderr
        assert file.read_bytes() == state
        assert os.stat(file).st_mode & 0o777 == 0o600
        assert "1 job, 2 nodes, 3 tasks" in done.stdout
        assert "keys.json" in done.stderr
        # Never over what is there, unless told to.
        file.write_bytes(b"mine")
        done = save_to(file, address)
        assert done.returncode == 5
        assert "--force" in done.stderr
        assert file.read_bytes() == b"mine"
        assert save_to(file, address, "--force").returncode == 0
        assert file.read_bytes() == state


@pytest.mark.parametrize("case", ["cut", "short", "flipped", "something else", "nothing"])
def test_what_is_not_whole_is_no_file(tmp_path: Path, state: bytes, case: str) -> None:
    data, length = state, len(state)
    match case:
        case "cut":  # the connection ends early
            data = state[:-5]
        case "short":  # it says that this is all
            data, length = state[:-5], length - 5
        case "flipped":
            data = state[:-5] + bytes([state[-5] ^ 1]) + state[-4:]
        case "something else":
            data = b"<html>"
            length = len(data)
        case _:
            data, length = b"", 0
    with agent(data, length) as address:
        done = save_to(tmp_path / "out", address)
    assert done.returncode in (1, 7), done
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_where_no_file_can_be_is_told(tmp_path: Path, state: bytes) -> None:
    with agent(state, len(state)) as address:
        assert save_to(tmp_path, address).returncode == 2
        done = save_to(tmp_path / "no" / "out", address)
        assert done.returncode == 1
        assert "cannot write" in done.stderr
    assert save_to(tmp_path / "out", "127.0.0.1:1").returncode == 7
