"""A JobSpec as the tree of interface.md, and what differs between two such trees.

parse_tree(render(spec)) == spec for every spec that parse_tree made. Durations are seconds, sizes
bytes, cpu cores. What is not set is null; what the driver or the type has no use for is left out.
"""

from __future__ import annotations

from cube.model.spec import (
    Affinity,
    CheckSpec,
    CheckType,
    Constraint,
    DockerOptions,
    DriverName,
    GroupSpec,
    JobSpec,
    MountSpec,
    MountType,
    Operator,
    SecretRef,
    Ulimit,
)

Tree = dict[str, object]


def render(spec: JobSpec) -> Tree:
    """The whole job, every default written out."""
    tree: Tree = {
        "name": spec.name,
        "type": spec.type.value,
        "priority": spec.priority,
        "meta": dict(spec.meta),
    }
    if spec.cron is not None:
        tree["cron"] = {
            "schedule": spec.cron.schedule,
            "timezone": spec.cron.timezone,
            "overlap": spec.cron.overlap.value,
        }
    tree["groups"] = {name: _group(group) for name, group in spec.groups.items()}
    return tree


def diff(old: Tree, new: Tree) -> list[tuple[str, object, object]]:
    """(path, old, new) for each value that differs, None where there is none; sorted by path.

    Lists are compared as a whole: a member's index is no identity.
    """
    changes: list[tuple[str, object, object]] = []
    stack: list[tuple[str, object, object]] = [("", old, new)]
    while stack:
        path, before, after = stack.pop()
        if isinstance(before, dict) and isinstance(after, dict):
            for key in {**before, **after}:
                inner = f"{path}.{key}" if path else key
                stack.append((inner, before.get(key), after.get(key)))
        elif before != after:
            changes.append((path, before, after))
    return sorted(changes, key=lambda change: change[0])


def _seconds(ms: int) -> float:
    return ms / 1000


def _group(group: GroupSpec) -> Tree:
    docker = group.driver is not DriverName.PROCESS
    tree: Tree = {"count": group.count, "driver": group.driver.value}
    if docker:
        tree["image"] = group.image
    tree["command"] = list(group.command)
    if docker:
        tree["entrypoint"] = list(group.entrypoint)
    tree |= {
        "env": {
            name: {"secret": value.secret} if isinstance(value, SecretRef) else value
            for name, value in group.env.items()
        },
        "user": group.user or None,
        "working_dir": group.working_dir or None,
        "stop_signal": group.stop_signal,
        "stop_timeout": _seconds(group.stop_timeout_ms),
        "shutdown_delay": _seconds(group.shutdown_delay_ms),
        "depends_on": list(group.depends_on),
        "at_most_one": group.at_most_one,
        "on_partition": group.on_partition.value,
        "lost_after": _seconds(group.lost_after_ms) if group.is_leased else None,
        "resources": _resources(group),
        "ports": {
            name: {
                "target": port.target or None,
                "host": port.host,
                "protocol": port.protocol.value,
            }
            for name, port in group.ports.items()
        },
        "mounts": [_mount(mount) for mount in group.mounts],
        "checks": [_check(check) for check in group.checks],
        "restart": {
            "policy": group.restart.policy.value,
            "attempts": group.restart.attempts,
            "window": _seconds(group.restart.window_ms),
            "delay": _seconds(group.restart.delay_ms),
            "max_delay": _seconds(group.restart.max_delay_ms),
        },
        "reschedule": {
            "attempts": group.reschedule.attempts,
            "delay": _seconds(group.reschedule.delay_ms),
            "max_delay": _seconds(group.reschedule.max_delay_ms),
        },
        "update": {
            "parallelism": group.update.parallelism,
            "order": group.update.order.value,
            "min_healthy": _seconds(group.update.min_healthy_ms),
            "deadline": _seconds(group.update.deadline_ms),
            "canaries": group.update.canaries,
            "on_failure": group.update.on_failure.value,
        },
    }
    if docker:
        tree["docker"] = _docker(group.docker)
    tree["placement"] = _placement(group)
    tree["ulimits"] = _ulimits(group.ulimits)
    return tree


def _resources(group: GroupSpec) -> Tree:
    return {
        "cpu": group.resources.cpu_milli / 1000,
        "cpu_max": group.cpu_max_milli / 1000 if group.cpu_max_milli else None,
        "memory": group.resources.memory_bytes,
        "memory_max": group.memory_max_bytes or None,
        "disk": group.resources.disk_bytes,
        "pids": group.pids,
    }


def _mount(mount: MountSpec) -> Tree:
    tree: Tree = {"type": mount.type.value, "target": mount.target, "read_only": mount.read_only}
    if mount.type in (MountType.SECRET, MountType.CONFIG):
        owner = {"uid": mount.uid, "gid": mount.gid}
        return tree | {"source": mount.source, "mode": f"{mount.mode:04o}"} | owner
    if mount.type is MountType.TMPFS:
        return tree | {"size": mount.size_bytes}
    return tree | {"source": mount.source}


def _check(check: CheckSpec) -> Tree:
    tree: Tree = {"name": check.name, "type": check.type.value}
    if check.type is CheckType.EXEC:
        tree["command"] = list(check.command)
    else:
        tree["port"] = check.port
    if check.type is CheckType.HTTP:
        tree["path"] = check.path
    return tree | {
        "interval": _seconds(check.interval_ms),
        "timeout": _seconds(check.timeout_ms),
        "start_period": _seconds(check.start_period_ms),
        "healthy_after": check.healthy_after,
        "unhealthy_after": check.unhealthy_after,
        "on_failure": check.on_failure.value,
    }


def _ulimits(limits: tuple[Ulimit, ...]) -> Tree:
    return {limit.name: {"soft": limit.soft, "hard": limit.hard} for limit in limits}


def _docker(docker: DockerOptions) -> Tree:
    return {
        "init": docker.init,
        "privileged": docker.privileged,
        "network_mode": docker.network_mode or None,
        "cap_add": list(docker.cap_add),
        "cap_drop": list(docker.cap_drop),
        "devices": list(docker.devices),
        "gpus": docker.gpus or None,
        "ulimits": _ulimits(docker.ulimits),
        "shm_size": docker.shm_size_bytes,
        "memory_swap": docker.memory_swap_bytes,
        "read_only": docker.read_only,
        "security_opt": list(docker.security_opt),
        "dns": list(docker.dns),
        "extra_hosts": list(docker.extra_hosts),
        "hostname": docker.hostname or None,
        "labels": dict(docker.labels),
        "pull": docker.pull,
        "registry_secret": docker.registry_secret or None,
    }


def _placement(group: GroupSpec) -> Tree:
    placement = group.placement
    return {
        "policy": placement.policy.value if placement.policy is not None else None,
        "spread_over": list(placement.spread_over),
        "max_per_node": placement.max_per_node,
        "constraints": [_condition(constraint) for constraint in placement.constraints],
        "affinities": [
            _condition(affinity) | {"weight": affinity.weight} for affinity in placement.affinities
        ],
    }


def _condition(condition: Constraint | Affinity) -> Tree:
    tree: Tree = {"attribute": condition.attribute, "operator": condition.operator.value}
    if condition.operator in (Operator.EXISTS, Operator.NOT_EXISTS):
        return tree
    value = condition.value
    return tree | {"value": list(value) if isinstance(value, tuple) else value}
