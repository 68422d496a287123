"""Ports and networks of a service.

Cube publishes a port where its task runs, at a host port that it picks unless the file names one. It has
no network across nodes and gives no names on it; what leans on these is warned of by path.
"""

from __future__ import annotations

import re

import msgspec

from cube.model.compose.keys import SECTIONS
from cube.model.compose.section import Group, Section, as_text
from cube.model.spec import PORTS_MAX
from cube.model.treeread import join, shown

_SHORT = re.compile(
    r"(?:(?P<head>.*):)?(?P<target>[0-9]+(?:-[0-9]+)?)(?:/(?P<protocol>[A-Za-z0-9]+))?"
)
_ANY_ADDRESS = ("", "0.0.0.0", "[::]", "::")
_MODES = ("none", "host", "bridge")
_NAMES_HOST = re.compile(r"HOST|URL|URI|ADDR|SERVER|ENDPOINT|UPSTREAM|DSN|BROKER", re.IGNORECASE)
_NAMES_SEARCHED = 20_000  # characters of one value


class Network(msgspec.Struct, frozen=True):
    """A network of the file. `external`: the name of one that exists on the nodes; empty: it is not."""

    external: str = ""


class _Port(msgspec.Struct, frozen=True):
    path: str
    target: int
    host: int
    protocol: str
    name: str = ""


def read_ports(section: Section, group: Group) -> None:
    ports: list[_Port] = []
    for path, item in section.items("ports"):
        if isinstance(item, dict):
            ports += _long(section, path, item)
        else:
            ports += _short(section, path, as_text(item) or "")
    taken: dict[str, _Port] = {}
    for port in ports:
        suffix = "" if port.protocol == "tcp" else f"-{port.protocol}"
        name = base = port.name or f"{port.target}{suffix}"
        number = 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        taken[name] = port
        tree: dict[str, object] = {"target": port.target, "protocol": port.protocol}
        if port.host:
            tree["host"] = port.host
        section.reading.put(("groups", group.name, "ports", name), tree, port.path)


def _short(section: Section, path: str, text: str) -> list[_Port]:
    """`[[IP:]HOST:]TARGET[/PROTOCOL]`, HOST and TARGET being ports or ranges of the same length."""
    match = _SHORT.fullmatch(text) if len(text) < 256 else None
    if match is None:
        hint = 'write "8080", "80:8080" or "5000-5002:5000-5002/udp"'
        section.reading.errors.add(path, f"{shown(text)} is no port", hint)
        return []
    head = match["head"] or ""
    address, _, published = head.rpartition(":")
    if address not in _ANY_ADDRESS:
        why = SECTIONS["ports"]["host_ip"]
        section.reading.errors.add(path, why.words, why.hint)
        return []
    return _ports(section, path, match["target"], published, match["protocol"] or "tcp", "")


def _long(section: Section, path: str, item: object) -> list[_Port]:
    inner = Section(section.reading, path, "ports", item)
    target = inner.text("target")
    if target is None:
        inner.error("target", "is required")
        return []
    mode = inner.text("mode")
    if mode not in (None, "host", "ingress"):
        inner.error("mode", f"{shown(mode)} is not accepted", "accepted: host, ingress")
    name = (inner.text("name") or "").lower()
    published = inner.text("published") or ""
    return _ports(section, path, target, published, inner.text("protocol") or "tcp", name)


def _ports(
    section: Section, path: str, target: str, published: str, protocol: str, name: str
) -> list[_Port]:
    targets, hosts = _range(target), _range(published) if published else []
    if not targets or hosts is None:
        wrong = published if targets else target
        section.reading.errors.add(
            path,
            f"{shown(wrong)} is no port and no range of at most {PORTS_MAX} ports",
            "8000-8004",
        )
        return []
    if len(hosts) > 1 and len(targets) == 1:
        section.reading.errors.add(
            path, f"{shown(published)} leaves the port to chance",
            "leave it out: Cube picks a free one, and cube ps says which",
        )  # fmt: skip
        return []
    if hosts and len(hosts) != len(targets):
        section.reading.errors.add(
            path, f"{shown(published)} and {shown(target)} are not equally many ports"
        )
        return []
    hosts = hosts or [0] * len(targets)
    return [
        _Port(path, one, host, protocol.lower(), name)
        for one, host in zip(targets, hosts, strict=True)
    ]


def _range(text: str) -> list[int] | None:
    first, dash, last = text.partition("-")
    if (
        not first.isdecimal()
        or len(first) > 5
        or (dash and not (last.isdecimal() and len(last) < 6))
    ):
        return None
    low, high = int(first), int(last) if dash else int(first)
    return list(range(low, high + 1)) if low <= high < low + PORTS_MAX else None


def read_networks(section: Section, group: Group, networks: dict[str, Network]) -> None:
    """docker.network_mode, where one network of the nodes is meant; else nothing."""
    mode = section.text("network_mode")
    if mode:
        if mode.startswith(("service:", "container:")):
            section.error(
                "network_mode", "two tasks do not share a network",
                "publish a port, or run both in one container",
            )  # fmt: skip
        elif mode not in ("bridge", "default"):
            group.put("docker.network_mode", mode, section.at("network_mode"))
    names: list[str] = []
    value = section.raw("networks")
    if isinstance(value, dict):
        for path, name, tree in section.named("networks"):
            Section(section.reading, path, "service networks", tree)
            names.append(name)
    else:
        names = section.words("networks") or []
    if mode and names:
        section.error("networks", "is at odds with network_mode", "leave one of them out")
    for name in names:
        if name not in networks and name != "default":
            section.error("networks", f"there is no network {shown(name)} at the top level")
    external = [networks[name].external for name in names if name in networks]
    if len(names) == 1 and external and external[0]:
        group.put("docker.network_mode", external[0], section.at("networks"))
    elif any(external):
        section.error(
            "networks", "names an external network beside others, and a task is on one",
            "name the external network alone",
        )  # fmt: skip


def note_names(section: Section, group: Group, groups: dict[str, str], service: str) -> None:
    """A warning for each value that seems to name another service as a host."""
    env = group.get("env")
    values = [
        (f"groups.{group.name}.env", name, text)
        for name, text in (env.items() if isinstance(env, dict) else ())
    ]
    for key in ("command", "entrypoint"):
        words = group.get(key)
        path = f"groups.{group.name}.{key}"
        values += [(path, "", word) for word in (words if isinstance(words, list) else ())]
    others = [name for name in groups if name != service]
    if not others or not values:
        return
    either = "|".join(re.escape(name) for name in sorted(others, key=len, reverse=True))
    inside = re.compile(rf"(?:^|//|@|[\s,=(])({either})(?=:[0-9]+)|(?://|@)({either})(?=[/?\s,]|$)")
    reading = section.reading
    job = str(reading.job.get("name", "JOB"))
    noted: dict[tuple[str, str], None] = {}
    for base, name, text in values:
        match = inside.search(text[:_NAMES_SEARCHED])
        found = (match[1] or match[2]) if match else ""
        if not found and text in others and _NAMES_HOST.search(name):
            found = text
        if not found:
            continue
        path = reading.origin(join(base, name) if name else base)
        if (path, found) not in noted:
            noted[path, found] = None
            reading.note(
                path,
                f"{found} is no host name in Cube: cube service resolve {job}.{groups[found]}.PORT "
                "says at which addresses it answers",
            )
