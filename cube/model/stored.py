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


VALUE_BYTES_MAX = 64 * 1024  # of one value: keys and files of settings, not data
SEALED_BYTES_MAX = VALUE_BYTES_MAX + 64  # in its envelope
NAMES_MAX = 1_000  # of each kind, per cluster
STORE_BYTES_MAX = 16 << 20  # of all versions together: it is in every snapshot
VERSIONS_KEPT = 5  # the newest, besides those that versions of jobs have
JOBS_MAX_EACH = 1_000  # that use one: a new version makes a new version of each, in one entry
FINGERPRINT_BYTES = 32


class StoredVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`data` is the value; a secret's is sealed. `fingerprint` of a secret is equal for equal values
    of one name, and tells nothing to those who have not the cluster key; empty for configs."""

    version: int
    data: bytes
    fingerprint: bytes
    size_bytes: int
    created_at_ms: int = 0
    actor: str = ""

    def __repr__(self) -> str:
        return f"StoredVersion({self.version}, {self.size_bytes} bytes)"


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A secret or config. Writer: manager. `versions` ascend, and there is one at least; the numbers
    of a name that was removed are not used again while a version of a job remembers one."""

    kind: StoredKind
    name: str
    versions: tuple[StoredVersion, ...]
    created_at_ms: int = 0

    @property
    def ref(self) -> StoredRef:
        return StoredRef(self.kind, self.name)

    @property
    def newest(self) -> StoredVersion:
        return self.versions[-1]

    @property
    def size_bytes(self) -> int:
        return sum(version.size_bytes for version in self.versions)

    def at(self, version: int) -> StoredVersion | None:
        return next((one for one in self.versions if one.version == version), None)


def parse_key(key: str) -> StoredRef:
    """What StoredRef.key was made from."""
    kind, _, name = key.partition("/")
    return StoredRef(StoredKind(kind), name)
