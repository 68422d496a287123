"""What a job asks for and this release does not do yet: said by path, never ignored silently.

One row per key. Whoever makes a key work deletes its row.
"""

from __future__ import annotations

from collections.abc import Callable

from cube.model.spec import (
    DriverName,
    GroupSpec,
    JobSpec,
    SecretRef,
    UpdateOrder,
)
from cube.model.stored import KIND_OF_MOUNT
from cube.model.treeread import join

_JobRow = tuple[str, Callable[[JobSpec], bool], str]
_GroupRow = tuple[str, Callable[[GroupSpec], bool], str]

_JOB: tuple[_JobRow, ...] = ()

_GROUP: tuple[_GroupRow, ...] = (
    (
        "on_partition",
        lambda g: g.is_leased and g.driver is DriverName.DOCKER,
        "a container whose node is cut off stops only while the node's agent runs: let what it writes "
        "to refuse a smaller CUBE_FENCE than it has seen",
    ),
    (
        "update.order",
        lambda g: g.update.order is UpdateOrder.START_FIRST and g.lives_alone,
        "updates stop the old task first: with a fixed host port, a volume or at_most_one, two tasks "
        "of a slot cannot run side by side",
    ),
)


def warnings(spec: JobSpec) -> list[str]:
    """`path: sentence` for each key that is valid and not honoured. Defaults never warn."""
    found = [f"{path}: {why}" for path, asked, why in _JOB if asked(spec)]
    for name, group in spec.groups.items():
        base = f"groups.{name}"
        found += [f"{base}.{path}: {why}" for path, asked, why in _GROUP if asked(group)]
        if group.driver is DriverName.DOCKER:
            found += _in_containers(base, group)
        if group.driver is DriverName.PROCESS:
            for port_name, port in group.ports.items():
                if port.target not in (0, port.host):
                    listens = f"$CUBE_PORT_{port_name.upper().replace('-', '_')}"
                    path = f"{base}.ports.{port_name}.target"
                    found.append(f"{path}: a process listens on {listens}, not on {port.target}")
    return found


def _in_containers(base: str, group: GroupSpec) -> list[str]:
    found = []
    for number, mount in enumerate(group.mounts):
        is_named = group.user != "" and not group.user[0].isdigit()
        if (
            mount.type in KIND_OF_MOUNT
            and is_named
            and mount.uid is None
            and not mount.mode & 0o044
        ):
            found.append(
                f"{base}.mounts[{number}]: belongs to root, for what user {group.user} is, only the "
                'image knows: set uid, or mode = "0444"'
            )
    for variable, value in group.env.items():
        if isinstance(value, SecretRef):
            found.append(
                f"{join(f'{base}.env', variable)}: Docker keeps a container's environment on its disk, "
                "and shows it in docker inspect: mount the secret instead, where the program can read "
                "a file"
            )
    return found
