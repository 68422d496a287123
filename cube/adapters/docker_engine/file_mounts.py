"""Secrets and configs of a container: files in the host's memory, each mounted on its own."""

from __future__ import annotations

import re

import msgspec

from cube.adapters.task_files import Owner, TaskFiles
from cube.model.launch import Launch
from cube.model.spec import ID_MAX, MountSpec, MountType

_IDS = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?")


def with_files(launch: Launch, files: TaskFiles) -> Launch:
    """The launch with its files written and mounted. It is for the engine only: by the node's rules
    this is no bind mount that somebody asked for. Raises DriverFailed."""
    written = files.write(launch, owner_of(launch.user))
    mounts = tuple(
        MountSpec(MountType.BIND, file.target, str(path), read_only=True) for file, path in written
    )
    return msgspec.structs.replace(launch, mounts=launch.mounts + mounts)


def owner_of(user: str) -> Owner | None:
    """Whom files belong to that name nobody. None: root, and where the user is a name: it is known in
    the image only, and so it needs `uid`, or a mode that lets others read."""
    ids = _IDS.fullmatch(user)
    if ids is None:
        return None
    owner = (int(ids[1]), int(ids[2] or 0))
    return owner if max(owner) <= ID_MAX else None  # the engine says what is wrong with that
