"""Secrets and configs: what users give the cluster to keep, and jobs name. Values are versions that
never change; a secret's are sealed with the cluster key before a command has them.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator

import msgspec

from cube.model.spec import GroupSpec, JobSpec, MountType, SecretRef

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
NAME_ACCEPTED = "letters, digits, . _ and -, 1 to 128 characters, a letter or digit at either end"


class StoredKind(enum.StrEnum):
    SECRET = "secret"
    CONFIG = "config"


class StoredRef(msgspec.Struct, frozen=True, order=True):
    """Which secret or config is meant, of whatever version."""

    kind: StoredKind
    name: str

    @property
    def key(self) -> str:
        """Its key in maps: a name has no slash."""
        return f"{self.kind.value}/{self.name}"

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name}"


KIND_OF_MOUNT = {MountType.SECRET: StoredKind.SECRET, MountType.CONFIG: StoredKind.CONFIG}


def refs_in_tasks(group: GroupSpec) -> Iterator[StoredRef]:
    """What the group's tasks are started with, in order, perhaps more than once."""
    for value in group.env.values():
        if isinstance(value, SecretRef):
            yield StoredRef(StoredKind.SECRET, value.secret)
    for mount in group.mounts:
        kind = KIND_OF_MOUNT.get(mount.type)
        if kind is not None:
            yield StoredRef(kind, mount.source)


def refs_of(spec: JobSpec) -> dict[StoredRef, bool]:
    """What the job uses, sorted; True: its tasks are started with it (False: a login for images)."""
    found: dict[StoredRef, bool] = {}
    for group in spec.groups.values():
        for ref in refs_in_tasks(group):
            found[ref] = True
        if group.docker.registry_secret:
            _ = found.setdefault(StoredRef(StoredKind.SECRET, group.docker.registry_secret), False)
    return dict(sorted(found.items()))
