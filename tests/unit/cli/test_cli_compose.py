"""Compose files on the command line: read with what is beside them, sent as jobs, converted."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from cube.model.jobfile import parse_toml
from tests.fakes.served import served

EXAMPLE = Path(str(files("cube") / "examples" / "compose.yaml"))
TEXT = """
services:
  web:
    image: nginx:${TAG}
    env_file: [web.env]
    environment: [HOME_OF_CALLER]
    mem_limit: 64m
"""
MODULES = """
import sys, json
from cube.cli.root import run
code = run(sys.argv[1:])
print(json.dumps([code, "yaml" in sys.modules]))
"""


def project(tmp_path: Path, text: str = TEXT) -> Path:
    (tmp_path / ".env").write_text("TAG=1.27\nB=2\n")
    (tmp_path / "web.env").write_text("A=${B}\n")
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    return file


def cube(
    *arguments: str, cwd: Path, stdin: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cube", *arguments], input=stdin, capture_output=True, text=True,
        timeout=60, check=False, cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(sys.path),
             "HOME_OF_CALLER": "x", **env},
    )  # fmt: skip


def test_convert_prints_a_job_file_that_is_the_same_job(tmp_path: Path) -> None:
    file = project(tmp_path)
    done = cube("job", "convert", str(file), cwd=tmp_path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    spec = parse_toml(done.stdout.encode())
    assert spec.name == tmp_path.name.replace("_", "-").lower()
    assert spec.groups["web"].image == "nginx:1.27"
    assert spec.groups["web"].env == {"A": "2", "HOME_OF_CALLER": "x"}
    again = tmp_path / "job.toml"
    again.write_text(done.stdout)
    assert cube("job", "convert", str(again), cwd=tmp_path).stdout == done.stdout
    shown = json.loads(cube("job", "convert", str(file), "-o", "json", cwd=tmp_path).stdout)
    assert shown["groups"]["web"]["image"] == "nginx:1.27"


def test_standard_input_and_the_environment(tmp_path: Path) -> None:
    project(tmp_path)
    done = cube("job", "convert", "--format", "compose", "-", cwd=tmp_path, stdin=TEXT, TAG="9")
    assert done.returncode == 0, done.stderr
    assert 'image = "nginx:9"' in done.stdout, "the environment wins over .env"


def test_validate_says_everything_at_once_before_anything_starts(tmp_path: Path) -> None:
    file = project(tmp_path, TEXT + "    tty: true\n    ports: [x]\n  db: {}\n")
    for command in (("job", "validate"), ("job", "convert"), ("run",), ("plan",)):
        done = cube("--addr", "127.0.0.1:1", *command, str(file), cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"error: {file} cannot be run as it is\n  why: ")
        for path in ("services.web.tty: ", "services.web.ports[0]: ", "services.db.image: "):
            assert path in done.stderr
        assert "try: docs/compose.md" in done.stderr
        assert done.stdout == ""


def test_what_is_wrong_with_the_files_beside_it(tmp_path: Path) -> None:
    file = project(tmp_path)
    (tmp_path / ".env").write_text("TAG\n1 x\n")
    assert ".env:2: " in cube("job", "validate", str(file), cwd=tmp_path).stderr
    (tmp_path / ".env").unlink()
    (tmp_path / "web.env").unlink()
    done = cube("job", "validate", str(file), cwd=tmp_path, TAG="1")
    assert 'services.web.env_file[0]: there is no file "web.env" in ' in done.stderr
    (tmp_path / "web.env").write_text("A=b\n" * 20_000)
    assert "web.env: is 65537 bytes long" in cube("job", "validate", str(file), cwd=tmp_path).stderr
    (tmp_path / "web.env").unlink()
    (tmp_path / "web.env").mkdir()
    assert "cannot read " in cube("job", "validate", str(file), cwd=tmp_path).stderr


def test_a_file_that_is_not_there_is_looked_for(tmp_path: Path) -> None:
    project(tmp_path)
    done = cube("run", "compose.yml", cwd=tmp_path)
    assert (done.returncode, "cube run compose.yaml" in done.stderr) == (4, True)


async def test_run_and_plan_send_the_same_job(tmp_path: Path) -> None:
    async with served() as api:

        async def asked(*arguments: str) -> subprocess.CompletedProcess[str]:
            return await asyncio.to_thread(
                cube, "--addr", api.address, *arguments, cwd=tmp_path, stdin=""
            )

        planned = await asked("plan", str(EXAMPLE))
        assert planned.returncode == 1, planned.stderr
        assert planned.stdout.startswith("job blog is new:")
        assert f"cube run --check-version 0 {EXAMPLE}" in planned.stdout
        done = await asked("run", "--detach", str(EXAMPLE))
        assert done.returncode == 0, done.stderr
        assert "warning: services: web: no limit of memory" in done.stderr
        assert "blog v1 submitted" in done.stderr
        assert (await asked("plan", str(EXAMPLE))).stdout.startswith("job blog v1 ")
        spec = api.world.state.job_named("blog")
        assert spec is not None
        assert spec.spec.groups["web"].count == 2


def test_only_compose_files_cost_the_import_of_yaml(tmp_path: Path) -> None:
    file = project(tmp_path)
    for arguments, expected in (
        (["ps"], False),
        (["--help"], False),
        (["run", str(EXAMPLE.with_name("hello.toml"))], False),
        (["job", "validate", str(EXAMPLE.with_name("hello.toml"))], False),
        (["job", "validate", str(file)], True),
    ):
        done = subprocess.run(
            [sys.executable, "-c", MODULES, *arguments], capture_output=True, text=True, timeout=60,
            check=True, cwd=tmp_path,
            env={**os.environ, "CUBE_ADDR": "127.0.0.1:1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert json.loads(done.stdout.splitlines()[-1])[1] is expected, arguments
