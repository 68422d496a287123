"""How many, where, with what, and how they are replaced: `deploy` and the older keys of its kind."""

from __future__ import annotations

import re

from cube.model.compose.section import Group, Section
from cube.model.spec import GroupSpec
from cube.model.treeread import shown

# The type of job that a mode asks for.
MODES = {"replicated": "service", "global": "system", "replicated-job": "batch"}

_CPU_MILLI = GroupSpec().resources.cpu_milli  # what a group reserves that says nothing
_CPU_PERIOD_US = 100_000
_RESTART = {
    "no": "never",
    "always": "always",
    "unless-stopped": "always",
    "on-failure": "on-failure",
}
_CONDITIONS = {"none": "never", "any": "always", "on-failure": "on-failure"}
_FAILURE = {"pause": "pause", "rollback": "rollback"}
_CONSTRAINT = re.compile(r"\s*([^\s=!]+)\s*(==|!=)\s*(.*?)\s*")
_ATTRIBUTES = {
    "node.id": "node.id",
    "node.hostname": "node.name",
    "node.platform.os": "node.os",
    "node.platform.arch": "node.arch",
}
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}


def read_deploy(section: Section, group: Group) -> None:
    """count, restart, update and placement. The mode is the job's: project.py."""
    inner = section.section("deploy", "deploy")
    _count(section, inner, group)
    _restart(section, inner, group)
    _update(inner, group)
    _placement(inner.section("placement", "deploy.placement"), group)


def _count(section: Section, inner: Section, group: Group) -> None:
    replicas, scale = inner.whole("replicas"), section.whole("scale")
    if replicas is not None and scale is not None and replicas != scale:
        section.error("scale", f"{scale} is at odds with deploy.replicas = {replicas}")
    if scale is not None:
        group.put("count", scale, section.at("scale"))
    if replicas is not None:
        group.put("count", replicas, inner.at("replicas"))


def _restart(section: Section, inner: Section, group: Group) -> None:
    policy = section.raw("restart")
    if (
        policy is False
    ):  # what is written as no or "no" is text, but interpolation and tools write false
        policy = "no"
    if policy is not None:
        word, _, number = str(policy).partition(":")
        if word not in _RESTART or (number and not number.isdecimal()):
            accepted = 'accepted: "no", always, unless-stopped, on-failure, on-failure:3'
            section.error("restart", f"{shown(policy)} is not accepted", accepted)
        else:
            group.put("restart.policy", _RESTART[word], section.at("restart"))
            if number:
                group.put("restart.attempts", int(number[:9]), section.at("restart"))
                _note_attempts(section, "restart")
    if not inner.has("restart_policy"):
        return
    table = inner.section("restart_policy", "deploy.restart_policy")
    condition = table.text("condition")
    if condition in _CONDITIONS:
        group.put("restart.policy", _CONDITIONS[condition], table.at("condition"))
    elif condition is not None:
        accepted = f"accepted: {', '.join(_CONDITIONS)}"
        table.error("condition", f"{shown(condition)} is not accepted", accepted)
    for key in ("delay", "window"):
        value_ms = table.duration_ms(key)
        if value_ms:
            group.put(f"restart.{key}", f"{value_ms}ms", table.at(key))
    attempts = table.whole("max_attempts")
    if attempts is not None:
        group.put("restart.attempts", attempts, table.at("max_attempts"))
        _note_attempts(table, "max_attempts")


def _note_attempts(section: Section, key: str) -> None:
    section.reading.note(
        section.at(key),
        "counts restarts on one node; after them the task is tried on another node, as often as "
        "reschedule.attempts says (x-cube: { reschedule: { attempts: 1 } })",
    )


def _update(inner: Section, group: Group) -> None:
    if inner.has("update_config"):
        table = inner.section("update_config", "deploy.update_config")
        parallelism = table.whole("parallelism")
        if parallelism is not None:
            count = group.get("count")
            everything = count if isinstance(count, int) and count > 0 else 1
            group.put("update.parallelism", parallelism or everything, table.at("parallelism"))
        if (order := table.text("order")) is not None:
            group.put("update.order", order, table.at("order"))
        if (monitor_ms := table.duration_ms("monitor")) is not None:
            group.put("update.min_healthy", f"{monitor_ms}ms", table.at("monitor"))
        action = table.text("failure_action")
        if action in _FAILURE:
            group.put("update.on_failure", _FAILURE[action], table.at("failure_action"))
        elif action is not None:
            why = "a rollout of Cube that fails does not go on" if action == "continue" else ""
            problem = f"{shown(action)} is not accepted" + (f": {why}" if why else "")
            table.error("failure_action", problem, "accepted: pause, rollback")
    if inner.has("rollback_config"):
        table = inner.section("rollback_config", "deploy.rollback_config")
        update = inner.raw("update_config")
        same = update if isinstance(update, dict) else {}
        for key in ("parallelism", "delay", "monitor", "order", "max_failure_ratio"):
            if table.has(key) and table.raw(key) != same.get(key):
                table.reading.note(table.at(key), "a rollback goes as update_config says")
        if table.text("failure_action") == "continue":
            table.reading.note(table.at("failure_action"), "a rollback that fails does not go on")


def _placement(table: Section, group: Group) -> None:
    constraints = []
    for path, item in table.items("constraints"):
        match = _CONSTRAINT.fullmatch(item) if isinstance(item, str) and len(item) < 1024 else None
        if match is None:
            table.reading.errors.add(
                path, f"{shown(item)} is no constraint", "write node.labels.zone == east"
            )
            continue
        attribute, operator, value = match[1], match[2], match[3]
        name = _ATTRIBUTES.get(attribute)
        if attribute.startswith("node.labels."):
            name = attribute
        if name is None:
            table.reading.errors.add(path, *_no_attribute(attribute))
            continue
        if name == "node.arch":
            value = _ARCHITECTURES.get(value, value)
        constraints.append({"attribute": name, "operator": operator, "value": value})
    if constraints:
        group.put("placement.constraints", constraints, table.at("constraints"))
    spread = []
    for path, item in table.items("preferences"):
        inner = Section(table.reading, path, "deploy.placement.preferences", item)
        if text := inner.text("spread"):
            spread.append(_ATTRIBUTES.get(text, text))
    if spread:
        group.put("placement.spread_over", spread, table.at("preferences"))
    most = table.whole("max_replicas_per_node")
    if most is not None:
        group.put("placement.max_per_node", most, table.at("max_replicas_per_node"))


def _no_attribute(name: str) -> tuple[str, str]:
    accepted = f"accepted: {', '.join(_ATTRIBUTES)}, node.labels.X"
    if name == "node.role":
        return (
            "node.role: every node of Cube may run tasks and may lead",
            "label nodes: cube node label",
        )
    if name.startswith("engine.labels."):
        return f"{shown(name)}: labels of engines are not known", "label nodes: cube node label"
    return f"{shown(name)} is no attribute", accepted


def read_platform(section: Section, group: Group) -> None:
    """`platform: linux/arm64`: constraints beside those of deploy.placement."""
    platform = section.text("platform")
    if not platform:
        return
    parts = platform.split("/")
    if parts[0] != "linux" and len(parts) > 1:
        section.error("platform", f"{shown(platform)}: nodes of Cube run Linux")
        return
    asked = [("node.os", parts[0])] if parts[0] == "linux" else []
    if len(parts) > 1 or not asked:
        architecture = parts[1] if len(parts) > 1 else parts[0]
        asked.append(("node.arch", _ARCHITECTURES.get(architecture, architecture)))
    there = group.get("placement.constraints")
    constraints = list(there) if isinstance(there, list) else []
    constraints += [{"attribute": name, "value": value} for name, value in asked]
    group.put("placement.constraints", constraints, section.at("platform"))


def read_resources(section: Section, group: Group) -> None:
    """Reservations and limits, of `deploy` or of the older keys."""
    deploy = section.raw("deploy")
    resources = Section(
        section.reading, f"{section.path}.deploy.resources", "deploy.resources",
        deploy.get("resources") if isinstance(deploy, dict) else None,
    )  # fmt: skip
    limits = resources.section("limits", "deploy.resources.limits")
    reserved = resources.section("reservations", "deploy.resources.reservations")
    _cpus(section, limits, reserved, group)
    _memory(section, limits, reserved, group)
    pids, origin = limits.whole("pids"), limits.at("pids")
    if pids is None:
        pids, origin = section.whole("pids_limit"), section.at("pids_limit")
    if pids is not None and pids <= 0:
        section.reading.errors.add(origin, "every task has a limit", "write a number above 0")
    elif pids is not None:
        group.put("resources.pids", pids, origin)
    _gpus(section, reserved, group)


def _cpus(section: Section, limits: Section, reserved: Section, group: Group) -> None:
    limit, origin = limits.cores("cpus"), limits.at("cpus")
    if limit is None:
        limit, origin = section.cores("cpus"), section.at("cpus")
    if limit is None:
        limit, origin = _quota(section), section.at("cpu_quota")
    reservation = reserved.cores("cpus")
    if limit:
        group.put("resources.cpu_max", limit / 1000, origin)
    if reservation is not None:
        group.put("resources.cpu", reservation / 1000, reserved.at("cpus"))
    elif limit and limit < _CPU_MILLI:
        group.put("resources.cpu", limit / 1000, origin)


def _quota(section: Section) -> int | None:
    """cpu_quota microseconds of each cpu_period, as millicores."""
    quota, period = section.whole("cpu_quota"), section.whole("cpu_period")
    if period is not None and quota is None:
        section.error("cpu_period", "means nothing without cpu_quota", "write cpus")
    if quota is None or quota <= 0:
        return None
    if period is not None and not 1_000 <= period <= 1_000_000:
        section.error("cpu_period", f"must be between 1000 and 1000000, not {period}")
        return None
    return max(1, quota * 1000 // (period or _CPU_PERIOD_US))


def _memory(section: Section, limits: Section, reserved: Section, group: Group) -> None:
    limit, origin = limits.size_bytes("memory"), limits.at("memory")
    if limit is None:
        limit, origin = section.size_bytes("mem_limit"), section.at("mem_limit")
    reservation, reserved_at = reserved.size_bytes("memory"), reserved.at("memory")
    if reservation is None:
        key = "mem_reservation"
        reservation, reserved_at = section.size_bytes(key), section.at(key)
    if reservation:
        group.put("resources.memory", reservation, reserved_at)
        if limit:
            group.put("resources.memory_max", limit, origin)
        else:
            section.reading.note(reserved_at, "is the limit too, as no other is given")
    elif limit:
        group.put("resources.memory", limit, origin)
    _swap(section, limit or reservation, group)


def _swap(section: Section, limit: int | None, group: Group) -> None:
    """memswap_limit is memory and swap together; 0 is as if it were not there."""
    key = "memswap_limit"
    if section.raw(key) in (-1, "-1"):
        section.error(key, "every task has a limit", "write a size above that of mem_limit")
        return
    both = section.size_bytes(key)
    if not both:
        return
    if not limit or both < limit:
        section.error(key, "must be at least mem_limit, and mem_limit be given")
    elif both > limit:
        group.put("docker.memory_swap", both - limit, section.at(key))


def _gpus(section: Section, reserved: Section, group: Group) -> None:
    if section.raw("gpus") == "all":
        group.put("docker.gpus", "all", section.at("gpus"))
        return
    asked = [
        (Section(section.reading, path, "gpus", item), False)
        for path, item in section.items("gpus")
    ] + [
        (Section(reserved.reading, path, "deploy.resources.reservations.devices", item), True)
        for path, item in reserved.items("devices")
    ]
    if len(asked) > 1:
        asked[1][0].error("count", "is a second request for devices, and Cube makes one of GPUs")
    for inner, must_name_gpu in asked[:1]:
        words = inner.words("capabilities") or []
        if must_name_gpu and "gpu" not in words:
            inner.error("capabilities", "must name gpu: no other devices are reserved")
        ids, count = inner.words("device_ids"), inner.raw("count")
        if ids:
            group.put("docker.gpus", ",".join(ids), inner.at("device_ids"))
        else:
            number = None if count in (None, "all", -1) else inner.whole("count")
            group.put("docker.gpus", "all" if number is None else str(number), inner.at("count"))
