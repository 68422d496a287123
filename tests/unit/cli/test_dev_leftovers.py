"""`cube dev` beside another one, and after one that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cube.cli import dev, dev_leftovers

IDLE = "import signal, sys; print(flush=True); signal.pause()"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dev cluster's directory, with the data directory of one node."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    directory = tmp_path / f"{dev_leftovers.PREFIX}x"
    (directory / "n1").mkdir(parents=True)
    return directory


@pytest.fixture
def agent(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """What looks like an agent of that node."""
    words = [sys.executable, "-c", IDLE, "agent", "--data-dir", str(folder / "n1")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_what_a_killed_dev_left_is_ended(folder: Path, agent: subprocess.Popen[bytes]) -> None:
    os.close(dev_leftovers.hold(folder))
    dev_leftovers.end_all()
    assert agent.wait(10) != 0
    assert not folder.exists()


def test_a_dev_that_lives_is_left_alone(folder: Path, agent: subprocess.Popen[bytes]) -> None:
    held = dev_leftovers.hold(folder)
    dev_leftovers.end_all()
    assert agent.poll() is None
    assert folder.exists()
    os.close(held)


def test_what_was_kept_is_left_alone(folder: Path) -> None:
    dev_leftovers.end_all()
    assert folder.exists()


def test_two_at_once_take_different_ports() -> None:
    first, one = dev._claim_ports(3)
    second, two = dev._claim_ports(3)
    with one, two:
        assert first != second
    third, again = dev._claim_ports(3)
    with again:
        assert third == first
