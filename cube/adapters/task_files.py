"""The files of secrets and configs: in a file system that is memory, gone with the task.

<root>/cube-<uid>/<node id>/<driver>/<task id>/<attempt>/secrets/<name>     and configs/ beside it

Only the agent's user can write there; a directory can be passed through by who knows the path, and the
file's own mode says who reads it. Nothing of it survives the host: a task does not either. Memory can be
swapped out like all memory of the host.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Sequence, Set
from pathlib import Path

from cube.model.errors import DriverFailed
from cube.model.ids import NodeId, TaskId
from cube.model.launch import Launch, LaunchFile
from cube.model.stored import StoredKind

MEMORY = frozenset({"tmpfs", "ramfs"})
ROOTS = ("/run", "/dev/shm")  # the first is root's alone; which is one where it cannot be written
FOLDER = {StoredKind.SECRET: "secrets", StoredKind.CONFIG: "configs"}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}")

# Held while a directory is made or removed that several tasks, and both drivers, have things in.
_PRUNING = threading.Lock()

Owner = tuple[int, int]


class TaskFiles:
    """Those of one driver of one node. Blocks for the time of a few small writes to memory."""

    def __init__(self, node_id: NodeId, driver: str, roots: Sequence[str] = ROOTS) -> None:
        assert _ID.fullmatch(node_id), node_id
        self._roots = roots
        # The first is shared by the nodes of a host; another user's agents have another one.
        self._below = (f"cube-{os.geteuid()}", node_id, driver)

    def write(self, launch: Launch, owner: Owner | None) -> list[tuple[LaunchFile, Path]]:
        """Every file of the attempt is there, whole, with its mode; those of other attempts of the
        task are gone. `owner`: whom a file belongs to that names nobody; None: the agent's user. Raises
        DriverFailed."""
        if not launch.files:
            self.remove(launch.task_id)
            return []
        try:
            with _PRUNING:
                home = self._home()
                shutil.rmtree(home / launch.task_id, ignore_errors=True)
                attempt = home / launch.task_id / str(launch.attempt)
                _make(attempt.parent)
            for directory in (attempt, *(attempt / folder for folder in FOLDER.values())):
                _make(directory)
            paths = [
                attempt / FOLDER[file.value.ref.kind] / _name(number, file)
                for number, file in enumerate(launch.files)
            ]
            for file, path in zip(launch.files, paths, strict=True):
                _write(file, path, owner)
        except OSError as error:
            self.remove(launch.task_id)
            raise _failed(error) from None
        except DriverFailed:
            self.remove(launch.task_id)
            raise
        return list(zip(launch.files, paths, strict=True))

    def folders(self, launch: Launch) -> dict[StoredKind, Path]:
        """Where the attempt's files are, by kind, of those kinds that it has."""
        kinds = {file.value.ref.kind for file in launch.files}
        if not kinds:
            return {}
        attempt = self._home() / launch.task_id / str(launch.attempt)
        return {kind: attempt / folder for kind, folder in FOLDER.items() if kind in kinds}

    def remove(self, task_id: TaskId) -> None:
        """Nothing of the task is left. Never raises: memory that cannot be freed is the host's."""
        for root in self._roots:
            if self._is_ours_below(root):
                home = Path(root, *self._below)
                shutil.rmtree(home / task_id, ignore_errors=True)
                self._prune(home)

    def _prune(self, home: Path) -> None:
        """A node that has no such task has no directory. The user's own stays: other nodes have theirs
        there, in processes of their own."""
        with _PRUNING:
            for directory in (home, home.parent):
                try:
                    os.rmdir(directory)
                except OSError:  # something is in it, or it is not there
                    return

    def sweep(self, is_known: Callable[[TaskId], bool]) -> None:
        """Nothing is left of tasks that are not known: an agent died while it started or removed one."""
        for root in self._roots:
            if not self._is_ours_below(root):
                continue
            home = Path(root, *self._below)
            for entry in sorted(os.listdir(home)):
                if not is_known(TaskId(entry)):
                    shutil.rmtree(home / entry, ignore_errors=True)
            self._prune(home)

    def reap(self, removed: Set[NodeId]) -> None:
        """Nothing is left of these nodes, where an agent of the same user wrote it."""
        for node_id in sorted(removed):
            if _ID.fullmatch(node_id):
                TaskFiles(node_id, self._below[-1], self._roots).sweep(lambda _: False)

    def _is_ours_below(self, root: str) -> bool:
        """All of the way to the node's files is ours: what somebody else made of it, in a directory that
        is everybody's, may lead to anything of ours that is called as they are."""
        return all(
            _is_ours(Path(root, *self._below[:depth])) for depth in range(1, len(self._below) + 1)
        )

    def _home(self) -> Path:
        """Made where there is memory that we may write to. Raises DriverFailed, OSError."""
        root = next((root for root in self._roots if _is_memory(root) and _may_write(root)), None)
        if root is None:
            raise DriverFailed(
                "no_memory_files",
                f"secrets and configs need a tmpfs, and none of {', '.join(self._roots)} is one that "
                "the agent can write to",
                transient=False,
            )
        home = Path(root)
        for part in self._below:
            home = home / part
            try:
                _make(home)
            except FileExistsError:
                if not _is_ours(home):
                    raise DriverFailed(
                        "files_taken", f"{home} is there and not this agent's", transient=False
                    ) from None
        return home


def _make(directory: Path) -> None:
    directory.mkdir(mode=0o711)
    directory.chmod(0o711)  # whatever the umask


def _name(number: int, file: LaunchFile) -> str:
    """A process finds it by this name; a container by where it is mounted."""
    return str(number) if file.target.startswith("/") else file.target


def _write(file: LaunchFile, path: Path, owner: Owner | None) -> None:
    assert _NAME.fullmatch(path.name), path.name
    uid, gid = me = (os.geteuid(), os.getegid())
    if me[0] == 0 or not file.mode & 0o004:  # else all may read it, whosever it is
        uid, gid = owner or me
    uid, gid = uid if file.uid is None else file.uid, gid if file.gid is None else file.gid
    if me[0] != 0 and (uid, gid) != me:
        raise DriverFailed(
            "owner_not_allowed",
            f"{file.value.ref}: only an agent that runs as root can give it to {uid}:{gid}; leave uid "
            'and gid out, and let others read it with mode = "0444"',
            transient=False,
        )
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        data = memoryview(file.data)
        while data:
            data = data[os.write(fd, data) :]
        if (uid, gid) != me:
            os.fchown(fd, uid, gid)
        os.fchmod(fd, file.mode)
    finally:
        os.close(fd)


def _failed(error: OSError) -> DriverFailed:
    # Memory may be free again soon; what else is wrong here is not for the task to wait for.
    return DriverFailed(
        "files_not_written",
        f"secrets and configs could not be written to memory: {error.strerror}",
        transient=True,
    )


def _is_ours(directory: Path) -> bool:
    """A directory of this agent's user that nobody else can write to: /dev/shm is everybody's."""
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
    )


def _may_write(root: str) -> bool:
    return os.access(root, os.W_OK | os.X_OK)


def _is_memory(root: str) -> bool:
    """By the mount that the directory is in: the longest one that it begins with, the last of those."""
    real = os.path.realpath(root)
    found, kind = "", ""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                words = line.split(" ")
                point = words[1].replace("\\040", " ")
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(found):
                    found, kind = point, words[2]
    except (OSError, IndexError):
        return False
    return kind in MEMORY
