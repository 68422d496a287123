"""One service of a compose file as a group of the job. What has a page of its own is in other modules:
deploy and resources, mounts and devices, ports and networks."""

from __future__ import annotations

import re

import msgspec

from cube.model.compose import deploy, mounts, network
from cube.model.compose.dotenv import read_dotenv
from cube.model.compose.section import Group, Reading, Section, as_text
from cube.model.jobgroup import NAME
from cube.model.treeread import close_word, join, kind, shown

SHELL = ("/bin/sh", "-c")
HEALTH_INTERVAL_MS = 30_000  # of the specification, as are the two below
HEALTH_TIMEOUT_MS = 30_000
HEALTH_RETRIES = 3

_PULL = {"always": "always", "never": "never", "missing": "missing", "if_not_present": "missing"}
_UNFIT = re.compile(r"[^a-z0-9-]+")
_LOCAL_DRIVERS = ("json-file", "local", "journald")


class Known(msgspec.Struct, frozen=True):
    """What a service may name: other services, those left out by their profiles, and sections."""

    project: str
    groups: dict[str, str]  # service: group
    left_out: dict[str, tuple[str, ...]]  # and their profiles
    volumes: dict[str, str]  # name in the file: the volume's name
    stored: dict[str, dict[str, str]]  # secrets and configs: likewise
    networks: dict[str, network.Network]
    is_batch: bool


def group_name(service: str) -> str:
    """A name for the group: lower case, - for what names of groups cannot have."""
    name = _UNFIT.sub("-", service.lower()).strip("-")[:63].strip("-")
    return name if NAME.fullmatch(name) else "service"


def read_service(reading: Reading, path: str, service: str, tree: object, known: Known) -> None:
    """The service is a group of `reading.job`, with an error noted for everything wrong in it."""
    group = Group(reading, known.groups[service])
    section = Section(reading, path, "service", tree)
    reading.put(("groups", group.name), {}, path)
    _program(section, group)
    _environment(section, group)
    _plain(section, group)
    _labels(section, group)
    _depends_on(section, group, known)
    _healthcheck(section, group)
    _logging(section)
    deploy.read_resources(section, group)
    deploy.read_deploy(section, group)
    deploy.read_platform(section, group)
    mounts.read_mounts(section, group, known.volumes, known.stored)
    mounts.read_devices(section, group)
    network.read_ports(section, group)
    network.read_networks(section, group, known.networks)
    network.note_names(section, group, known.groups, service)


def _program(section: Section, group: Group) -> None:
    image = section.text("image")
    if image is not None:
        group.put("image", image, section.at("image"))
    elif section.has("build"):
        section.error(
            "image", "is required: Cube builds nothing",
            "build and push the image, and name it here",
        )  # fmt: skip
        group.put("image", "not-built", section.at("image"))
    for key in ("command", "entrypoint"):
        argv = section.argv(key)
        if argv:
            group.put(key, argv, section.at(key))
        elif argv is not None and not (key == "command" and section.has("entrypoint")):
            hint = f"write what runs instead: {key}: [...]"
            section.error(key, "is empty, and Cube cannot take away what the image has", hint)


def _environment(section: Section, group: Group) -> None:
    reading = section.reading
    env: dict[str, str] = {}
    origins: dict[str, str] = {}
    for path, file, required, is_raw in _env_files(section):
        data = reading.file(file, path, required=required)
        if data is None:
            continue
        found = read_dotenv(file, data, reading.around.variables, reading.errors, is_raw=is_raw)
        for name, value in found.items():
            if value is not None:
                env[name], origins[name] = value, path
    for name, value in (section.pairs("environment") or {}).items():
        if not name:
            section.error("environment", "has a variable without a name")
            continue
        origins[name] = join(section.at("environment"), name)
        if value is not None:
            env[name] = value
        elif reading.around.variables is None:
            section.error(
                "environment", f"{shown(name)} has no value, and the API knows no environment",
                "write NAME=VALUE, or let `cube run` read the file",
            )  # fmt: skip
        elif name in reading.around.variables:
            env[name] = reading.around.variables[name]
    for name, text in env.items():
        reading.put(("groups", group.name, "env", name), text, origins[name])


def _env_files(section: Section) -> list[tuple[str, str, bool, bool]]:
    """(path of the key, file, whether it must be there, whether it is raw) for each env_file."""
    value = section.raw("env_file")
    if isinstance(value, str):
        return [(section.at("env_file"), value, True, False)]
    found = []
    for path, item in section.items("env_file"):
        if isinstance(item, str):
            found.append((path, item, True, False))
            continue
        inner = Section(section.reading, path, "env_file", item)
        file, format_ = inner.text("path"), inner.text("format")
        if file is None and isinstance(item, dict):
            inner.error("path", "is required")
        if format_ not in (None, "raw"):
            inner.error("format", f"{shown(format_)} is not read", "accepted: raw")
        if file is not None:
            found.append((path, file, inner.flag("required") is not False, format_ == "raw"))
    return found


def _plain(section: Section, group: Group) -> None:
    """Keys that mean the same here and there."""
    for key, target in (
        ("user", "user"),
        ("working_dir", "working_dir"),
        ("stop_signal", "stop_signal"),
        ("hostname", "docker.hostname"),
    ):
        if text := section.text(key):
            group.put(target, text, section.at(key))
    for key in ("init", "privileged", "read_only"):
        flag = section.flag(key)
        if flag is not None:
            group.put(f"docker.{key}", flag, section.at(key))
    for key in ("cap_add", "cap_drop", "security_opt", "dns"):
        words = section.words(key)
        if words:
            group.put(f"docker.{key}", words, section.at(key))
    grace_ms = section.duration_ms("stop_grace_period")
    if grace_ms is not None:
        group.put("stop_timeout", f"{grace_ms}ms", section.at("stop_grace_period"))
    size = section.size_bytes("shm_size")
    if size is not None:
        group.put("docker.shm_size", size, section.at("shm_size"))
    policy = section.text("pull_policy")
    if policy in _PULL:
        group.put("docker.pull", _PULL[policy], section.at("pull_policy"))
    elif policy is not None:
        why = "builds nothing" if policy == "build" else "pulls no image again by age"
        accepted = f"accepted: {', '.join(_PULL)}"
        section.error("pull_policy", f"{shown(policy)} is not accepted: Cube {why}", accepted)
    hosts = section.pairs("extra_hosts", "=:")
    if hosts:
        words = [f"{name}:{(address or '').strip('[]')}" for name, address in hosts.items()]
        group.put("docker.extra_hosts", words, section.at("extra_hosts"))


def _labels(section: Section, group: Group) -> None:
    labels: dict[str, str] = {}
    for file in section.words("label_file") or []:
        path = section.at("label_file")
        data = section.reading.file(file, path)
        if data is not None:
            variables = section.reading.around.variables
            found = read_dotenv(file, data, variables, section.reading.errors)
            labels |= {name: value or "" for name, value in found.items()}
    for name, value in (section.pairs("labels") or {}).items():
        labels[name] = value or ""
    if labels:
        group.put("docker.labels", labels, section.at("labels"))


def _depends_on(section: Section, group: Group, known: Known) -> None:
    value = section.raw("depends_on")
    asked: dict[str, object] = {}
    if isinstance(value, dict):
        asked = value
    else:
        for path, item in section.items("depends_on"):
            name = as_text(item)
            if name is None:
                section.reading.errors.add(path, f"must name a service, not {kind(item)}")
            else:
                asked[name] = None
    names: list[str] = []
    for name, tree in asked.items():
        path = join(section.at("depends_on"), name)
        inner = Section(section.reading, path, "depends_on", tree)
        required = inner.flag("required") is not False
        _condition(inner, known)
        if name in known.groups:
            names.append(known.groups[name])
        elif name not in known.left_out:
            hint = close_word(name, list(known.groups))
            section.reading.errors.add(path, "there is no such service", hint)
        elif required:
            profiles = known.left_out[name]
            words = ", ".join(one[:40] for one in profiles)
            section.reading.errors.add(
                path, f"is left out: none of its profiles ({words}) is active",
                f"--profile {profiles[0][:40]} (or COMPOSE_PROFILES) makes it active; required: false "
                "does without it",
            )  # fmt: skip
    if names:
        group.put("depends_on", list(dict.fromkeys(names)), section.at("depends_on"))


def _condition(inner: Section, known: Known) -> None:
    condition = inner.text("condition")
    if condition in (None, "service_started", "service_healthy"):
        return
    if condition == "service_completed_successfully":
        if not known.is_batch:
            inner.error(
                "condition", "a service of Cube never completes: a job has one type",
                "put what completes into a file of its own with x-cube: { type: batch }, and here "
                "x-cube: { depends_on: [JOB/SERVICE] }",
            )  # fmt: skip
        return
    inner.error(
        "condition", f"{shown(condition)} is not accepted",
        "accepted: service_started, service_healthy, service_completed_successfully",
    )  # fmt: skip


def _healthcheck(section: Section, group: Group) -> None:
    if not section.has("healthcheck"):
        return
    inner = section.section("healthcheck", "healthcheck")
    command = _test(inner)
    interval_ms, timeout_ms = inner.duration_ms("interval"), inner.duration_ms("timeout")
    start_ms, retries = inner.duration_ms("start_period"), inner.whole("retries")
    if inner.flag("disable") or command is None:
        return
    origin = section.at("healthcheck")
    check = {
        "type": "exec",
        "command": command,
        "interval": f"{interval_ms or HEALTH_INTERVAL_MS}ms",
        "timeout": f"{timeout_ms or HEALTH_TIMEOUT_MS}ms",
        "start_period": f"{start_ms or 0}ms",
        "unhealthy_after": retries or HEALTH_RETRIES,
    }
    group.put("checks", [check], origin)
    base = f"groups.{group.name}.checks[0]"
    for key, there in (
        ("command", "test"),
        ("interval", "interval"),
        ("timeout", "timeout"),
        ("start_period", "start_period"),
        ("unhealthy_after", "retries"),
    ):
        section.reading.origins[f"{base}.{key}"] = inner.at(there)


def _test(inner: Section) -> list[str] | None:
    """The command of the check; None: there is none, or it is wrong."""
    value = inner.raw("test")
    if isinstance(value, str):
        return [*SHELL, value]
    words = inner.words("test")
    if not words:
        if inner.flag("disable") is not True:
            inner.error("test", "is required", 'write ["CMD", "true"] or a line for the shell')
        return None
    first, rest = words[0], words[1:]
    if first == "NONE":
        return None
    if first == "CMD" and rest:
        return rest
    if first == "CMD-SHELL" and len(rest) == 1:
        return [*SHELL, rest[0]]
    inner.error("test", f"{shown(first)} does not begin a test", "accepted: CMD, CMD-SHELL, NONE")
    return None


def _logging(section: Section) -> None:
    inner = section.section("logging", "logging")
    if inner.text("driver") in _LOCAL_DRIVERS and not inner.has("options"):
        section.reading.note(
            section.at("logging"), "cube logs reads whatever the engine's driver is"
        )
