"""What only the docker driver understands, and the patterns of the names that it takes."""

from __future__ import annotations

import ipaddress
import re

from cube.model.jobulimits import read_ulimits
from cube.model.spec import DockerOptions, DriverName
from cube.model.stored import NAME
from cube.model.treeread import Table, as_text, kind, shown, text_problem

DOCKER_LIST_MAX = 128
DOCKER_LABELS_MAX = 128
PULL = ("missing", "always", "never")

_CAPABILITY = re.compile(r"(CAP_)?[A-Za-z_]{2,40}")
_DEVICE = re.compile(r"/[^:\s]*(:/[^:\s]*)?(:[rwm]{1,3})?")
_EXTRA_HOST = re.compile(r"[^:=\s]{1,253}[:=][^\s]{1,64}")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_RESERVED_LABELS = ("cube.", "io.cube.")  # how the docker driver knows its own containers


def read_docker(table: Table) -> DockerOptions:
    options = DockerOptions(
        init=table.boolean("init", True),
        privileged=table.boolean("privileged", False),
        network_mode=table.text("network_mode", pattern=_NETWORK, accepted="bridge, host, none, …"),
        cap_add=_words(table, "cap_add", _CAPABILITY, 'write ["NET_ADMIN"]'),
        cap_drop=_words(table, "cap_drop", _CAPABILITY, 'write ["ALL"]'),
        devices=_words(table, "devices", _DEVICE, 'write ["/dev/ttyUSB0:/dev/ttyUSB0:rw"]'),
        gpus=_gpus(table),
        ulimits=read_ulimits(table.table("ulimits"), DriverName.DOCKER),
        shm_size_bytes=table.size_bytes("shm_size", 0),
        memory_swap_bytes=table.size_bytes("memory_swap", 0),
        read_only=table.boolean("read_only", False),
        security_opt=_words(table, "security_opt", None, 'write ["no-new-privileges"]'),
        dns=_dns(table),
        extra_hosts=_words(table, "extra_hosts", _EXTRA_HOST, 'write ["name:10.0.0.1"]'),
        hostname=table.text("hostname", pattern=_HOSTNAME, accepted="letters, digits, - and ."),
        labels=_labels(table.table("labels")),
        pull=_pull(table),
        registry_secret=table.text("registry_secret", pattern=NAME),
    )
    table.close({"network": "network_mode", "shm": "shm_size", "swap": "memory_swap"})
    return options


def _words(
    table: Table, key: str, pattern: re.Pattern[str] | None, accepted: str
) -> tuple[str, ...]:
    return table.texts(key, DOCKER_LIST_MAX, pattern=pattern, accepted=accepted)


def _gpus(table: Table) -> str:
    value = table.raw("gpus")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(table.integer("gpus", 0, 0, 1024))
    return table.text("gpus", chars_max=256, accepted='write "all" or a number')


def _dns(table: Table) -> tuple[str, ...]:
    servers = _words(table, "dns", None, 'write ["10.0.0.1"]')
    for server in servers:
        try:
            ipaddress.ip_address(server)
        except ValueError:
            table.error("dns", f"{shown(server)} is not an IP address")
    return servers


def _labels(table: Table) -> dict[str, str]:
    labels: dict[str, str] = {}
    for name, value in table.entries(DOCKER_LABELS_MAX, "labels"):
        text = as_text(value)
        if problem := text_problem(name, chars_max=256) or ("" if name else "must not be empty"):
            table.errors.add(table.path, f"a label's name {problem}")
        elif name.startswith(_RESERVED_LABELS):
            table.error(name, "is set by Cube itself")
        elif text is None:
            table.error(name, f"must be text, not {kind(value)}")
        elif problem := text_problem(text, lines=True):
            table.error(name, problem)
        else:
            labels[name] = text
    return labels


def _pull(table: Table) -> str:
    pull = table.text("pull", PULL[0])
    if pull not in PULL:
        table.error("pull", f"{shown(pull)} is not accepted", f"accepted: {', '.join(PULL)}")
    return pull
