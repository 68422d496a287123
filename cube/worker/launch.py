"""From a placed task and its template to what a driver is told."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from cube.model.cluster import Task
from cube.model.ids import ClusterId, NodeId
from cube.model.jobstored import DIRECTORY, VARIABLE
from cube.model.launch import Launch, LaunchFile, LaunchLease, LaunchPort, LaunchValue
from cube.model.spec import DockerOptions, DriverName, GroupSpec, SecretRef
from cube.model.stored import KIND_OF_MOUNT, StoredKind, StoredRef, refs_in_tasks


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
    uses: Mapping[str, int] = MappingProxyType({}),
    *,
    digest: str = "",
) -> Launch | LaunchRefused:
    """What this attempt of the task is started with, but for the values of secrets. CUBE_* wins over
    the group's own env. `uses`: of the task's version of the job (JobVersion.uses)."""
    for ref in refs_in_tasks(group):
        if not uses.get(ref.key):
            return LaunchRefused(
                f"{ref.kind.value}_missing",
                f"this version of the job has no {ref}; `cube {ref.kind.value} set {ref.name}`, then "
                "run the job again",
            )
    ports = launch_ports(task, node.advertise)
    env = {key: value for key, value in group.env.items() if isinstance(value, str)}
    env.update(cube_env(task, ports, node))
    if task.driver != DriverName.PROCESS:  # whose driver knows where they are
        kinds = {mount.type for mount in group.mounts}
        env.update((name, DIRECTORY[type_]) for type_, name in VARIABLE.items() if type_ in kinds)
    return Launch(
        cluster_id=node.cluster_id,
        node_id=node.node_id,
        task_id=task.id,
        task_name=task.name,
        job=task.job,
        group=task.group,
        attempt=attempt,
        image=group.image,
        image_digest=digest,
        command=group.command,
        entrypoint=group.entrypoint,
        env=env,
        env_from=_env_from(group, uses),
        files=_files(group, uses),
        login_from=_login_from(group),
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
        mounts=tuple(mount for mount in group.mounts if mount.type not in KIND_OF_MOUNT),
        docker=_docker(group),
        ulimits=group.ulimits,
        disk_bytes=group.resources.disk_bytes,
    )


def _env_from(group: GroupSpec, uses: Mapping[str, int]) -> dict[str, LaunchValue]:
    found: dict[str, LaunchValue] = {}
    for key, value in group.env.items():
        if isinstance(value, SecretRef):
            ref = StoredRef(StoredKind.SECRET, value.secret)
            found[key] = LaunchValue(ref, uses[ref.key])
    return found


def _files(group: GroupSpec, uses: Mapping[str, int]) -> tuple[LaunchFile, ...]:
    files = []
    for mount in group.mounts:
        kind = KIND_OF_MOUNT.get(mount.type)
        if kind is None:
            continue
        ref = StoredRef(kind, mount.source)
        files.append(
            LaunchFile(
                value=LaunchValue(ref, uses[ref.key]),
                target=mount.target,
                mode=mount.mode,
                uid=mount.uid,
                gid=mount.gid,
            )
        )
    return tuple(files)


def _login_from(group: GroupSpec) -> LaunchValue | None:
    """The newest: a pull tomorrow is not helped by the password of today."""
    name = group.docker.registry_secret
    return LaunchValue(StoredRef(StoredKind.SECRET, name), 0) if name else None


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
