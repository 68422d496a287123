"""What a service or a file says, merged over what is below it (the specification's 13-merge.md).

Maps are merged key by key, lists are appended to, everything else is replaced. The tables name what goes
another way: by path within a service, as what a service, a volume or a label is called decides nothing.
A list's members that mean the same thing (a mount's target, a port) are one, the later one as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from cube.model.compose.placed import Node

Tree = dict[str, Node]
Path = tuple[str, ...]

_REPLACED: frozenset[Path] = frozenset({("command",), ("entrypoint",), ("healthcheck", "test")})
# Lists of NAME=VALUE, or maps: merged as maps.
_PAIRS: dict[Path, str] = {
    ("environment",): "=", ("labels",): "=", ("annotations",): "=", ("sysctls",): "=",
    ("deploy", "labels"): "=", ("extra_hosts",): "=:", ("storage_opt",): "=",
}  # fmt: skip
_BY_NAME: frozenset[Path] = frozenset({("depends_on",), ("networks",), ("models",)})
# One text stands for a list of one.
_WORDS: frozenset[Path] = frozenset(
    {("dns",), ("dns_opt",), ("dns_search",), ("env_file",), ("label_file",), ("tmpfs",)}
)
_TOP_LABELS = ("networks", "volumes", "secrets", "configs")


def merged_service(base: Node, over: Node) -> Node:
    """The service `over`, with what it extends under it. Tags of `over` stay: it may itself be merged."""
    return _merged(base, over, (), over.at)


def merged_file(base: Node, over: Node) -> Node:
    """Two files as one. Their roots are maps; places of what both say are those of the first."""
    assert isinstance(base.value, dict)
    assert isinstance(over.value, dict)
    found: Tree = dict(base.value)
    for key, new in over.value.items():
        old = found.get(key)
        if old is None or new.tag:
            found[key] = new
        elif key in ("services", *_TOP_LABELS) and _are_maps(old, new):
            found[key] = _merged_named(old, new, is_services=key == "services")
        else:
            found[key] = _value(old, new, ("x",))
    return Node(found, base.at)


def _merged_named(base: Node, over: Node, *, is_services: bool) -> Node:
    """Maps from the user's names to services, volumes and so on."""
    assert isinstance(base.value, dict)
    assert isinstance(over.value, dict)
    found: Tree = dict(base.value)
    for name, new in over.value.items():
        old = found.get(name)
        if old is None or new.tag or not _are_maps(old, new):
            is_silent = old is not None and new.value is None and not new.tag
            found[name] = old if is_silent and old is not None else new
        else:
            found[name] = _merged(old, new, () if is_services else ("top",), old.at)
    return Node(found, base.at)


def _merged(base: Node, over: Node, path: Path, at: str) -> Node:
    assert isinstance(base.value, dict)
    assert isinstance(over.value, dict)
    found: Tree = dict(base.value)
    for key, new in over.value.items():
        old = found.get(key)
        found[key] = new if old is None or new.tag else _value(old, new, (*path, key))
    return Node(found, at)


def _value(old: Node, new: Node, path: Path) -> Node:
    if path in _REPLACED:
        return new
    if path == ("logging",) and _have_other_drivers(old, new):
        return new  # options of one driver mean nothing to another
    separators = "=" if path == ("top", "labels") else _PAIRS.get(path)
    if separators is not None:
        old, new = _as_map(old, separators), _as_map(new, separators)
    elif path in _BY_NAME:
        old, new = _as_map(old, ""), _as_map(new, "")
    elif path in _WORDS:
        old, new = (Node(_as_list(one), one.at) if one.value else one for one in (old, new))
    if new.value is None and isinstance(old.value, dict | list):
        return old  # a key with nothing behind it; !reset takes away what is below
    if _are_maps(old, new):
        return _merged(old, new, path, old.at)
    if isinstance(old.value, list) and isinstance(new.value, list):
        return Node(_appended(old.value, new.value, _KEYS.get(path, comparable)), old.at)
    return new


def _appended(old: list[Node], new: list[Node], key: Callable[[Node], Hashable]) -> list[Node]:
    """The old ones, each replaced by the new one with its key, and then the other new ones."""
    by_key = {key(item): item for item in new}
    found: dict[Hashable, Node] = {}
    for item in old:
        one = key(item)
        found[one] = by_key.get(one, item)
    for one, item in by_key.items():
        found.setdefault(one, item)
    return list(found.values())


def _are_maps(old: Node, new: Node) -> bool:
    return isinstance(old.value, dict) and isinstance(new.value, dict)


def _as_list(node: Node) -> list[Node]:
    return node.value if isinstance(node.value, list) else [node]


def _as_map(node: Node, separators: str) -> Node:
    """A list of NAME=VALUE, or of names, as the map that it stands for."""
    items = node.value
    if not isinstance(items, list) or not all(isinstance(item.value, str) for item in items):
        return node
    found: Tree = {}
    for item in items:
        text = item.value
        cut = min((at for one in separators if (at := text.find(one)) >= 0), default=-1)
        name, value = (text, None) if cut < 0 else (text[:cut], text[cut + 1 :])
        found[name] = Node(value, item.at, item.tag)
    return Node(found, node.at)


def _have_other_drivers(old: Node, new: Node) -> bool:
    drivers = [one.inner("driver") for one in (old, new)]
    return all(drivers) and drivers[0].value != drivers[1].value  # type: ignore[union-attr]


# -- what makes two members of a list one ---------------------------------------------------------


def comparable(node: Node) -> Hashable:
    """Equal for equal trees; lists are long, and to look through one for each item of another longer."""
    value = node.value
    if isinstance(value, dict):
        return frozenset((key, comparable(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return tuple(map(comparable, value))
    assert isinstance(value, Hashable)
    return value


def _target(node: Node) -> Hashable:
    """Where in the container a volume or a device appears."""
    if isinstance(node.value, dict):
        target = node.inner("target")
        return comparable(node if target is None else target)
    if not isinstance(node.value, str):
        return comparable(node)
    parts = node.value.split(":")
    return parts[1] if len(parts) > 1 else parts[0]


def _mounted(beneath: str) -> Callable[[Node], Hashable]:
    """Where a secret or a config appears."""

    def key(node: Node) -> Hashable:
        target = node.inner("target") or node.inner("source") or node
        name = target.value
        if not isinstance(name, str):
            return comparable(node)
        return name if name.startswith("/") else f"{beneath}/{name}"

    return key


def _port(node: Node) -> Hashable:
    """{ip, target, published, protocol}, of the long form or of IP:PUBLISHED:TARGET/PROTOCOL."""
    if isinstance(node.value, dict):
        keys = ("host_ip", "target", "published", "protocol")
        values = [one.value if (one := node.inner(key)) else None for key in keys]
    elif isinstance(node.value, str | int):
        text, _, protocol = str(node.value).partition("/")
        parts = ["", "", *text.rsplit(":", 2)][-3:]
        values = [parts[0], parts[2], parts[1], protocol]
    else:
        return comparable(node)
    if not all(isinstance(value, str | int | None) for value in values):
        return comparable(node)
    words = ["" if value is None else str(value) for value in values]
    return (words[0].strip("[]"), words[1], words[2], words[3] or "tcp")


def _path(node: Node) -> Hashable:
    """The file that an env_file names."""
    return comparable(node.inner("path") or node)


_KEYS: dict[Path, Callable[[Node], Hashable]] = {
    ("volumes",): _target,
    ("devices",): _target,
    ("secrets",): _mounted("/run/secrets"),
    ("configs",): _mounted(""),
    ("ports",): _port,
    ("env_file",): _path,
}
