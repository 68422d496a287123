"""Mounts of secrets and configs: one file each, read-only, in memory.

In a container `target` is a path, by default below /run/secrets or /run/configs; a plain name goes
there too. A process sees the node's own files: it finds the file by its name in $CUBE_SECRETS_DIR or
$CUBE_CONFIGS_DIR, which containers have as well.
"""

from __future__ import annotations

import re

from cube.model.spec import ID_MAX, DriverName, MountSpec, MountType
from cube.model.stored import KIND_OF_MOUNT, NAME, NAME_ACCEPTED
from cube.model.treeread import Table, kind, shown

DIRECTORY = {MountType.SECRET: "/run/secrets", MountType.CONFIG: "/run/configs"}
VARIABLE = {MountType.SECRET: "CUBE_SECRETS_DIR", MountType.CONFIG: "CUBE_CONFIGS_DIR"}
MODE = {MountType.SECRET: 0o400, MountType.CONFIG: 0o444}

_MODE = re.compile(r"0?[0-7]{3}")
_FILE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}")
_PATH = re.compile(r"(/[^/\x00]+)+")


def read_stored_mount(table: Table, type_: MountType, driver: DriverName) -> MountSpec:
    """The mount, whose type is one of MODE. The table is not closed."""
    source = table.text("source", pattern=NAME, accepted=NAME_ACCEPTED)
    if not table.has("source"):
        table.error("source", f"is required: the name of a {KIND_OF_MOUNT[type_].value}")
    if table.raw("read_only") is False:
        table.error("read_only", "secrets and configs are always read-only", "leave it out")
    if table.has("size"):
        table.error("size", "only tmpfs mounts have one")
    return MountSpec(
        type=type_,
        target=_target(table, type_, driver, source),
        source=source,
        read_only=table.boolean("read_only", True) or True,
        mode=_mode(table, MODE[type_]),
        uid=_id(table, "uid"),
        gid=_id(table, "gid"),
    )


def _target(table: Table, type_: MountType, driver: DriverName, source: str) -> str:
    target = table.text("target") or source
    if not table.ok("target", "source") or not target:
        return ""
    if driver is DriverName.PROCESS:
        if not _FILE.fullmatch(target):
            table.error(
                "target",
                "a process sees the node's own files: only a plain name is possible",
                f"leave it out, or write a name; the file is in ${VARIABLE[type_]}",
            )
        return target
    if not target.startswith("/"):
        if not _FILE.fullmatch(target):
            table.error("target", f"{shown(target)} is neither a path from / nor a plain name")
        return f"{DIRECTORY[type_]}/{target}"
    if not _PATH.fullmatch(target) or not {".", ".."}.isdisjoint(target.split("/")):
        table.error("target", "must be the path of a file, from / and without .. in it")
    return target


def _mode(table: Table, default: int) -> int:
    value = table.raw("mode")
    if value is None:
        return default
    accepted = 'write it as chmod takes it: "0400"'
    if not isinstance(value, str):
        table.error("mode", f"must be text, not {kind(value)}", accepted)
    elif not _MODE.fullmatch(value):
        table.error("mode", f"{shown(value)} is not accepted", accepted)
    elif int(value, 8) & 0o444 == 0:
        table.error("mode", "would let nobody read it", accepted)
    else:
        return int(value, 8)
    return default


def _id(table: Table, key: str) -> int | None:
    return table.integer(key, 0, 0, ID_MAX) if table.has(key) else None
