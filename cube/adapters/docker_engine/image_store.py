"""The images of an engine: what there is, who uses it, and how one goes. Plain blocking functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote

import docker.errors
import requests

from cube.adapters.docker_engine.engine import CONNECT_S, Client
from cube.adapters.docker_engine.failures import explain, shorten
from cube.adapters.docker_engine.marks import KEPT_PREFIX, LABEL_TASK_NAME, NAME_PREFIX
from cube.model.errors import DriverFailed
from cube.model.images import ImageSeen, canonical

USERS_MAX = 5  # told of one image: somebody has it, and who are examples
REMOVE_S = (
    120.0  # several gigabytes on a slow disk take a minute; the engine says nothing meanwhile
)
NOT_FOUND, CONFLICT = 404, 409


def images(client: Client) -> list[ImageSeen]:
    """See cube.ports.images.ImageStore."""
    users: dict[str, list[str]] = {}
    for container in client.containers(all=True):
        users.setdefault(str(container.get("ImageID", "")), []).append(_user(container))
    listed: list[Mapping[str, Any]] = client.images(all=True)
    bases = {str(one.get("ParentId") or "") for one in listed}
    seen = [
        ImageSeen(
            id=str(one["Id"]),
            names=names_of(one),
            size_bytes=max(0, int(one.get("Size") or 0)),
            users=tuple(sorted(users.get(str(one["Id"]), ()))[:USERS_MAX]),
            is_base=one["Id"] in bases,
        )
        for one in listed
    ]
    return sorted(seen, key=lambda one: one.id)


def _user(container: Mapping[str, Any]) -> str:
    """Its name, and for people what it is of Cube's."""
    names = container.get("Names") or [container["Id"][:12]]
    name = str(names[0]).lstrip("/")
    task = str((container.get("Labels") or {}).get(LABEL_TASK_NAME, ""))
    if not task or not name.startswith(NAME_PREFIX):
        return name
    return f"{name} ({'output of ' if name.startswith(KEPT_PREFIX) else ''}{task})"


def ids_by_name(client: Client) -> tuple[set[str], dict[str, str]]:
    """All ids, and which of them has each canonical name."""
    listed: list[Mapping[str, Any]] = client.images(all=True)
    names = {canonical(name): str(one["Id"]) for one in listed for name in names_of(one)}
    return {str(one["Id"]) for one in listed}, names


def names_of(image: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a listing or an inspection: tags, then digests."""
    names = [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())]
    return tuple(str(name) for name in names if "<none>" not in name)


def remove_image(client: Client, image_id: str, names: Collection[str]) -> bool:
    """See cube.ports.images.ImageStore. It goes name by name, never by force: the engine keeps what a
    container has, and somebody's own name of it would be in its way. But it would take names away
    first, so what is in use by now is looked up before."""
    found = next((one for one in images(client) if one.id == image_id), None)
    if found is None:
        return False
    if found.users:
        raise DriverFailed("image_in_use", f"a container has it: {found.users[0]}", transient=True)
    if found.is_base:
        raise DriverFailed("image_in_use", "another image is built on it", transient=True)
    if more := set(found.names) - set(names):
        raise DriverFailed("image_renamed", f"{min(more)} is a name of it too", transient=True)
    for name in found.names:
        now = _inspect(client, name)
        if now is not None and now["Id"] == image_id:  # the last tag takes the digests with it
            _remove(client, name)
    left = _inspect(client, image_id)
    if left is not None and not names_of(left):
        _remove(client, image_id)
        left = _inspect(client, image_id)
    if left is not None:
        raise DriverFailed("image_in_use", "another image needs it", transient=True)
    return True


def _inspect(client: Client, reference: str) -> Mapping[str, Any] | None:
    try:
        inspected: Mapping[str, Any] = client.inspect_image(reference)  # type: ignore[no-untyped-call]
    except docker.errors.NotFound:
        return None
    return inspected


def _remove(client: Client, reference: str) -> None:
    """Not the SDK's: its patience is that of all calls. Parents are left to whoever made them."""
    response = client.delete(
        f"{client.base_url}/v{client.api_version}/images/{quote(reference, safe='')}",
        params={"noprune": "1"},
        timeout=(CONNECT_S, REMOVE_S),
    )
    if response.status_code in (requests.codes.ok, NOT_FOUND):
        return
    try:
        text = shorten(str(response.json()["message"]))
    except (ValueError, KeyError, TypeError):
        text = f"the engine says: {response.status_code}"
    if response.status_code == CONFLICT:
        raise DriverFailed("image_in_use", text, transient=True)
    code, transient, _ = explain(text) or ("engine_error", True, "")
    raise DriverFailed(code, text, transient=transient)
