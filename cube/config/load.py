"""The agent's configuration: flag > environment > file > default. Every error at once."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cube.config.sections import Given, Section, fields_of, from_text
from cube.config.settings import (
    HTTP_PORT,
    AuthSettings,
    BindSettings,
    ClusterSettings,
    Config,
    DockerSettings,
    DriversSettings,
    GcSettings,
    LogSettings,
    NodeSettings,
    ProcessSettings,
    RaftValues,
    SchedulerSettings,
    TelemetrySettings,
)
from cube.gossip.settings import GossipSettings
from cube.model.addresses import is_loopback, is_unspecified
from cube.model.allowed import ALLOW_WORDS, ANY_USER, PROCESS_ALLOW_WORDS, asks_as_process
from cube.model.cluster import FINISHED_FOR_MS_MIN, FINISHED_PER_SLOT_MAX
from cube.model.errors import BadConfig, ConfigError
from cube.model.places import default_data_dir
from cube.model.resources import Resources
from cube.model.treeread import Errors, Table, shown
from cube.model.treetext import FILE, TEXT_BYTES_MAX, toml_tree
from cube.model.trust import parse_join_token
from cube.model.units import format_duration

PORT_FIRST_MIN = 1024  # dynamic ports below it would need root
ELECTION_MS_MAX = 3_000  # a cluster without a leader for longer is not worth its name
VOTERS_MAX = 9  # beyond it every write costs more and survives little more
BOOTSTRAP_MAX = 9
WRITE_TIMEOUT_MS_MIN = 100
GRACE_MS_MIN = 1_000  # below it a pause of the interpreter counts as death


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "node": NodeSettings,
    "node.reserved": Resources,
    "bind": BindSettings,
    "cluster": ClusterSettings,
    "raft": RaftValues,
    "gossip": GossipSettings,
    "auth": AuthSettings,
    "drivers.docker": DockerSettings,
    "drivers.process": ProcessSettings,
    "scheduler": SchedulerSettings,
    "logs": LogSettings,
    "gc": GcSettings,
    "telemetry": TelemetrySettings,
}

_BOUNDS = {
    "bind.http": (1, 65_535),
    "bind.raft": (1, 65_535),
    "bind.gossip": (1, 65_535),
    "cluster.bootstrap_expect": (0, BOOTSTRAP_MAX),
    "cluster.node_grace": (GRACE_MS_MIN, 0),
    "cluster.dead_voter_grace": (GRACE_MS_MIN, 0),
    "cluster.write_timeout": (WRITE_TIMEOUT_MS_MIN, 0),
    "raft.voters": (1, VOTERS_MAX),
    "raft.heartbeat": (10, 0),
    "raft.snapshot_every": (2, 10_000_000),
    "logs.files": (1, 100),
    "gc.image_disk_percent": (0, 100),
    "gc.finished_per_slot": (1, FINISHED_PER_SLOT_MAX),
}

_FLAGS = {
    "data_dir": ("node", "data_dir"),
    "name": ("node", "name"),
    "label": ("node", "labels"),
    "bind": ("bind", "address"),
    "advertise": ("bind", "advertise"),
    "http": ("bind", "http"),
    "raft": ("bind", "raft"),
    "gossip": ("bind", "gossip"),
    "join": ("cluster", "join"),
    "token": ("auth", "join_token"),
}
_ENV_NAMES = {
    "CUBE_DATA_DIR": ("node", "data_dir"),
    "CUBE_JOIN": ("cluster", "join"),
    "CUBE_JOIN_TOKEN": ("auth", "join_token"),
}
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}\$?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,62})?")
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")

Layers = dict[str, dict[str, Given]]


def load(path: str | Path | None, env: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """The configuration of this agent. Raises BadConfig with every error of file, env and flags.

    `flags` has the names of _FLAGS and `insecure`; None and an empty list mean: not given.
    Afterwards data_dir is never empty.
    """
    tree: dict[str, object] = {}
    if path is not None:
        try:
            with Path(path).open("rb") as file:
                tree = toml_tree(file.read(TEXT_BYTES_MAX + 1))
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
            raise BadConfig([ConfigError(str(path), problem)]) from error
        except BadConfig as bad:
            raise BadConfig([_at_file(str(path), error) for error in bad.errors]) from None
    config = build(tree, env, flags)
    if config.node.data_dir:
        return config
    data_dir = default_data_dir(env, is_root=os.geteuid() == 0)
    node = msgspec.structs.replace(config.node, data_dir=data_dir)
    return msgspec.structs.replace(config, node=node)


def build(tree: object, env: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """load() of a file that is already a tree. Pure: an empty data_dir stays empty."""
    errors = Errors()
    layers: Layers = {path: {} for path in SECTIONS}
    _add_environment(layers, env, errors)
    _add_flags(layers, flags)
    root = Table(errors, "", tree)
    drivers = root.table("drivers")

    def section(path: str) -> Section:
        parent, _, key = path.rpartition(".")
        inner = drivers if parent == "drivers" else root
        return Section(errors, path, inner.raw(key), layers[path])

    labels = layers["node"].pop("labels", None)  # they do not replace the file's
    insecure = bool(flags.get("insecure"))
    docker = _docker(section("drivers.docker"))
    process = _process(section("drivers.process"))
    config = Config(
        node=_node(section("node"), layers["node.reserved"], labels),
        bind=_bind(section("bind"), insecure),
        cluster=_cluster(section("cluster"), insecure),
        raft=_raft(section("raft")),
        gossip=_gossip(section("gossip")),
        auth=_auth(section("auth")),
        drivers=DriversSettings(docker=docker, process=process),
        scheduler=_scheduler(section("scheduler")),
        logs=_plain(section("logs"), LogSettings),
        gc=_gc(section("gc")),
        telemetry=_plain(section("telemetry"), TelemetrySettings),
        insecure=insecure,
    )
    drivers.close({"exec": "process", "containers": "docker"})
    root.close({"server": "bind", "log": "logs", "driver": "drivers", "insecure": "--insecure"})
    errors.raise_if_any()
    return config


# -- layers -----------------------------------------------------------------------------------


def _env_names() -> dict[str, tuple[str, str]]:
    names = dict(_ENV_NAMES)
    for path in SECTIONS:
        for key in keys_of(path):
            names[f"CUBE_{path}_{key}".replace(".", "_").upper()] = (path, key)
    return names


def keys_of(path: str) -> list[str]:
    """The keys of a section, as the file writes them."""
    keys = [key for key in fields_of(SECTIONS[path]) if key not in ("port_first", "port_last")]
    if path == "bind":
        keys.append("port_range")
    return [key for key in keys if f"{path}.{key}" not in SECTIONS]


def _type_of(path: str, key: str) -> object:
    if key == "labels":
        return tuple[str, ...]  # of KEY=VALUE
    field = fields_of(SECTIONS[path]).get(key)
    if field is None or field.name != key:  # a quantity: its reader takes text
        return str
    return field.type


def _add_environment(layers: Layers, env: Mapping[str, str], errors: Errors) -> None:
    names = _env_names()
    prefixes = tuple({f"CUBE_{path.partition('.')[0].upper()}_" for path in SECTIONS})
    for name in sorted(env):
        if name in names and env[name]:  # set but empty is how a unit file says: not set
            path, key = names[name]
            # A short name that is also there as a section's key: the section's name wins.
            if name not in _ENV_NAMES or key not in layers[path]:
                layers[path][key] = Given(name, from_text(_type_of(path, key), env[name]))
        elif name.startswith(prefixes) and name not in names:
            near = difflib.get_close_matches(name[:80], names, n=1)
            errors.add(name[:80], "unknown key", f"did you mean `{near[0]}`?" if near else "")


def _add_flags(layers: Layers, flags: Mapping[str, object]) -> None:
    for name, value in flags.items():
        if name == "insecure" or value is None or (isinstance(value, Sequence) and not value):
            continue
        assert name in _FLAGS, name
        path, key = _FLAGS[name]
        given = list(value) if isinstance(value, tuple) else value
        layers[path][key] = Given(f"--{name.replace('_', '-')}", given)


def _at_file(path: str, error: ConfigError) -> ConfigError:
    return ConfigError(path, error.problem, error.hint) if error.path == FILE else error


# -- sections ---------------------------------------------------------------------------------


def _plain(section: Section, type_: type[Any]) -> Any:
    values = section.read(type_, _BOUNDS)
    section.close()
    return type_(**values)


def _node(section: Section, reserved: dict[str, Given], labels: Given | None) -> NodeSettings:
    values = section.read(NodeSettings, _BOUNDS)
    if values["name"] and not _NODE_NAME.fullmatch(values["name"]):
        hint = "accepted: letters, digits, - and ., at most 63"
        section.error("name", f"{shown(values['name'])} is not a name for a node", hint)
    inner = Section(section.errors, "node.reserved", section.raw("reserved"), reserved)
    values["reserved"] = _plain(inner, Resources)
    values["labels"] = section.labels("labels", labels)
    for field in ("cpu_milli", "memory_bytes", "disk_bytes"):
        if 0 < values[field] <= getattr(values["reserved"], field):
            key = field.partition("_")[0]
            inner.error(key, f"leaves no {key} for tasks", f"it is as much as node.{key}")
    section.close({"datadir": "data_dir", "tags": "labels", "meta": "labels"})
    return NodeSettings(**values)


def _bind(section: Section, insecure: bool) -> BindSettings:
    values = section.read(BindSettings, _BOUNDS)
    values["port_first"], values["port_last"] = _port_range(section)
    taken: dict[int, str] = {}
    for key in ("http", "raft", "gossip"):
        other = taken.setdefault(values[key], key)
        if other != key and section.ok(key, other):
            section.error(key, f"{values[key]} is the port of {other} too")
    for key in ("address", "advertise"):
        if values[key] and not _is_host(values[key]):
            section.error(
                key, f"{shown(values[key])} is no address", "write 10.0.0.1, without port"
            )
    if section.ok("address", "advertise"):
        is_elsewhere = values["advertise"] and not is_loopback(values["advertise"])
        is_ip = _ip(values["advertise"]) is not None
        if section.raw("address") is None and is_elsewhere and is_ip and not insecure:
            values["address"] = values["advertise"]  # loopback alone would be of no use
        if not values["advertise"]:
            if is_unspecified(values["address"]):
                section.error("advertise", f"is required with {values['address']}", "an address")
            values["advertise"] = values["address"]
        elif is_unspecified(values["advertise"]):
            section.error("advertise", "must be an address that others can reach")
        for key in ("address", "advertise"):
            if insecure and section.ok(key) and not is_loopback(values[key]):
                hint = "leave --insecure out, or bind to 127.0.0.1"
                section.error(key, f"--insecure is for loopback only, not {values[key]}", hint)
    section.close({"host": "address", "port": "http", "port_first": "port_range"})
    return BindSettings(**values)


def _port_range(section: Section) -> tuple[int, int]:
    default = BindSettings()
    text = section.text("port_range", f"{default.port_first}-{default.port_last}")
    match = _RANGE.fullmatch(text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not PORT_FIRST_MIN <= first <= last <= 65_535:
        hint = f'write "20000-29999", within {PORT_FIRST_MIN}-65535'
        section.error("port_range", f"{shown(text)} is no range of ports", hint)
        return default.port_first, default.port_last
    return first, last


def _cluster(section: Section, insecure: bool) -> ClusterSettings:
    values = section.read(ClusterSettings, _BOUNDS)
    if not _HOST.fullmatch(values["name"]) or len(values["name"]) > 63:
        section.error("name", f"{shown(values['name'])} is not a name for a cluster")
    addresses: dict[str, None] = {}
    for text in values["join"]:
        if address := parse_address(text):
            addresses[address] = None
        else:
            section.error("join", f"{shown(text)} is no address", "write HOST or HOST:PORT")
    values["join"] = tuple(addresses)
    expect = values["bootstrap_expect"]
    if expect and section.ok("bootstrap_expect", "join"):
        if len(addresses) != expect:
            problem = f"{expect} needs the same list of {expect} addresses in join on every host"
            section.error("bootstrap_expect", problem, f"join names {len(addresses)}")
        if not values["secret_file"] and not insecure:
            hint = "cube cluster new-secret makes one for all hosts"
            section.error("secret_file", "is required with bootstrap_expect", hint)
    section.close({"peers": "join", "seeds": "join", "retry_join": "join"})
    return ClusterSettings(**values)


def _raft(section: Section) -> RaftValues:
    values = section.read(RaftValues, _BOUNDS)
    heartbeat, least, most = (
        values[key] for key in ("heartbeat_ms", "election_min_ms", "election_max_ms")
    )
    if section.ok("heartbeat", "election_min") and least <= 3 * heartbeat:
        section.error("election_min", "must be more than three times heartbeat")
    if section.ok("election_min", "election_max"):
        if most <= least:
            section.error("election_max", "must be more than election_min")
        elif most > ELECTION_MS_MAX:
            section.error("election_max", "must be at most 3s")
    if section.ok("voters") and values["voters"] % 2 == 0:
        odd = values["voters"] - 1
        section.error("voters", "must be odd", f"{values['voters']} survive no more than {odd}")
    section.close()
    return RaftValues(**values)


def _gossip(section: Section) -> GossipSettings:
    settings: GossipSettings = _plain(section, GossipSettings)
    try:
        return settings.check()
    except BadConfig as bad:
        for error in bad.errors:
            key = error.path.rpartition(".")[2].removesuffix("_ms")
            if section.ok(key):
                section.error(key, error.problem.replace("_ms", ""))
    return GossipSettings()


def _auth(section: Section) -> AuthSettings:
    settings: AuthSettings = _plain(section, AuthSettings)
    if settings.join_token and section.ok("join_token"):
        try:
            parse_join_token(settings.join_token)
        except ValueError as error:
            section.error("join_token", str(error))
    return settings


def _docker(section: Section) -> DockerSettings:
    values = section.read(DockerSettings, _BOUNDS)
    for word in values["allow"]:
        if word not in ALLOW_WORDS:
            section.error("allow", f"{shown(word)} is not accepted", ", ".join(ALLOW_WORDS))
    section.close({"socket": "host"})
    return DockerSettings(**values)


def _process(section: Section) -> ProcessSettings:
    values = section.read(ProcessSettings, _BOUNDS)
    words = ", ".join(PROCESS_ALLOW_WORDS)
    for word in values["allow"]:
        if word not in PROCESS_ALLOW_WORDS:
            section.error("allow", f"{shown(word)} is not accepted", words)
    for user in values["users"]:
        if user != ANY_USER and not _USER.fullmatch(user):
            hint = f'names or ids, or user:group; "{ANY_USER}" is anybody but root'
            section.error("users", f"{shown(user)} is no user", hint)
        elif asks_as_process(user) == PROCESS_ALLOW_WORDS:
            section.error("users", f"{shown(user)} is root", 'allow = ["root"] lets tasks be root')
    if values["user"] and not _USER.fullmatch(values["user"]):
        section.error("user", f"{shown(values['user'])} is no user", "a name or id, or user:group")
    section.close()
    return ProcessSettings(**values)


def _gc(section: Section) -> GcSettings:
    values = section.read(GcSettings, _BOUNDS)
    if 0 < values["finished_for_ms"] < FINISHED_FOR_MS_MIN:
        least = format_duration(FINISHED_FOR_MS_MIN)
        section.error("finished_for", f"must be at least {least}, or 0: however old they are")
    section.close({"finished": "finished_per_slot", "finished_after": "finished_for"})
    return GcSettings(**values)


def _scheduler(section: Section) -> SchedulerSettings:
    values = section.read(SchedulerSettings, _BOUNDS)
    section.close({"strategy": "policy", "algorithm": "policy"})
    return SchedulerSettings(**values)


# -- addresses --------------------------------------------------------------------------------


def parse_address(text: str, port: int = HTTP_PORT) -> str:
    """HOST:PORT of HOST, HOST:PORT, IPv6 or [IPv6]:PORT; "" when it is none of these."""
    host, number = text.strip(), str(port)
    if match := re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?", host):
        host, number = match[1], match[2] or number
    elif host.count(":") == 1:
        host, _, number = host.partition(":")
    if not _is_host(host) or not re.fullmatch(r"[0-9]{1,5}", number):
        return ""
    if not 0 < int(number) <= 65_535:
        return ""
    return f"[{host}]:{number}" if ":" in host else f"{host}:{int(number)}"


def _is_host(host: str) -> bool:
    """An IP address or a host's name; a bare number is a port that lost its host."""
    return _ip(host) is not None or (_HOST.fullmatch(host) is not None and not host.isdigit())


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
