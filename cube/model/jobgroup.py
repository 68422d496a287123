"""One group of a job tree as a GroupSpec. The relations between groups are jobfile's.

Every default is the one of cube.model.spec; those that depend on the job's type, the driver or
another key are made here. Sections that need more than a screen are in jobparts.
"""

from __future__ import annotations

import re

from cube.model import jobdocker, jobparts
from cube.model.addresses import PORT_MAX
from cube.model.jobulimits import read_ulimits
from cube.model.resources import Resources
from cube.model.spec import (
    ARGV_BYTES_MAX,
    ARGV_MAX,
    COUNT_MAX,
    ENV_BYTES_MAX,
    ENV_MAX,
    GROUPS_MAX,
    LOST_AFTER_MS_MAX,
    LOST_AFTER_MS_MIN,
    PORTS_MAX,
    DockerOptions,
    DriverName,
    GroupSpec,
    JobType,
    OnPartition,
    PortSpec,
    Protocol,
    ReschedulePolicy,
    RestartCondition,
    RestartPolicy,
    SecretRef,
    UpdateOrder,
    UpdatePolicy,
)
from cube.model.stored import NAME as SECRET_NAME
from cube.model.stored import NAME_ACCEPTED as SECRET_NAME_ACCEPTED
from cube.model.treeread import Table, as_text, kind, shown, text_problem
from cube.model.units import format_duration

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
NAME_ACCEPTED = "accepted: a-z, 0-9 and -, 1 to 63 characters, no - at either end"

DOCKER_MEMORY_MIN = 6 << 20  # the engine refuses a limit below 6 MiB
PIDS_MAX = 4_194_304  # the kernel's own PID_MAX_LIMIT
SHUTDOWN_DELAY_MS = 2_000  # for groups with ports: time for clients to forget the address
ATTEMPTS_MAX = 1_000_000
ENV_NAME_CHARS_MAX = 256
IMAGE_CHARS_MAX = 512

SIGNALS = frozenset(
    {"SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL",
     "SIGUSR1", "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD",
     "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ",
     "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS"}
)  # fmt: skip

# What other orchestrators and people in a hurry call our keys.
SYNONYMS = {
    "replicas": "count", "instances": "count", "scale": "count", "environment": "env",
    "cmd": "command", "args": "command", "volumes": "mounts", "volume": "mounts",
    "healthcheck": "checks", "health": "checks", "check": "checks", "mount": "mounts",
    "port": "ports", "cpu": "resources.cpu", "cpus": "resources.cpu", "mem": "resources.memory",
    "memory": "resources.memory", "memory_max": "resources.memory_max",
    "cpu_max": "resources.cpu_max", "disk": "resources.disk", "pids": "resources.pids",
    "constraints": "placement.constraints", "affinities": "placement.affinities",
    "max_per_node": "placement.max_per_node", "spread_over": "placement.spread_over",
    "privileged": "docker.privileged", "network_mode": "docker.network_mode",
    "labels": "docker.labels", "hostname": "docker.hostname", "cap_add": "docker.cap_add",
    "rlimits": "ulimits", "limits": "ulimits", "init": "docker.init", "pull": "docker.pull",
    "workdir": "working_dir", "cwd": "working_dir", "kill_timeout": "stop_timeout",
    "stop_grace_period": "stop_timeout", "singleton": "at_most_one",
}  # fmt: skip

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}\$?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,62})?")
_DEPENDENCY = re.compile(rf"({NAME.pattern}/)?{NAME.pattern}")
_ENV_NAME = re.compile(r"[^\s=\x00-\x1f\x7f]+")
# What Cube itself sets (interface.md): a group that could override these would lie to its tasks.
_ENV_RESERVED = re.compile(
    r"CUBE_(JOB|GROUP|TASK_ID|TASK_NAME|SLOT|JOB_VERSION|NODE|FENCE|(SECRETS|CONFIGS)_DIR|(PORT|HOST_PORT|ADDR)_.*)"
)
_DEFAULT = GroupSpec()


def read_group(table: Table, job_type: JobType) -> GroupSpec:
    """The group, with an error noted for everything that is wrong in it."""
    count = table.integer("count", 1, 0, COUNT_MAX)
    driver = table.choice("driver", DriverName, _DEFAULT.driver, but=DriverName.FAKE.value)
    image, command, entrypoint = _program(table, driver)
    ports = _ports(table.table("ports"), driver, table)
    resources, cpu_max, memory_max, pids = _resources(table.table("resources"), driver)
    update = _update(table.table("update"), count)
    at_most_one = table.boolean("at_most_one", False)
    group = GroupSpec(
        count=count,
        driver=driver,
        image=image,
        command=command,
        entrypoint=entrypoint,
        env=_env(table.table("env")),
        user=table.text("user", pattern=_USER, accepted="write a name or id, or user:group"),
        working_dir=jobparts.absolute(table, "working_dir"),
        stop_signal=_signal(table),
        stop_timeout_ms=table.duration_ms("stop_timeout", _DEFAULT.stop_timeout_ms),
        shutdown_delay_ms=table.duration_ms("shutdown_delay", SHUTDOWN_DELAY_MS if ports else 0),
        depends_on=_depends_on(table),
        at_most_one=at_most_one,
        on_partition=table.choice("on_partition", OnPartition, _on_partition(at_most_one)),
        lost_after_ms=_lost_after(table),
        resources=resources,
        cpu_max_milli=cpu_max,
        memory_max_bytes=memory_max,
        pids=pids,
        ports=ports,
        mounts=jobparts.read_mounts(table, driver),
        checks=jobparts.read_checks(table, ports),
        restart=_restart(table.table("restart"), job_type),
        reschedule=_reschedule(table.table("reschedule"), job_type),
        update=update,
        docker=_docker(table, driver),
        placement=jobparts.read_placement(table),
        ulimits=read_ulimits(table.table("ulimits"), driver),
    )
    _relations(table, group, job_type)
    table.close(SYNONYMS)
    return group


def _relations(table: Table, group: GroupSpec, job_type: JobType) -> None:
    for limit in group.ulimits:
        if limit.name in {other.name for other in group.docker.ulimits}:
            path = f"{table.at('docker')}.ulimits.{limit.name}"
            table.errors.add(path, "is in the group's own ulimits too")
    if job_type is JobType.SYSTEM and table.has("count") and group.count != 1:
        table.error("count", "a system job runs one task on every node", "leave count out")
    if table.has("lost_after") and not group.is_leased and table.ok("on_partition"):
        table.error(
            "lost_after", 'means nothing without on_partition = "stop"', "add it, or leave this out"
        )
    if group.docker != DockerOptions():
        _docker_relations(table.table("docker"), group)
    if not group.at_most_one or not table.ok("at_most_one"):
        return
    if group.on_partition is OnPartition.KEEP and table.ok("on_partition"):
        table.error(
            "on_partition",
            'is at odds with at_most_one, which needs "stop": a task that goes on unseen cannot be '
            "replaced by one",
        )
    if job_type is JobType.SYSTEM:
        table.error("at_most_one", "a system job runs one task on every node")
    elif group.count > 1 and table.ok("count"):
        table.error("at_most_one", f"requires count = 1, not {group.count}")
    if group.update.order is UpdateOrder.START_FIRST:
        table.error(
            "at_most_one",
            'is at odds with update.order = "start-first", which runs two tasks for a while',
        )


def _docker_relations(table: Table, group: GroupSpec) -> None:
    mode = group.docker.network_mode
    if group.ports and (mode == "none" or mode.startswith("container:")):
        table.error(
            "network_mode",
            f"{shown(mode)} publishes no ports, and the group has some",
            'use "bridge" or "host", or leave the ports out',
        )
    limit_bytes = group.memory_max_bytes or group.resources.memory_bytes
    if group.docker.memory_swap_bytes and not limit_bytes:
        table.error("memory_swap", "means nothing without a limit", "set resources.memory")


def _on_partition(at_most_one: bool) -> OnPartition:
    return OnPartition.STOP if at_most_one else OnPartition.KEEP


def _lost_after(table: Table) -> int:
    key, default_ms = "lost_after", _DEFAULT.lost_after_ms
    value_ms = table.duration_ms(key, default_ms, LOST_AFTER_MS_MIN)
    if table.ok(key) and value_ms > LOST_AFTER_MS_MAX:
        table.error(key, f"must be at most {format_duration(LOST_AFTER_MS_MAX)}")
        return default_ms
    return value_ms


def _program(table: Table, driver: DriverName) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    image = table.text(
        "image",
        pattern=_IMAGE,
        accepted='write a reference such as "nginx:1.27"',
        chars_max=IMAGE_CHARS_MAX,
    )
    argv = 'write the words of the command: ["python3", "-m", "http.server"]'
    command = table.texts("command", ARGV_MAX, lines=True, bytes_max=ARGV_BYTES_MAX, accepted=argv)
    entrypoint = table.texts(
        "entrypoint", ARGV_MAX, lines=True, bytes_max=ARGV_BYTES_MAX, accepted=argv
    )
    if not table.ok("driver"):
        return image, command, entrypoint
    if driver is DriverName.DOCKER:
        if not table.has("image"):
            hint = 'to run the command without a container, set driver = "process"'
            table.error("image", "is required by the docker driver", hint if command else "")
    else:
        if table.ok("command") and not (command and command[0]):
            table.error("command", "is required by the process driver", argv)
        if table.has("image"):
            table.error("image", "the process driver runs a command, not an image")
        if entrypoint:
            table.error("entrypoint", "only images have one; put it at the front of command")
    return image, command, entrypoint


def _env(table: Table) -> dict[str, str | SecretRef]:
    env: dict[str, str | SecretRef] = {}
    total = 0
    for name, value in table.entries(ENV_MAX, "variables"):
        if not _ENV_NAME.fullmatch(name) or len(name) > ENV_NAME_CHARS_MAX:
            table.error(name, "is not a name for a variable", "accepted: letters, digits and _")
        elif _ENV_RESERVED.fullmatch(name):
            table.error(name, "is set by Cube itself")
        elif isinstance(value, dict):
            inner = Table(table.errors, table.at(name), value)
            secret = inner.text(
                "secret", required=True, pattern=SECRET_NAME, accepted=SECRET_NAME_ACCEPTED
            )
            inner.close()
            env[name] = SecretRef(secret)
        elif (text := as_text(value)) is None:
            table.error(name, f"must be text, a number or a {{secret = …}}, not {kind(value)}")
        elif problem := text_problem(text, chars_max=ENV_BYTES_MAX, lines=True):
            table.error(name, problem)
        else:
            env[name] = text
            total += len(name.encode()) + len(text.encode())
    if total > ENV_BYTES_MAX:
        table.errors.add(
            table.path, f"is {total} bytes long in all; at most {ENV_BYTES_MAX} are accepted"
        )
    return env


def _signal(table: Table) -> str:
    name = table.text("stop_signal", _DEFAULT.stop_signal)
    full = name if name.startswith("SIG") else f"SIG{name}"
    if full not in SIGNALS:
        table.error(
            "stop_signal",
            f"{shown(name)} is no signal",
            "SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, …",
        )
    return full


def _depends_on(table: Table) -> tuple[str, ...]:
    names = table.texts(
        "depends_on", GROUPS_MAX, pattern=_DEPENDENCY, accepted='write "group" or "job/group"'
    )
    for name in sorted(set(names)):
        if names.count(name) > 1:
            table.error("depends_on", f"names {name} more than once")
    return names


def _ports(table: Table, driver: DriverName, group: Table) -> dict[str, PortSpec]:
    host_network = _network_mode(group) == "host"
    ports: dict[str, PortSpec] = {}
    for name, tree in table.entries(PORTS_MAX, "ports"):
        if not NAME.fullmatch(name):
            table.error(name, "is not a name for a port", NAME_ACCEPTED)
            continue
        port = Table(table.errors, table.at(name), tree)
        spec = PortSpec(
            target=port.integer("target", 0, 1, PORT_MAX),
            host=port.integer("host", 0, 0, PORT_MAX),
            protocol=port.choice("protocol", Protocol, Protocol.TCP),
        )
        implied = driver is DriverName.PROCESS or spec.host or host_network
        if not port.has("target") and not implied and group.ok("driver") and isinstance(tree, dict):
            port.error("target", "is required by the docker driver", "the port in the container")
        port.close({"container": "target", "static": "host", "to": "target"})
        ports[name] = spec
    return ports


def _network_mode(group: Table) -> str:
    docker = group.raw("docker")
    mode = docker.get("network_mode") if isinstance(docker, dict) else None
    return mode if isinstance(mode, str) else ""


def _resources(table: Table, driver: DriverName) -> tuple[Resources, int, int, int]:
    resources = Resources(
        cpu_milli=table.cpu_milli("cpu", _DEFAULT.resources.cpu_milli),
        memory_bytes=table.size_bytes("memory", _DEFAULT.resources.memory_bytes),
        disk_bytes=table.size_bytes("disk", _DEFAULT.resources.disk_bytes),
    )
    cpu_max = table.cpu_milli("cpu_max", 0)
    memory_max = table.size_bytes("memory_max", 0)
    pids = table.integer("pids", _DEFAULT.pids, 1, PIDS_MAX)
    if cpu_max and cpu_max < resources.cpu_milli and table.ok("cpu", "cpu_max"):
        table.error(
            "cpu_max",
            f"{cpu_max / 1000:g} is less than cpu = {resources.cpu_milli / 1000:g}",
            "cpu is what is reserved, cpu_max the limit",
        )
    if memory_max and memory_max < resources.memory_bytes and table.ok("memory", "memory_max"):
        table.error(
            "memory_max",
            f"{memory_max} bytes are less than memory = {resources.memory_bytes}",
            "memory is what is reserved, memory_max the limit",
        )
    limit, key = (memory_max, "memory_max") if memory_max else (resources.memory_bytes, "memory")
    if driver is DriverName.DOCKER and 0 < limit < DOCKER_MEMORY_MIN and table.ok(key):
        table.error(key, "is below 6MiB, the least that Docker accepts as a limit")
    table.close({"ram": "memory", "mem": "memory", "cpus": "cpu", "memory_limit": "memory_max"})
    return resources, cpu_max, memory_max, pids


def _restart(table: Table, job_type: JobType) -> RestartPolicy:
    ends = job_type in (JobType.BATCH, JobType.CRON)
    default = RestartPolicy(policy=RestartCondition.ON_FAILURE if ends else RestartCondition.ALWAYS)
    delay = table.duration_ms("delay", default.delay_ms)
    spec = RestartPolicy(
        policy=table.choice("policy", RestartCondition, default.policy),
        attempts=table.integer("attempts", default.attempts, 0, ATTEMPTS_MAX),
        window_ms=table.duration_ms("window", default.window_ms, 1_000),
        delay_ms=delay,
        max_delay_ms=table.duration_ms("max_delay", max(delay, default.max_delay_ms)),
    )
    _delays(table, spec.delay_ms, spec.max_delay_ms)
    table.close({"mode": "policy", "condition": "policy", "max_attempts": "attempts"})
    return spec


def _reschedule(table: Table, job_type: JobType) -> ReschedulePolicy:
    ends = job_type in (JobType.BATCH, JobType.CRON)
    default = ReschedulePolicy(attempts=1 if ends else 0)
    delay = table.duration_ms("delay", default.delay_ms)
    spec = ReschedulePolicy(
        attempts=table.integer("attempts", default.attempts, 0, ATTEMPTS_MAX),
        delay_ms=delay,
        max_delay_ms=table.duration_ms("max_delay", max(delay, default.max_delay_ms)),
    )
    _delays(table, spec.delay_ms, spec.max_delay_ms)
    table.close()
    return spec


def _delays(table: Table, delay_ms: int, max_delay_ms: int) -> None:
    if max_delay_ms < delay_ms and table.ok("delay", "max_delay"):
        table.error("max_delay", "is less than delay", "delay doubles up to max_delay")


def _update(table: Table, count: int) -> UpdatePolicy:
    default = _DEFAULT.update
    spec = UpdatePolicy(
        parallelism=table.integer("parallelism", default.parallelism, 1, COUNT_MAX),
        order=table.choice("order", UpdateOrder, default.order),
        min_healthy_ms=table.duration_ms("min_healthy", default.min_healthy_ms),
        deadline_ms=table.duration_ms("deadline", default.deadline_ms, 1_000),
        canaries=table.integer("canaries", default.canaries, 0, COUNT_MAX),
        on_failure=table.choice("on_failure", type(default.on_failure), default.on_failure),
    )
    if spec.canaries > count and table.ok("canaries"):
        table.error("canaries", f"{spec.canaries} are more than count = {count}")
    if spec.min_healthy_ms >= spec.deadline_ms and table.ok("min_healthy", "deadline"):
        table.error("min_healthy", "must be less than deadline, or no task is ever healthy in time")
    table.close(
        {"max_parallel": "parallelism", "canary": "canaries", "failure_action": "on_failure"}
    )
    return spec


def _docker(table: Table, driver: DriverName) -> DockerOptions:
    if table.raw("docker") in (None, {}):
        return DockerOptions()
    if driver is DriverName.PROCESS and table.ok("driver"):
        docker = table.raw("docker")
        is_ulimits = isinstance(docker, dict) and set(docker) == {"ulimits"}
        hint = "write ulimits in the group itself" if is_ulimits else ""
        table.error("docker", "this group runs with the process driver", hint)
        return DockerOptions()
    return jobdocker.read_docker(table.table("docker"))
