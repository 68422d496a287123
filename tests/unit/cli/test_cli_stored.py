"""`cube secret` and `cube config` against the real API; and the value that is typed is never shown."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cube.model.stored import VALUE_BYTES_MAX
from tests.fakes.served import Served, served

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
async def api() -> AsyncIterator[Served]:
    async with served() as found:
        yield found


async def cube(api: Served, *words: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "cube", "--addr", api.address, *words],
        input=stdin, capture_output=True, timeout=60, check=False, cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_a_secret_from_a_pipe_a_file_and_again(api: Served, tmp_path: Path) -> None:
    code, out, err = await cube(api, "secret", "set", "db", stdin=b"canary")
    assert (code, out) == (0, "")
    assert "secret db is at version 1 (6 bytes)" in err
    assert '{ type = "secret", source = "db" }' in err
    _, _, err = await cube(api, "secret", "set", "db", "-", stdin=b"canary")
    assert "has this value already, at version 1" in err
    file = tmp_path / "value"
    file.write_bytes(b"canary2\n")
    _, _, err = await cube(api, "secret", "set", "db", str(file))
    assert "version 2 (8 bytes)" in err
    assert "ends with a line break" in err
    _, out, err = await cube(api, "secret", "show", "db")
    assert out.splitlines()[0] == "secret db, version 2"
    assert "canary" not in out + err
    _, out, _ = await cube(api, "secret", "ls", "-o", "name")
    assert out == "db\n"
    code, _, _ = await cube(api, "secret", "set", "db", "--check-version", "1", stdin=b"x")
    assert code == 5
    code, _, err = await cube(api, "secret", "rm", "db")
    assert (code, err) == (0, "secret db is removed\n")
    code, _, _ = await cube(api, "secret", "show", "db")
    assert code == 4


async def test_a_config_comes_back_byte_for_byte(api: Served, tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    for text in ("one\n", "two"):
        file.write_text(text)
        code, _, _ = await cube(api, "config", "set", "app.toml", str(file))
        assert code == 0
    assert (await cube(api, "config", "show", "app.toml"))[1] == "two"
    assert (await cube(api, "config", "show", "app.toml", "--version", "1"))[1] == "one\n"
    _, out, _ = await cube(api, "config", "versions", "app.toml")
    assert out.splitlines()[:2] == ["config app.toml, version 2", "used by: nobody"]


@pytest.mark.parametrize(
    ("words", "stdin", "says"),
    [
        (("secret", "set", "db"), b"", "the value of db is empty"),
        (("secret", "set", "db"), bytes(VALUE_BYTES_MAX + 1), "more than 65536 bytes"),
        (("secret", "set", "db", "canary"), b"", "never typed on the command line"),
        (("secret", "st", "db"), b"", "did you mean `set`?"),
        (("config", "set", "a/b"), b"x", "letters, digits"),
    ],
)
async def test_what_a_tired_person_types(
    api: Served, words: tuple[str, ...], stdin: bytes, says: str
) -> None:
    code, out, err = await cube(api, *words, stdin=stdin)
    assert (code, out) == (2, "")
    assert says in err
    assert not api.world.state.stored


async def test_a_value_is_typed_twice_and_not_shown(api: Served) -> None:
    def type_it() -> tuple[int, bytes]:
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(ROOT)
            words = ("-m", "cube", "--addr", api.address, "secret", "set", "db")
            os.execv(sys.executable, (sys.executable, *words))
        shown = b""
        try:
            for prompt in (b"Value of db", b"Repeat"):
                while prompt not in shown.rpartition(b"canary")[2]:
                    shown += os.read(terminal, 1024)
                os.write(terminal, b"canary\n")
                shown += b"|"
            while piece := os.read(terminal, 1024):
                shown += piece
        except OSError:  # the terminal's other end has gone
            pass
        finally:
            os.close(terminal)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown

    code, shown = await asyncio.to_thread(type_it)
    assert code == 0, shown
    assert b"canary" not in shown
    assert b"secret db is at version 1 (6 bytes)" in shown
