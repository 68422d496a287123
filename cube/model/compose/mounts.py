"""Volumes, bind mounts, tmpfs and devices of a service."""

from __future__ import annotations

import posixpath

from cube.model.compose.section import Group, Reading, Section
from cube.model.treeread import close_word, kind, shown

_TYPES = ("volume", "bind", "tmpfs")
_QUIET_OPTIONS = frozenset({"rw", "cached", "delegated", "consistent"})
# What a tmpfs of the engine is anyway.
_TMPFS_DEFAULTS = frozenset({"rw", "noexec", "nosuid", "nodev", "mode=1777"})


def read_mounts(
    section: Section, group: Group, volumes: dict[str, str], stored: dict[str, dict[str, str]]
) -> None:
    """mounts, from `volumes`, `tmpfs`, `secrets` and `configs`. `volumes`: name in the file to the
    volume's name; `stored` likewise, for each of the latter two."""
    mounts: list[dict[str, object]] = []
    origins: list[str] = []
    for path, item in section.items("volumes"):
        mount = (
            _short(section.reading, path, item, volumes)
            if isinstance(item, str)
            else _long(section.reading, path, item, volumes)
        )
        if mount is not None:
            mounts.append(mount)
            origins.append(path)
    for text in section.words("tmpfs") or []:
        target, _, options = text.partition(":")
        mount = {"type": "tmpfs", "target": target}
        if _tmpfs_options(section, options, mount):
            mounts.append(mount)
            origins.append(section.at("tmpfs"))
    for key, names in stored.items():
        for path, item in section.items(key):
            mount = _stored(section.reading, path, key, item, names)
            if mount is not None:
                mounts.append(mount)
                origins.append(path)
    if mounts:
        group.put("mounts", mounts, section.at("volumes"))
        for index, origin in enumerate(origins):
            section.reading.origins[f"groups.{group.name}.mounts[{index}]"] = origin


def _short(
    reading: Reading, path: str, text: str, volumes: dict[str, str]
) -> dict[str, object] | None:
    parts = text.split(":")
    if len(parts) == 1:
        reading.errors.add(path, *_ANONYMOUS)
        return None
    if len(parts) > 3:
        reading.errors.add(
            path, f"{shown(text)} is no volume", "write NAME:/path or /path:/path:ro"
        )
        return None
    mount = _sourced(reading, path, "", parts[0], volumes)
    if mount is None:
        return None
    mount["target"] = parts[1]
    for option in parts[2].split(",") if len(parts) > 2 else []:
        if option == "ro":
            mount["read_only"] = True
        elif option and option not in _QUIET_OPTIONS:
            reading.errors.add(
                path, f"the option {shown(option)} is not honoured", "accepted: ro, rw"
            )
    return mount


_ANONYMOUS = (
    "is a volume without a name, which Cube could not find again",
    "give it a name: NAME:/path, and NAME under volumes at the top level; or make it a tmpfs",
)


def _long(
    reading: Reading, path: str, item: object, volumes: dict[str, str]
) -> dict[str, object] | None:
    inner = Section(reading, path, "volumes", item)
    if not isinstance(item, dict):
        return None
    type_ = inner.text("type") or "volume"
    if type_ not in _TYPES:
        inner.error("type", f"{shown(type_)} is not accepted", f"accepted: {', '.join(_TYPES)}")
        return None
    below = {name: inner.section(name, f"volumes.{name}") for name in _TYPES}
    size = below["tmpfs"].size_bytes("size")
    source = inner.text("source") or ""
    if type_ == "tmpfs":
        mount: dict[str, object] | None = {"type": "tmpfs"}
        if size and mount is not None:
            mount["size"] = size
    elif not source and type_ == "volume":
        reading.errors.add(path, *_ANONYMOUS)
        return None
    else:
        mount = _sourced(reading, path, type_, source, volumes)
    if mount is None:
        return None
    mount["target"] = inner.text("target") or ""
    if inner.flag("read_only"):
        mount["read_only"] = True
    return mount


def _sourced(
    reading: Reading, path: str, type_: str, source: str, volumes: dict[str, str]
) -> dict[str, object] | None:
    """A volume or a bind mount. `type_` empty: the source tells which."""
    is_path = source.startswith(("/", ".", "~"))
    if type_ == "volume" or (not type_ and not is_path):
        if source not in volumes:
            near = close_word(source, list(volumes))
            hint = near or f"write volumes: {{ {source[:40]}: }} at the top level"
            reading.errors.add(path, f"there is no volume {shown(source)} at the top level", hint)
            return None
        return {"type": "volume", "source": volumes[source]}
    found = _on_node(reading, path, source)
    return None if found is None else {"type": "bind", "source": found}


def _stored(
    reading: Reading, path: str, kind: str, item: object, names: dict[str, str]
) -> dict[str, object] | None:
    """The file of a secret or a config."""
    tree = {"source": item} if isinstance(item, str) else item
    inner = Section(reading, path, f"service {kind}", tree)
    if not isinstance(tree, dict):
        return None
    source = inner.text("source")
    if source is None or source not in names:
        where = path if isinstance(item, str) else inner.at("source")
        near = close_word(source or "", list(names))
        problem = f"there is no {shown(source or '')} under {kind} at the top level"
        reading.errors.add(where, problem, near)
        return None
    mount: dict[str, object] = {"type": kind.removesuffix("s"), "source": names[source]}
    target = inner.text("target")
    mount["target"] = target or (source if kind == "secrets" else f"/{source}")
    for key in ("uid", "gid"):
        if (number := inner.whole(key)) is not None:
            mount[key] = number
    mode = inner.raw("mode")
    if mode is not None:  # a number is what YAML made of 0440
        mount["mode"] = f"{mode:04o}" if type(mode) is int and mode >= 0 else inner.text("mode")
    return mount


def _on_node(reading: Reading, path: str, source: str) -> str | None:
    """An absolute path: relative ones are the compose file's directory's."""
    if source.startswith("/"):
        return posixpath.normpath(source)
    around = reading.around
    base = around.home if source.startswith("~") else around.directory
    if not base:
        reading.errors.add(
            path, f"{shown(source)} is not absolute, and the API knows no directory",
            "write a path that is there on every node",
        )  # fmt: skip
        return None
    found = posixpath.normpath(posixpath.join(base, source.removeprefix("~").lstrip("/")))
    reading.note(path, f"each node looks for {shown(found, 120)} on its own disk")
    return found


def _tmpfs_options(section: Section, options: str, mount: dict[str, object]) -> bool:
    for option in options.split(",") if options else []:
        name, _, value = option.partition("=")
        if name == "size":
            inner = Section(section.reading, section.at("tmpfs"), "volumes.tmpfs", {"size": value})
            size = inner.size_bytes("size")
            if size is None:
                return False
            mount["size"] = size
        elif option not in _TMPFS_DEFAULTS:
            section.error(
                "tmpfs", f"the option {shown(option)} is not honoured", "accepted: size=64m"
            )
            return False
    return True


def read_devices(section: Section, group: Group) -> None:
    """docker.devices and ulimits."""
    devices = []
    for path, item in section.items("devices"):
        if isinstance(item, str):
            devices.append(item)
            continue
        inner = Section(section.reading, path, "devices", item)
        source, target = inner.text("source"), inner.text("target")
        if source is None:
            if isinstance(item, dict):
                inner.error("source", "is required")
            continue
        permissions = inner.text("permissions") or ""
        devices.append(":".join(part for part in (source, target or source, permissions) if part))
    if devices:
        group.put("docker.devices", devices, section.at("devices"))
    limits: dict[str, object] = {}
    for path, name, value in section.named("ulimits"):
        if isinstance(value, dict):
            inner = Section(section.reading, path, "ulimits", value)
            soft, hard = inner.whole("soft"), inner.whole("hard")
            limits[name] = {"soft": soft, "hard": hard}
        elif isinstance(value, list) or value is None:
            section.reading.errors.add(path, f"must be a number, not {kind(value)}")
        else:
            one = Section(section.reading, section.at("ulimits"), "ulimits", {"soft": value})
            limits[name] = one.whole("soft")
    if limits:
        group.put("ulimits", limits, section.at("ulimits"))
