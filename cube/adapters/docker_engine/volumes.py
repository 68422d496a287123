"""Named volumes: which of them this cluster made, and how one goes."""

from __future__ import annotations

from collections.abc import Collection

import docker.errors

from cube.adapters.docker_engine.engine import Client
from cube.adapters.docker_engine.marks import Marks
from cube.model import allowed
from cube.model.errors import DriverFailed

VOLUMES_MAX = 10_000  # told of one engine


def volume_names(client: Client, marks: Marks) -> list[str]:
    labels = [f"{key}={value}" for key, value in marks.volume_labels().items()]
    found = client.volumes(filters={"label": labels}).get("Volumes") or []
    return sorted(str(one["Name"]) for one in found)[:VOLUMES_MAX]


def check_ours(client: Client, marks: Marks, names: Collection[str]) -> None:
    """Those of the volumes that are there were made by this cluster. Others may be another program's
    data, or a directory of the host. Raises DriverFailed."""
    for name in names:
        try:
            labels = client.inspect_volume(name).get("Labels") or {}
        except docker.errors.NotFound:
            continue
        if any(labels.get(key) != value for key, value in marks.volume_labels().items()):
            raise DriverFailed(
                "not_allowed",
                f"the volume {name} was not made by this cluster, and this node "
                f"{allowed.refusal(['volumes'])}",
                transient=False,
            )


def remove_volume(client: Client, marks: Marks, name: str) -> bool:
    """See cube.ports.volumes.VolumeStore. The engine itself refuses what a container has."""
    try:
        labels = client.inspect_volume(name).get("Labels") or {}
        if any(labels.get(key) != value for key, value in marks.volume_labels().items()):
            return False
        client.remove_volume(name)
    except docker.errors.NotFound:
        return False
    except docker.errors.APIError as error:
        if error.status_code != 409:
            raise
        raise DriverFailed(
            "volume_in_use", f"a container still has the volume {name}", transient=True
        ) from None
    return True
