"""From a launch to the engine's create request. Pure."""

from __future__ import annotations

from cube.adapters.docker_engine.marks import Marks
from cube.adapters.docker_engine.settings import DockerSettings
from cube.model import allowed
from cube.model.errors import DriverFailed
from cube.model.images import pinned
from cube.model.launch import Launch
from cube.model.spec import DockerOptions, MountSpec, MountType

CPU_PERIOD_US = 100_000  # the kernel's own default
CPU_QUOTA_US_MIN = 1_000  # the kernel refuses less: 10 millicores
CPU_SHARES_PER_CORE = 1024
CPU_SHARES_MIN = 2  # the kernel refuses less

_NO_NEW_PRIVILEGES = "no-new-privileges"
# Log drivers that keep files here and take these bounds. Others are the operator's own choice of where
# output goes: the engine keeps a bounded copy beside them, which logs() reads.
_BOUNDED_LOGS = frozenset({"json-file", "local"})


def check_allowed(launch: Launch, allow: tuple[str, ...]) -> None:
    """Raises DriverFailed "not_allowed" that names everything this node does not allow."""
    missing = allowed.lacking(allowed.asks(launch.docker, launch.mounts), ",".join(allow))
    if missing:
        message = f"this node {allowed.refusal(missing)}"
        raise DriverFailed("not_allowed", message, transient=False)


def container_config(
    launch: Launch, marks: Marks, settings: DockerSettings, log_driver: str
) -> dict[str, object]:
    """The body of POST /containers/create. What the launch leaves empty is the image's. `log_driver`:
    the engine's default one."""
    options = launch.docker
    fixed: dict[str, object] = {
        "Image": pinned(launch.image, launch.image_digest),
        "Env": [f"{name}={value}" for name, value in launch.env.items()],
        # Ours win: the user's labels cannot make a container look like another node's.
        "Labels": {**options.labels, **marks.labels(launch)},
        "HostConfig": _host_config(launch, settings, marks, log_driver),
        "AttachStdout": False,
        "AttachStderr": False,
    }
    asked: dict[str, object] = {
        "Cmd": list(launch.command),
        "Entrypoint": list(launch.entrypoint),
        "User": launch.user,
        "WorkingDir": launch.working_dir,
        "StopSignal": launch.stop_signal,
        "Hostname": options.hostname,
        "ExposedPorts": {_engine_port(p.target, p.protocol): {} for p in launch.ports},
    }
    return fixed | {key: value for key, value in asked.items() if value}


def _host_config(
    launch: Launch, settings: DockerSettings, marks: Marks, log_driver: str
) -> dict[str, object]:
    options = launch.docker
    fixed: dict[str, object] = {
        "RestartPolicy": {"Name": "no"},  # that is the worker's business
        "Privileged": options.privileged,
        "Init": options.init,
        "ReadonlyRootfs": options.read_only,
        "SecurityOpt": _security(launch),
    }
    asked: dict[str, object] = {
        "NetworkMode": options.network_mode,
        "LogConfig": _log_config(settings, log_driver),
        "Dns": list(options.dns),
        "ExtraHosts": list(options.extra_hosts),
        "ShmSize": options.shm_size_bytes,
        "Devices": [_device(text) for text in options.devices],
        "DeviceRequests": _gpus(options.gpus),
        "Ulimits": [{"Name": u.name, "Soft": u.soft, "Hard": u.hard} for u in options.ulimits],
        "Mounts": [_mount(mount, marks) for mount in launch.mounts],
        "PortBindings": {} if options.network_mode == "host" else _bindings(launch),
    }
    rights = {} if options.privileged else _capabilities(options)
    return fixed | rights | _limits(launch) | {key: value for key, value in asked.items() if value}


def _log_config(settings: DockerSettings, log_driver: str) -> dict[str, object]:
    """Empty: all of it is the engine's own."""
    if log_driver not in _BOUNDED_LOGS:
        return {}
    bounds = {"max-size": str(settings.log_file_bytes), "max-file": str(settings.log_files)}
    return {"Type": log_driver, "Config": bounds}


def _capabilities(options: DockerOptions) -> dict[str, object]:
    """Everything is dropped, and what the task has is named, so that nothing depends on the engine."""
    added = {allowed.capability(name) for name in options.cap_add}
    dropped = {allowed.capability(name) for name in options.cap_drop}
    if allowed.ALL in added:
        return {"CapAdd": [allowed.ALL], "CapDrop": sorted(dropped - {allowed.ALL})}
    kept = set() if allowed.ALL in dropped else set(allowed.CAPABILITIES)
    return {"CapAdd": sorted((kept | added) - dropped), "CapDrop": [allowed.ALL]}


def _limits(launch: Launch) -> dict[str, object]:
    limits: dict[str, object] = {}
    if launch.cpu_milli:
        shares = launch.cpu_milli * CPU_SHARES_PER_CORE // 1000
        limits["CpuShares"] = max(CPU_SHARES_MIN, shares)
    if launch.cpu_max_milli:
        # Not NanoCpus: the engine refuses those above the host's cores, where a quota just is no limit.
        limits["CpuPeriod"] = CPU_PERIOD_US
        limits["CpuQuota"] = max(CPU_QUOTA_US_MIN, launch.cpu_max_milli * CPU_PERIOD_US // 1000)
    if launch.memory_bytes:
        limits["MemoryReservation"] = launch.memory_bytes
    if launch.memory_limit_bytes:
        limits["Memory"] = launch.memory_limit_bytes
        # Memory and swap together: without memory_swap there is none.
        limits["MemorySwap"] = launch.memory_limit_bytes + launch.docker.memory_swap_bytes
    if launch.pids_limit:
        limits["PidsLimit"] = launch.pids_limit
    return limits


def _security(launch: Launch) -> list[str]:
    if launch.docker.privileged:
        return list(launch.docker.security_opt)
    asked = [word for word in launch.docker.security_opt if allowed.adds_rights(word)]
    if any(w.startswith(_NO_NEW_PRIVILEGES) for w in asked):
        return asked
    return [*asked, _NO_NEW_PRIVILEGES]


def _mount(mount: MountSpec, marks: Marks) -> dict[str, object]:
    body: dict[str, object] = {
        "Type": mount.type.value,
        "Target": mount.target,
        "ReadOnly": mount.read_only,
    }
    match mount.type:
        case MountType.VOLUME:
            body["Source"] = mount.source
            body["VolumeOptions"] = {"Labels": marks.volume_labels()}
        case MountType.BIND:
            body["Source"] = mount.source
        case MountType.TMPFS if mount.size_bytes:
            body["TmpfsOptions"] = {"SizeBytes": mount.size_bytes}
        case MountType.TMPFS:
            pass
        case MountType.SECRET | MountType.CONFIG:
            raise AssertionError("a launch has these as files, not as mounts")
    return body


def _bindings(launch: Launch) -> dict[str, list[dict[str, str]]]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in launch.ports:
        bound = bindings.setdefault(_engine_port(port.target, port.protocol), [])
        bound.append({"HostIp": port.address, "HostPort": str(port.host)})
    return bindings


def _engine_port(target: int, protocol: str) -> str:
    return f"{target}/{protocol}"


def _device(text: str) -> dict[str, str]:
    """`/dev/x`, `/dev/x:/dev/y` or `/dev/x:/dev/y:rw`."""
    on_host, _, rest = text.partition(":")
    inside, _, rights = rest.partition(":")
    return {
        "PathOnHost": on_host,
        "PathInContainer": inside or on_host,
        "CgroupPermissions": rights or "rwm",
    }


def _gpus(text: str) -> list[dict[str, object]]:
    """`all`, a count, or ids with commas between them."""
    if text in ("", "0"):
        return []
    request: dict[str, object] = {"Driver": "", "Capabilities": [["gpu"]]}
    if text == "all":
        request["Count"] = -1
    elif text.isdecimal():
        request["Count"] = int(text)
    else:
        request["DeviceIDs"] = text.split(",")
    return [request]
