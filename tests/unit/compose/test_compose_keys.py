"""Every key of the compose specification is honoured, noted or refused, by path: none is dropped."""

import importlib.resources
import json
from pathlib import Path
from typing import Any

import pytest

from cube.model.compose.keys import SECTIONS, Fate, reference
from tests.unit.compose.composing import around, composed, errors

HERE = Path(__file__).parent
SPECIFICATION: dict[str, list[str]] = json.loads((HERE / "specification.json").read_text())[
    "sections"
]
DOCS = Path(str(importlib.resources.files("cube"))).parent / "docs" / "compose.md"

# How a section is reached: (the file around it, the section's path). HOLE is where the section stands.
HOLE = "HOLE"
WHERE: dict[str, tuple[dict[str, Any], str]] = {
    "service": ({"web": HOLE}, "services.web"),
    "deploy": ({"web": {"deploy": HOLE}}, "services.web.deploy"),
    "depends_on": ({"web": {"depends_on": {"db": HOLE}}}, "services.web.depends_on.db"),
    "devices": ({"web": {"devices": [HOLE]}}, "services.web.devices[0]"),
    "env_file": ({"web": {"env_file": [HOLE]}}, "services.web.env_file[0]"),
    "extends": ({"web": {"extends": HOLE}}, "services.web.extends"),
    "include": ({}, "include[0]"),
    "gpus": ({"web": {"gpus": [HOLE]}}, "services.web.gpus[0]"),
    "healthcheck": ({"web": {"healthcheck": HOLE}}, "services.web.healthcheck"),
    "logging": ({"web": {"logging": HOLE}}, "services.web.logging"),
    "ports": ({"web": {"ports": [HOLE]}}, "services.web.ports[0]"),
    "service networks": ({"web": {"networks": {"default": HOLE}}}, "services.web.networks.default"),
    "service secrets": ({"web": {"secrets": [HOLE]}}, "services.web.secrets[0]"),
    "service configs": ({"web": {"configs": [HOLE]}}, "services.web.configs[0]"),
    "ulimits": ({"web": {"ulimits": {"nofile": HOLE}}}, "services.web.ulimits.nofile"),
    "volumes": ({"web": {"volumes": [HOLE]}}, "services.web.volumes[0]"),
}
for kind in ("bind", "tmpfs", "volume"):
    source = {"bind": {"source": "/d"}, "volume": {"source": "data"}}.get(kind, {})
    WHERE[f"volumes.{kind}"] = (
        {"web": {"volumes": [{"type": kind, "target": "/d", kind: HOLE, **source}]}},
        f"services.web.volumes[0].{kind}",
    )
for name in ("placement", "resources", "restart_policy", "update_config", "rollback_config"):
    WHERE[f"deploy.{name}"] = ({"web": {"deploy": {name: HOLE}}}, f"services.web.deploy.{name}")
WHERE["deploy.placement.preferences"] = (
    {"web": {"deploy": {"placement": {"preferences": [HOLE]}}}},
    "services.web.deploy.placement.preferences[0]",
)
for name in ("limits", "reservations"):
    WHERE[f"deploy.resources.{name}"] = (
        {"web": {"deploy": {"resources": {name: HOLE}}}}, f"services.web.deploy.resources.{name}",
    )  # fmt: skip
WHERE["deploy.resources.reservations.devices"] = (
    {"web": {"deploy": {"resources": {"reservations": {"devices": [HOLE]}}}}},
    "services.web.deploy.resources.reservations.devices[0]",
)
TOP_SECTIONS = {
    "network": "networks",
    "volume": "volumes",
    "secret": "secrets",
    "config": "configs",
}

# What else the section needs before a key of it can be tried, and a value for keys that take no text.
BESIDE: dict[str, dict[str, Any]] = {
    "devices": {"source": "/dev/null"},
    "env_file": {"path": "a.env"},
    "extends": {"service": "db"},
    "include": {"path": "other/a.yaml"},
    "gpus": {},
    "deploy.resources.reservations.devices": {"capabilities": ["gpu"]},
    "healthcheck": {"test": "true"},
    "ports": {"target": 80},
    "ulimits": {"soft": 10, "hard": 10},
    "service secrets": {"source": "data"},
    "service configs": {"source": "data"},
    "secret": {"external": True},
    "config": {"external": True},
    "volumes": {"type": "volume", "source": "data", "target": "/d"},
}
VALUES: dict[str, Any] = {
    "name": "other", "services": {"web": {"image": "other"}}, "volumes": ["data:/data"],
    "x-cube": {"priority": 7}, "cap_add": ["NET_ADMIN"], "cap_drop": ["ALL"], "command": "a b",
    "cpu_quota": 50_000, "cpus": "0.5", "depends_on": ["db"], "deploy": {"replicas": 2},
    "devices": ["/dev/null"], "dns": "10.0.0.1", "entrypoint": ["a"], "env_file": "a.env",
    "environment": {"A": "b"}, "extends": {"service": "db"}, "extra_hosts": ["a:10.0.0.1"],
    "gpus": "all", "healthcheck": {"test": "true"}, "hostname": "h", "image": "other",
    "init": False, "label_file": "a.env", "labels": {"a": "b"}, "mem_limit": "128m",
    "mem_reservation": "128m", "network_mode": "host", "pids_limit": 9, "platform": "linux/arm64",
    "ports": ["80"], "privileged": True, "pull_policy": "always", "read_only": True,
    "restart": "no", "scale": 2, "security_opt": ["label:disable"], "shm_size": "1m",
    "stop_grace_period": "3s", "stop_signal": "SIGINT", "tmpfs": "/run", "ulimits": {"nofile": 9},
    "user": "u", "working_dir": "/w", "replicas": 2, "mode": "global", "placement":
    {"max_replicas_per_node": 1}, "resources": {"limits": {"pids": 9}}, "restart_policy":
    {"condition": "none"}, "update_config": {"order": "start-first"}, "failure_action": "pause",
    "monitor": "3s", "order": "start-first", "parallelism": 2, "constraints": ["node.id==a"],
    "max_replicas_per_node": 1, "preferences": [{"spread": "node.labels.z"}],
    "spread": "node.labels.z", "limits": {"pids": 9}, "reservations": {"memory": "70m"},
    "memory": "128m", "pids": 9, "condition": "none", "delay": "3s", "max_attempts": 2,
    "window": "9s", "permissions": "r", "source": "/dev/zero", "target": "/dev/x", "path": "b.env",
    "service": "db", "count": 1, "device_ids": ["0"], "disable": True, "interval": "3s",
    "retries": 2, "start_period": "3s", "test": "false", "timeout": "3s", "protocol": "udp",
    "published": 99, "hard": 20, "soft": 5, "size": "1m", "type": "tmpfs", "stdin_open": True,
    "tty": True, "internal": True, "max_failure_ratio": 0.5,
}  # fmt: skip
OTHERS: dict[tuple[str, str], Any] = {
    ("service", "volumes"): ["data:/d"],
    ("extends", "file"): "other/a.yaml",
    ("top level", "include"): ["other/a.yaml"],
    ("include", "path"): ["other/a.yaml", "b.yaml"],
    ("include", "env_file"): "a.env",
    ("include", "project_directory"): ".",
    ("service", "x-cube"): {"count": 3},
    ("ports", "name"): "web",
    ("ports", "target"): 81,
    ("volume", "external"): True,
    ("service", "secrets"): ["data"],
    ("service", "configs"): ["data"],
    **{(f"service {kind}s", "source"): "more" for kind in ("secret", "config")},
    **{(f"service {kind}s", key): 7 for kind in ("secret", "config") for key in ("uid", "gid")},
    **{(f"service {kind}s", "mode"): 0o440 for kind in ("secret", "config")},
    ("secret", "external"): True,
    ("config", "external"): True,
    ("top level", "secrets"): {"data": {"external": True}},
    ("top level", "configs"): {"data": {"external": True}},
    ("volumes", "source"): "more",
    ("volumes", "target"): "/e",
    ("volumes", "read_only"): True,
    ("volumes", "tmpfs"): None,  # below, in a section of its own
    ("volumes", "volume"): None,
    ("volumes", "bind"): None,
    ("volumes", "type"): "tmpfs",
    ("network", "name"): None,
    ("deploy.resources.reservations", "devices"): [{"capabilities": ["gpu"]}],
}
# Honoured by becoming nothing, or only together with another key, or tested where they do something:
# test_compose_service.py and test_compose_project.py.
ELSEWHERE = {
    ("top level", "version"), ("top level", "networks"), ("top level", "volumes"),
    ("service", "cpu_period"), ("service", "logging"), ("service", "memswap_limit"),
    ("service", "networks"), ("service", "profiles"), ("deploy", "rollback_config"),
    ("depends_on", "condition"), ("depends_on", "required"), ("env_file", "format"),
    ("env_file", "required"), ("gpus", "capabilities"), ("ports", "mode"),
    ("deploy.resources.reservations.devices", "capabilities"), ("network", "external"),
    ("network", "name"), ("volumes", "tmpfs"), ("volumes", "volume"), ("volumes", "bind"),
    ("extends", "service"), ("secret", "external"), ("config", "external"),
    ("top level", "secrets"), ("top level", "configs"),
}  # fmt: skip


def file_with(section: str, key: str | None, value: object) -> tuple[dict[str, Any], str]:
    """A file with the key in the section, and the path of the key. key None: the file without it."""
    inner = dict(BESIDE.get(section, {}))
    if section == "deploy" and key == "mode" and value == "global":
        services_too = {"mode": value}
    else:
        services_too = {}
    if section == "volumes" and key == "type":
        inner = {"target": "/d"}
    if key is not None:
        inner[key] = value
    services: dict[str, Any] = {
        "web": {},
        "db": {"image": "db", "user": "base", "deploy": services_too},
    }
    file: dict[str, Any] = {"services": services, "volumes": {"data": None, "more": None}}
    if section.startswith("service"):
        for kind in ("secrets", "configs"):
            file[kind] = {"data": {"external": True}, "more": {"external": "true", "name": "other"}}
    if section == "include" or key == "include":
        del services["db"]
        services["web"] = {"image": "nginx"}
    if section == "include":
        return {**file, "include": [inner]}, f"include[0].{key}"
    if section == "top level" and key == "include":
        return {**file, **inner}, "include"
    if section == "top level":
        return {
            **file,
            "services": {"web": {"image": "nginx"}, "db": services["db"]},
            **inner,
        }, key or ""
    if section in TOP_SECTIONS:
        file[TOP_SECTIONS[section]] = {"data": inner}
        services["web"] = {"image": "nginx"}
        services["web"][TOP_SECTIONS[section]] = ["data:/d" if section == "volume" else "data"]
        return file, f"{TOP_SECTIONS[section]}.data.{key}"
    frame, path = WHERE[section]
    text = json.dumps(frame).replace(f'"{HOLE}"', json.dumps(inner))
    services |= json.loads(text)
    services["web"] = {"image": "nginx", **services["web"]}
    return file, f"{path}.{key}"


def value_for(section: str, key: str) -> object:
    return OTHERS.get((section, key), VALUES.get(key, "something"))


OTHER = """services:
  db: { image: "other${FROM:-}", env_file: a.env, deploy: { mode: replicated } }
"""
AROUND = around(
    {},
    {
        "a.env": "FROM=file", "b.env": "FROM=other", "other/a.env": "FROM=below", "other/.env": None,
        "other/a.yaml": OTHER, "b.yaml": "services: { db: { user: other } }",
    },
)  # fmt: skip
ALL = [(section, key) for section, keys in SPECIFICATION.items() for key in keys]


def test_the_table_has_every_key_of_the_specification_and_no_other() -> None:
    ours = {name: sorted(key for key in keys if key != "x-cube") for name, keys in SECTIONS.items()}
    assert ours == SPECIFICATION


@pytest.mark.parametrize(
    ("section", "key"), ALL, ids=[f"{s}.{k}".replace(" ", "-") for s, k in ALL]
)
def test_what_the_table_says_of_a_key_is_what_becomes_of_it(section: str, key: str) -> None:
    entry = SECTIONS[section][key]
    file, path = file_with(section, key, value_for(section, key))
    if entry.fate is Fate.REFUSED:
        found = errors(file, AROUND)
        assert entry.words in found[path]
        assert entry.hint in found[path]
    elif entry.fate is Fate.NOTED:
        assert f"{path}: {entry.words}" in composed(file, AROUND).notes
    elif (section, key) in ELSEWHERE:
        composed(file_with(section, None, None)[0], AROUND)
    elif section == "deploy.rollback_config":
        assert any(note.startswith(path) for note in composed(file, AROUND).notes) or key in (
            "failure_action",
        )
    else:
        without, _ = file_with(section, None, None)
        old, new = composed(without, AROUND), composed(file, AROUND)
        assert old.spec != new.spec


@pytest.mark.parametrize("section", [*WHERE, *TOP_SECTIONS, "top level"])
def test_an_unknown_key_is_refused_by_path_and_x_keys_are_not(section: str) -> None:
    file, path = file_with(section, "nonsense", 1)
    assert errors(file, AROUND)[path].startswith("unknown key")
    spec = composed(file_with(section, "x-mine", {"a": [1]})[0], AROUND).spec
    assert spec == composed(file_with(section, None, None)[0], AROUND).spec


def test_a_key_that_is_nearly_right_is_told() -> None:
    file = {"services": {"web": {"image": "a", "enviroment": {}, "deploy": {"replicass": 1}}}}
    assert errors(file) == {
        "services.web.enviroment": "unknown key (did you mean `environment`?)",
        "services.web.deploy.replicass": "unknown key (did you mean `replicas`?)",
    }


def test_what_asks_for_what_is_so_anyway_is_accepted() -> None:
    tried = 0
    for section, keys in SECTIONS.items():
        if section == "extends":
            continue
        for key, entry in keys.items():
            nothing: tuple[object, ...] = () if entry.fate is Fate.HONOURED else (None, False, "")
            for value in (*nothing, *entry.neutral):
                file, path = file_with(section, key, value)
                notes = composed(file, AROUND).notes
                assert not [note for note in notes if note.startswith(f"{path}: ")], (path, value)
                tried += len(entry.neutral)
    assert tried > 30


def test_the_reference_is_made_from_the_table() -> None:
    head, mark, tables = DOCS.read_text().partition(
        "<!-- from cube/model/compose/keys.py: scripts/compose-reference -->\n"
    )
    assert head
    assert mark
    assert tables.strip() == reference().strip()
