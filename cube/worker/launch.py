"""From a placed task and its template to what a driver is told."""

from __future__ import annotations

import msgspec

from cube.model.cluster import Task
from cube.model.ids import ClusterId, NodeId
from cube.model.launch import Launch, LaunchLease, LaunchPort
from cube.model.spec import DockerOptions, DriverName, GroupSpec, SecretRef
from cube.model.stored import KIND_OF_MOUNT


class LaunchRefused(msgspec.Struct, frozen=True):
    """It can never be run as it is asked for."""

    code: str
    message: str


class NodeIdentity(msgspec.Struct, frozen=True):
    cluster_id: ClusterId
    node_id: NodeId
    name: str
    advertise: str


def build_launch(
    task: Task,
    group: GroupSpec,
    attempt: int,
    node: NodeIdentity,
    leased_from_ms: int | None = None,
) -> Launch | LaunchRefused:
    """What this attempt of the task is started with. CUBE_* wins over the group's own env."""
    env: dict[str, str] = {}
    for key, value in group.env.items():
        if isinstance(value, SecretRef):
            return LaunchRefused("secret_missing", f"env {key}: secret {value.secret} is not here")
        env[key] = value
    for mount in group.mounts:
        kind = KIND_OF_MOUNT.get(mount.type)
        if kind is not None:
            return LaunchRefused(
                f"{kind.value}_missing",
                f"mount {mount.target}: {kind.value} {mount.source} is not here",
            )
    ports = launch_ports(task, node.advertise)
    env.update(cube_env(task, ports, node))
    return Launch(
        cluster_id=node.cluster_id,
        node_id=node.node_id,
        task_id=task.id,
        task_name=task.name,
        job=task.job,
        group=task.group,
        attempt=attempt,
        image=group.image,
        command=group.command,
        entrypoint=group.entrypoint,
        env=env,
        user=group.user,
        working_dir=group.working_dir,
        stop_signal=group.stop_signal,
        stop_timeout_ms=group.stop_timeout_ms,
        lease=_lease(group, leased_from_ms),
        cpu_milli=group.resources.cpu_milli,
        cpu_max_milli=group.cpu_max_milli,
        memory_bytes=group.resources.memory_bytes,
        memory_limit_bytes=group.memory_max_bytes or group.resources.memory_bytes,
        pids_limit=group.pids,
        ports=ports,
        mounts=group.mounts,
        docker=_docker(group),
        ulimits=group.ulimits,
        disk_bytes=group.resources.disk_bytes,
    )


def _docker(group: GroupSpec) -> DockerOptions:
    """The engine's options, with the ulimits of both places."""
    if not group.ulimits:
        return group.docker
    ulimits = group.docker.ulimits + group.ulimits
    return msgspec.structs.replace(group.docker, ulimits=ulimits)


def _lease(group: GroupSpec, leased_from_ms: int | None) -> LaunchLease | None:
    if not group.is_leased or leased_from_ms is None:
        return None
    return LaunchLease(leased_from_ms, group.lost_after_ms)


def launch_ports(task: Task, advertise: str) -> tuple[LaunchPort, ...]:
    """A process listens on its host port; in a container the target stands, 0 being the host port."""
    is_process = task.driver == DriverName.PROCESS
    return tuple(
        LaunchPort(
            name=port.name,
            host=port.host,
            target=port.host if is_process or port.target == 0 else port.target,
            protocol=port.protocol,
            address=advertise,
        )
        for port in task.ports
    )


def cube_env(task: Task, ports: tuple[LaunchPort, ...], node: NodeIdentity) -> dict[str, str]:
    """The variables of interface.md, "Each task's environment"."""
    env = {
        "CUBE_JOB": task.job,
        "CUBE_GROUP": task.group,
        "CUBE_TASK_ID": task.id,
        "CUBE_TASK_NAME": task.name,
        "CUBE_SLOT": str(task.slot),
        "CUBE_JOB_VERSION": str(task.version),
        "CUBE_NODE": node.name,
        "CUBE_FENCE": str(task.fence),
    }
    host = f"[{node.advertise}]" if ":" in node.advertise else node.advertise
    for port in ports:
        suffix = port.name.upper().replace("-", "_")
        env[f"CUBE_PORT_{suffix}"] = str(port.target)
        env[f"CUBE_HOST_PORT_{suffix}"] = str(port.host)
        env[f"CUBE_ADDR_{suffix}"] = f"{host}:{port.host}"
    return env
