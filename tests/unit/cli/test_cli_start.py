"""What a command costs before it does anything, and how it fails before it reaches an agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cube.cli import root

ROOT = Path(__file__).resolve().parents[3]
HEAVY = {"aiohttp", "asyncio", "docker", "psutil", "pysyncobj", "numpy", "cryptography", "rich"}
MODULES = """
import sys, json
from cube.cli.root import run
code = run(sys.argv[1:])
print(json.dumps([code, sorted(m.partition(".")[0] for m in sys.modules)]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cube", *arguments], capture_output=True, text=True, timeout=60,
        stdin=subprocess.DEVNULL, check=False, cwd=ROOT,
        env={**os.environ, "CUBE_ADDR": "127.0.0.1:1", "NO_COLOR": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [["ps"], ["status"], ["node", "ls"], ["why", "x"], ["logs", "x"],
                  ["exec", "x", "--", "ls"], ["stop", "x"], ["top"],
                  ["raft", "members"], ["raft", "transfer"],
                  ["raft", "snapshot", "save", "no-such-file"],
                  ["run", "cube/examples/hello.toml"], ["--help"]],
)  # fmt: skip
def test_a_client_command_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MODULES, *arguments], capture_output=True, text=True, timeout=60,
        check=True, cwd=ROOT, env={**os.environ, "CUBE_ADDR": "127.0.0.1:1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == (0 if arguments == ["--help"] else 7)
    assert HEAVY & set(modules) == set()


def test_an_agent_loads_the_engines_sdk_only_when_it_makes_that_driver() -> None:
    """It takes a fifth of the time until tasks are taken up again."""
    script = "import cube.agent.run, sys; print({'docker', 'requests'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60,
        check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "set()"


def test_every_listed_command_exists_and_helps() -> None:
    tree = root.make_root()
    for name in root.COMMANDS:
        command = tree.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.name == name
        assert command.help
        assert name not in root.LATER


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["stauts"], 2, "did you mean `cube status`"),
        (["node", "lss"], 2, "did you mean `ls`"),
        (["ps", "--jsn"], 2, "--jsn"),
        (["ps", "-o", "yaml"], 2, "yaml"),
        (["ps", "--timeout", "soon"], 2, "--timeout"),
        (["--addr", "ftp://x", "ps"], 2, "--addr"),
        (["run"], 2, "what should run?"),
        (["run", "no-such-file.toml"], 4, "no file"),
        (["run", "a.toml", "b.toml"], 2, "one file at a time"),
        (["run", "--image", "Bad Image"], 2, "image"),
        (["scale", "shop=x"], 2, "JOB/GROUP=N"),
        (["debug", "bundle"], 2, "later version"),
        (["cp", "a", "b"], 2, "one of the two is TASK:PATH"),
        (["cp", "no-such-file", "shop.web.0:/"], 4, "no file no-such-file here"),
        (["exec", "shop", "ls", "-l"], 7, "cannot reach"),
        (["exec", "shop"], 2, "what should run?"),
        (["rollback", "shop", "latest"], 2, "is no version"),
        (["manager"], 2, "cube agent"),
        (["agent", "--join", "127.0.0.1:1", "--token", "CUBE-1-x"], 2, "damaged"),
        (["agent", "--insecure", "--http", "0"], 2, "http"),
        (["agent", "--insecure", "--bind", "0.0.0.0"], 2, "loopback"),
        (["agent", "--insecure", "--config", "no-such-file"], 2, "no-such-file"),
        (["ps"], 7, "cannot reach a Cube agent"),
        (["job", "validate", "cube/examples/hello.toml"], 0, "is valid"),
        (["version"], 0, ""),
    ],
)
def test_what_is_wrong_is_told_with_its_exit_code(
    arguments: list[str], code: int, told: str
) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert told.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    if code:
        assert done.stderr.startswith("error: ")
        assert done.stdout == ""


def test_an_invalid_file_shows_every_error_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        'name = "../x"\ntype = "servce"\n[groups.web]\ndriver = "process"\ncomand = ["x"]\n'
        "[groups.web.ports.http]\nhst = 3\n"
    )
    done = run("job", "validate", str(file))
    assert done.returncode == 2
    for part in (
        "../x",
        "`service`",
        "groups.web.comand",
        "`command`",
        "groups.web.ports.http.hst",
        "`host`",
    ):
        assert part in done.stderr
