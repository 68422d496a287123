"""Walk 1: `cube dev --run hello`, what it prints, and that nothing is left of it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cube.cli import dev_leftovers
from tests.e2e.harness import ROOT, wait_for

CUBE = [sys.executable, "-m", "cube"]
RESTART = r"^  \S*cube (agent .*)$"


class Dev:
    """One `cube dev`, with its directories under `folder`."""

    def __init__(self, folder: Path, number: int) -> None:
        self._out = folder / f"dev{number}.out"
        # No engine, on purpose: what an engine adds is tested elsewhere.
        self.env = {**os.environ, "TMPDIR": str(folder), "DOCKER_HOST": f"unix://{folder}/none"}
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [*CUBE, "dev", "--run", "hello"], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                cwd=ROOT, env=self.env, start_new_session=True,
            )  # fmt: skip

    @property
    def told(self) -> str:
        return self._out.read_text()

    def wait(self) -> None:
        wait_for("dev is up", lambda: "Ctrl-C stops everything" in self.told or self._has_ended())
        assert self.process.poll() is None, self.told

    def _has_ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def agents(self) -> dict[str, int]:
        """Name to pid, as printed."""
        return {name: int(pid) for name, pid in re.findall(r"^  (n\d)  pid (\d+)", self.told, re.M)}

    @property
    def urls(self) -> list[str]:
        """Where the tasks answer, as printed."""
        return re.findall(r"^  hello\S+ on n\d  (http://\S+)", self.told, re.M)

    @property
    def survivor(self) -> str:
        found = re.search(r"--addr (\S+) node ls", self.told)
        assert found is not None, self.told
        return found[1]

    @property
    def leader_pid(self) -> int:
        found = re.search(r"kill -9 (\d+) ", self.told)
        assert found is not None, self.told
        return int(found[1])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def left(folder: Path) -> list[str]:
    """Processes that name the folder, the tasks' supervisors and working directories too."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            where = str((process / "cwd").readlink())
        except OSError:
            continue
        if f"{folder}/cube-dev-" in words or where.startswith(f"{folder}/cube-dev-"):
            found.append(f"{process.name} {words}")
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    directories = list(tmp_path.glob("cube-dev-*"))
    processes = left(tmp_path)
    for directory in directories:  # a test that fails leaves nothing behind either
        dev_leftovers.end_agents(directory)
        dev_leftovers.end_tasks(directory)
    assert (directories, processes) == ([], [])


def of_the_readme(*commands: str) -> list[list[str]]:
    """The lines of "The first job" that begin with these commands, as they are written there."""
    section = (
        (ROOT / "README.md").read_text().partition("## The first job")[2].partition("\n## ")[0]
    )
    lines = [shlex.split(line, comments=True) for line in re.findall(r"^cube (.*)$", section, re.M)]
    found = [words for words in lines if words[0] in commands]
    assert {words[0] for words in found} == set(commands)
    return found


def test_the_first_ten_minutes(folder: Path) -> None:
    dev = Dev(folder, 1)
    try:
        dev.wait()
        assert "No Docker" in dev.told
        assert len(dev.agents) == 3
        assert len(dev.urls) == 3
        for url in dev.urls:
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert answer.read().startswith(b"hello from hello.web.")
        assert dev.leader_pid in dev.agents.values()
        for words in of_the_readme("ps", "status", "cp", "exec", "events", "node", "volume"):
            done = subprocess.run(
                [*CUBE, "--addr", dev.survivor, *words], cwd=ROOT, text=True, timeout=120,
                check=False, capture_output=True,
            )  # fmt: skip
            assert done.returncode == 0, (words, done.stderr)

        os.kill(dev.leader_pid, signal.SIGKILL)
        again = wait_for("it says how", lambda: re.findall(RESTART, dev.told, re.M))
        addr = ["--addr", dev.survivor]
        scaled = subprocess.run(
            [*CUBE, *addr, "scale", "hello/web=4"], cwd=ROOT, text=True, timeout=120, check=False,
            capture_output=True,
        )  # fmt: skip
        assert scaled.returncode == 0, scaled.stderr

        with (folder / "again.out").open("wb") as out:
            back = subprocess.Popen(
                [*CUBE, *shlex.split(again[0])], cwd=ROOT, env=dev.env, stdout=out, stderr=out
            )
        wait_for("it is back", lambda: "is ready" in (folder / "again.out").read_text())
        dev.end()
        assert dev.process.returncode == 0
        back.wait(30)
    finally:
        dev.end()


def test_one_that_was_killed_is_cleaned_up_after(folder: Path) -> None:
    first = Dev(folder, 1)
    second = None
    try:
        first.wait()
        first.process.kill()
        first.process.wait(10)
        assert left(folder)
        second = Dev(folder, 2)
        second.wait()
        assert "was killed: ending what it left" in second.told
        assert set(first.agents.values()).isdisjoint(second.agents.values())
        for pid in first.agents.values():
            assert not Path(f"/proc/{pid}/cwd").exists()
        second.end()
        assert second.process.returncode == 0
    finally:
        for each in (first, second):
            if each is not None:
                each.end()
