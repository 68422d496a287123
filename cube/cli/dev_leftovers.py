"""What a `cube dev` that was killed left behind: its agents and tasks live on, by design. The next
one ends them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

from cube.cli.output import note, plural
from cube.model.errors import CubeError

PREFIX = "cube-dev-"
LOCK = "dev.lock"  # held as long as the `cube dev` of the directory lives
END_S = 5.0  # for an agent to end by itself


def hold(directory: Path) -> int:
    """The directory is in use until the file descriptor is closed, or this process is gone."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def end_all() -> None:
    """No agent, task or directory is left of this user's dev clusters whose `cube dev` is gone."""
    for directory in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        descriptor = _take_abandoned(directory)
        if descriptor is not None:
            note(f"An earlier `cube dev` was killed: ending what it left in {directory} …")
            end_agents(directory)
            end_tasks(directory)
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)


def _take_abandoned(directory: Path) -> int | None:
    """The lock of a directory that is ours and that nobody holds. One without a lock file was kept
    on purpose."""
    try:
        if directory.is_symlink() or directory.stat().st_uid != os.getuid():
            return None
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def end_agents(directory: Path) -> None:
    """The agents of the directory have ended: asked first, then killed."""
    deadline = time.monotonic() + END_S
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _agents(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while _agents(directory) and time.monotonic() < deadline:
            time.sleep(0.05)


def _agents(directory: Path) -> list[int]:
    """Processes of this user with a data directory of ours."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            is_ours = process.stat().st_uid == os.getuid()
        except OSError:
            continue
        if is_ours and b"agent" in words and b"--data-dir" in words[:-1]:
            data_dir = Path(os.fsdecode(words[words.index(b"--data-dir") + 1]))
            if data_dir.parent == directory:
                found.append(int(process.name))
    return found


def end_tasks(directory: Path) -> None:
    """The tasks of agents that were killed outlive them, by design: end those too."""
    from cube.agent.cleanup import end_tasks_now
    from cube.config import load

    for data_dir in sorted(path for path in directory.glob("n*") if path.is_dir()):
        config = load(None, os.environ, {"insecure": True, "data_dir": str(data_dir)})
        try:
            ended = end_tasks_now(config)
        except CubeError as error:
            note(f"{data_dir.name}: some tasks may be left: {error}")
            continue
        if ended:
            note(f"{data_dir.name}: {plural(ended, 'task')} ended that its agent had left")
