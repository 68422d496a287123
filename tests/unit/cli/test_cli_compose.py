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
    assert "web.env: is 80000 bytes long" in cube("job", "validate", str(file), cwd=tmp_path).stderr
    (tmp_path / "web.env").unlink()
    (tmp_path / "web.env").mkdir()
    assert "cannot read " in cube("job", "validate", str(file), cwd=tmp_path).stderr
    for path in ('"a\\0b"', "~no-one-is-called-this/x"):
        file.write_text(TEXT.replace("web.env", path))
        done = cube("job", "validate", str(file), cwd=tmp_path, TAG="1")
        assert (done.returncode, "error: cannot read " in done.stderr) == (2, True), done.stderr


def test_a_file_that_is_not_there_is_looked_for(tmp_path: Path) -> None:
    project(tmp_path)
    done = cube("run", "compose.yml", cwd=tmp_path)
    assert (done.returncode, "cube run compose.yaml" in done.stderr) == (4, True)


OVER = "services:\n  web:\n    environment: !override {B: '3'}\n    mem_limit: 128m\n"
MORE = """
include: [sub/compose.yaml]
services:
  web: { extends: { file: sub/base.yaml, service: base } }
  debug: { image: busybox, mem_limit: 8m, profiles: [debug] }
"""


def several(tmp_path: Path) -> None:
    """compose.yaml and over it compose.override.yaml; more.yaml with files of another directory."""
    project(tmp_path)
    (tmp_path / "compose.override.yaml").write_text(OVER)
    (tmp_path / "more.yaml").write_text(MORE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".env").write_text("TAG=of-sub\nOWN=1\n")
    (tmp_path / "sub" / "a.env").write_text("FROM=sub\n")
    (tmp_path / "sub" / "base.yaml").write_text(
        "services:\n  base: {image: 'nginx:$TAG', env_file: a.env, mem_limit: 64m}\n"
    )
    (tmp_path / "sub" / "compose.yaml").write_text(
        "services:\n  db: {image: 'db:$TAG-$OWN', mem_limit: 64m}\n"
    )


def test_files_are_merged_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    several(tmp_path)
    named = ("-f", "compose.yaml", "-f", "compose.override.yaml")
    done = cube("job", "convert", *named, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    web = parse_toml(done.stdout.encode()).groups["web"]
    assert (web.image, web.env, web.resources.memory_bytes) == (
        "nginx:1.27", {"A": "2", "B": "3"}, 128 << 20,
    )  # fmt: skip
    alone = parse_toml(cube("job", "convert", "compose.yaml", cwd=tmp_path).stdout.encode())
    assert alone.groups["web"].env == {"A": "2", "HOME_OF_CALLER": "x"}, "none is read unseen"
    there = cube("job", "validate", *named, cwd=tmp_path)
    assert "are valid: job " in there.stderr
    assert "next: cube run -f compose.yaml -f compose.override.yaml" in there.stderr
    piped = cube(
        "job", "convert", *named[:2], "-f", "-", "--format", "compose", cwd=tmp_path, stdin=OVER
    )
    assert piped.stdout == done.stdout
    (tmp_path / "compose.override.yaml").write_text(OVER + "    tty: true\n")
    bad = cube("run", *named, cwd=tmp_path).stderr
    assert bad.startswith(
        "error: compose.yaml, and over it compose.override.yaml, cannot be run as it is\n"
        "  why: compose.override.yaml: services.web.tty: tasks have no terminal"
    )


def test_files_of_other_directories_and_profiles(tmp_path: Path) -> None:
    several(tmp_path)
    done = cube("job", "convert", str(tmp_path / "more.yaml"), cwd=tmp_path.parent)
    assert done.returncode == 0, done.stderr
    groups = parse_toml(done.stdout.encode()).groups
    assert (groups["db"].image, groups["web"].image) == ("db:1.27-1", "nginx:1.27")
    assert groups["web"].env == {"FROM": "sub"}
    assert "services.debug: is left out: none of its profiles (debug) is active" in done.stderr
    for given in (("--profile", "debug"), ("--profile", "x", "--profile", "debug")):
        done = cube("job", "convert", *given, "more.yaml", cwd=tmp_path)
        assert "debug" in parse_toml(done.stdout.encode()).groups
    done = cube("job", "convert", "more.yaml", cwd=tmp_path, COMPOSE_PROFILES="debug")
    assert "debug" in parse_toml(done.stdout.encode()).groups
    (tmp_path / "sub" / "compose.yaml").write_text("include: [../more.yaml]\n")
    done = cube("run", "more.yaml", cwd=tmp_path)
    way = "is a cycle: more.yaml → sub/compose.yaml → more.yaml"
    assert (done.returncode, f"sub/compose.yaml: include[0]: {way}" in done.stderr) == (2, True)


def test_what_a_tired_person_names(tmp_path: Path) -> None:
    several(tmp_path)
    (tmp_path / "job.toml").write_text("")
    both = "cube {} -f compose.yaml -f compose.override.yaml"
    for arguments, told in (
        (("run",), both.format("run")),
        (("plan",), both.format("plan")),
        (("job", "validate"), both.format("job validate")),
        (("run", "compose.yaml", "compose.override.yaml"), both.format("run")),
        (("plan", "compose.yaml", "-f", "compose.override.yaml"), both.format("plan")),
        (("run", "-f", "compose.yaml", "-f", "job.toml"), "job.toml is no compose file"),
        (("run", "job.toml", "--profile", "a"), "--profile is for compose files"),
        (("run", "--image", "a", "--profile", "a"), "--profile is for compose files"),
        (("plan", "compose.yaml", "--profile", "a,b"), "--profile names one profile"),
        (("plan", "compose.yaml", "--profile", ""), "--profile names one profile"),
        (("job", "convert", "-f", "-", "-f", "-"), "standard input can be read once"),
        (("job", "convert", *("-f", "compose.yaml") * 17), "at most 16 are merged"),
    ):
        done = cube("--addr", "127.0.0.1:1", *arguments, cwd=tmp_path)
        assert (done.returncode, told in done.stderr) == (2, True), (arguments, done.stderr)
        assert done.stdout == ""
    (tmp_path / "compose.override.yaml").unlink()
    assert "  try: cube run compose.yaml\n" in cube("run", cwd=tmp_path).stderr


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
        over = tmp_path / "over.yaml"
        over.write_text("services: { web: { deploy: { replicas: 5 } } }")
        planned = await asked("plan", "-f", str(EXAMPLE), "-f", str(over), "--profile", "a")
        given = f"--profile a -f {EXAMPLE} -f {over}"
        assert f"cube run --check-version 1 {given}" in planned.stdout
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
