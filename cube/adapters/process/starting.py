"""What is there before an attempt's supervisor is, and the start of that."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from cube.adapters.process import cgroups, orders
from cube.adapters.process.attempts import Attempts, Identity, group_name, remove_tree
from cube.adapters.process.settings import ProcessSettings
from cube.adapters.process.signals import signal_number
from cube.adapters.process.spawning import spawn
from cube.adapters.process.users import user_of
from cube.adapters.process.wire import pack
from cube.adapters.task_files import TaskFiles
from cube.model.launch import Launch

LAST_WORDS_BYTES = 2000  # of a supervisor's own log, in an error message


def lay_out(
    launch: Launch,
    attempts: Attempts,
    files: TaskFiles,
    settings: ProcessSettings,
    lease_file: Path,
) -> bytes:
    """Directories and groups are there; returns the order."""
    paths = attempts.paths(launch.task_id)
    attempt_dir = paths.attempt(launch.attempt)
    user = user_of(launch, settings)
    if attempts.was_over_disk(launch.task_id):
        remove_tree(paths.work)  # with what is in it no attempt could ever run again
    is_new = not paths.work.exists()
    for directory, mode in (
        (paths.home, 0o711),
        (paths.logs, 0o700),
        (paths.work, 0o700),
        (attempt_dir, 0o700),
    ):
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    if user is not None and is_new:
        os.chown(paths.work, user.uid, user.gid)
    _ = files.write(launch, None if user is None else (user.uid, user.gid))
    folders = {
        f"CUBE_{kind.value.upper()}S_DIR": str(folder)
        for kind, folder in files.folders(launch).items()
    }
    launch = msgspec.structs.replace(launch, env=launch.env | folders)
    cgroup = attempts.cgroups.create(
        group_name((launch.task_id, launch.attempt)), cgroups.limits_of(launch)
    )
    return pack(
        orders.order_fields(
            launch,
            paths,
            cgroup,
            settings,
            lease_file,
            signal_number(launch.stop_signal) if launch.lease is not None else 0,
        )
    )


def spawn_supervisor(attempts: Attempts, launch: Launch, order: bytes, status_fd: int) -> int:
    """Its pid. It says one word to `status_fd`."""
    path = attempts.paths(launch.task_id).attempt(launch.attempt) / "supervisor.log"
    log_fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return spawn(order, status_fd, log_fd, f"{launch.task_name}#{launch.attempt}")
    finally:
        os.close(log_fd)


def last_words(attempts: Attempts, identity: Identity) -> str:
    """Of a supervisor that has ended before it said anything."""
    path = attempts.paths(identity[0]).attempt(identity[1]) / "supervisor.log"
    try:
        text = path.read_text(errors="replace")
    except OSError:
        text = ""
    return f"the supervisor ended at once: {text[-LAST_WORDS_BYTES:] or 'it said nothing'}"
