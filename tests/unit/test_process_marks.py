"""What bears a task's id in its environment, and is found by looking through /proc."""

import subprocess

import pytest

from cube.adapters.process import host


def test_what_one_look_misses_in_the_middle_of_an_exec_is_killed_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = subprocess.Popen(["sleep", "1000"], env={"CUBE_TASK_ID": "t-1"})
    looks, read_text = 0, host.read_text

    def as_during_an_exec(path: str) -> str:
        nonlocal looks
        if path == f"/proc/{left.pid}/environ":
            looks += 1
            if looks == 1:
                return ""
        return read_text(path)

    monkeypatch.setattr(host, "read_text", as_during_an_exec)
    try:
        host.kill_marked("t-1")
        assert left.wait(timeout=10) == -9
    finally:
        left.kill()
        left.wait()


def test_looking_for_what_nobody_bears_ends() -> None:
    assert host.marked_pids("t-nobody") == set()
    host.kill_marked("t-nobody")
