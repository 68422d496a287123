"""What is on disk of an attempt, and what it means. The supervisor writes, the agent reads.

<directory>/<task id>/                 one directory per task
    logs/                              output of all attempts: output.py, log_files.py
    work/                              the working directory, kept across attempts
    attempts/<n>/claim.json            who supervises it; made once, whole, by whoever comes first
    attempts/<n>/run.json              the command's process; there before the command does anything
    attempts/<n>/verdict.json  why it was ended from outside, when there is more to say than its code
    attempts/<n>/exit.json             how it ended
    attempts/<n>/supervisor.log        empty, unless a supervisor itself went wrong

Every file is written whole under another name first, so that only a crash of the host can leave
half of one: such a file reads as absent.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import msgspec

from cube.adapters.process.wire import VERSION
from cube.model.ids import TaskId

# One path component, never a dot name: ids come from the cluster's state, not from us.
SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


class Claim(msgspec.Struct, frozen=True):
    version: int
    cluster_id: str
    node_id: str
    task_id: str
    attempt: int
    boot_id: str
    supervisor_pid: int
    supervisor_start_time: int


class Run(msgspec.Struct, frozen=True):
    version: int
    pid: int
    start_time: int
    started_at_ms: int


class Exit(msgspec.Struct, frozen=True):
    """`failure` is a DriverFailed code: the command was never run, and `message` says why.
    `reason` says why the exit code is not known."""

    version: int
    exit_code: int | None
    oom_killed: bool
    finished_at_ms: int
    failure: str = ""
    message: str = ""
    is_transient: bool = False
    reason: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """Written before the KILL that it explains."""

    version: int
    reason: str
    message: str


R = TypeVar("R", Claim, Run, Exit, Verdict)


def read_record(path: Path, kind: type[R]) -> R | None:
    """None: there is none that can be understood."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None
    return record if record.version <= VERSION else None


class TaskPaths:
    """Where a task's things are. The id has been checked: nothing of it leads elsewhere."""

    def __init__(self, directory: Path, task_id: TaskId) -> None:
        assert SAFE_ID.fullmatch(task_id), task_id
        self.home = directory / task_id
        self.logs = self.home / "logs"
        self.work = self.home / "work"
        self.attempts = self.home / "attempts"

    def attempt(self, number: int) -> Path:
        return self.attempts / str(number)

    def numbers(self) -> list[int]:
        """The attempts that something is known of, in order."""
        try:
            names = [entry.name for entry in self.attempts.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if name.isdigit())
