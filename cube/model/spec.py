"""What a user asked for. The system never rewrites a spec; a change is a new version of the job.

These are the job file's tables with every default filled in and every unit an integer
(interface.md, "Job file"). cube.model.jobfile turns trees into them and back.
Mappings are plain dicts for the codec's sake and are never written to after parsing.
"""

from __future__ import annotations

import enum

import msgspec

from cube.model.resources import Resources

NAME_CHARS_MAX = 63  # a DNS label: names become host names and container names
JOB_BYTES_MAX = 256 * 1024  # a whole spec, encoded: it travels in one log entry
GROUPS_MAX = 64  # per job
COUNT_MAX = 100_000  # per group
PORTS_MAX = 64  # per group
CHECKS_MAX = 16  # per group
MOUNTS_MAX = 64  # per group
ENV_MAX = 512  # per group
ENV_BYTES_MAX = 64 * 1024  # per group, names and values together
ARGV_MAX = 1024  # words of a command
ARGV_BYTES_MAX = 64 * 1024
# Two heartbeats, of which one may be lost. The upper bound keeps what drifts in it (singleton.py) small.
LOST_AFTER_MS_MIN = 2_000
LOST_AFTER_MS_MAX = 3_600_000
ID_MAX = (1 << 32) - 2  # of a user or group, the kernel's; one more means "leave it as it is"
VERSIONS_MAX = 10  # kept per job, for rollback


class JobType(enum.StrEnum):
    SERVICE = "service"
    BATCH = "batch"
    SYSTEM = "system"
    CRON = "cron"


class DriverName(enum.StrEnum):
    DOCKER = "docker"
    PROCESS = "process"
    FAKE = "fake"  # tests only; a job file cannot name it


class Protocol(enum.StrEnum):
    TCP = "tcp"
    UDP = "udp"


class OnPartition(enum.StrEnum):
    """What a node does with a task once no leader has acknowledged it for `lost_after`."""

    KEEP = "keep"
    STOP = "stop"


class CheckType(enum.StrEnum):
    HTTP = "http"
    TCP = "tcp"
    EXEC = "exec"


class OnCheckFailure(enum.StrEnum):
    RESTART = "restart"
    IGNORE = "ignore"


class RestartCondition(enum.StrEnum):
    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class UpdateOrder(enum.StrEnum):
    STOP_FIRST = "stop-first"
    START_FIRST = "start-first"


class OnUpdateFailure(enum.StrEnum):
    ROLLBACK = "rollback"
    PAUSE = "pause"


class MountType(enum.StrEnum):
    VOLUME = "volume"
    BIND = "bind"
    TMPFS = "tmpfs"
    SECRET = "secret"  # one file, in memory; `source` is its name
    CONFIG = "config"


class Overlap(enum.StrEnum):
    ALLOW = "allow"
    FORBID = "forbid"
    REPLACE = "replace"


class PlacementPolicy(enum.StrEnum):
    SPREAD = "spread"
    BINPACK = "binpack"
    EPVM = "epvm"
    GREEDY = "greedy"
    ROUNDROBIN = "roundrobin"


class Operator(enum.StrEnum):
    EQ = "=="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    IN = "in"
    NOT_IN = "not_in"
    MATCHES = "matches"
    EXISTS = "exists"
    NOT_EXISTS = "not_exists"


class SecretRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An environment value that is a secret's: of the version that the job's version has."""

    secret: str


class PortSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named port. `target` 0 means the same as the host port; `host` 0 means: pick one."""

    target: int = 0
    host: int = 0
    protocol: Protocol = Protocol.TCP


class MountSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mode`, `uid` and `gid` are of the file of a secret or config. None: whoever the task runs as.
    `target` is the file's name, with a process."""

    type: MountType
    target: str
    source: str = ""
    read_only: bool = False
    size_bytes: int = 0  # tmpfs only; 0: the engine's default
    mode: int = 0
    uid: int | None = None
    gid: int | None = None


class CheckSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    type: CheckType
    port: str = ""  # http and tcp: a name in the group's ports
    path: str = "/"  # http
    command: tuple[str, ...] = ()  # exec
    interval_ms: int = 10_000
    timeout_ms: int = 2_000
    start_period_ms: int = 0
    healthy_after: int = 1
    unhealthy_after: int = 3
    on_failure: OnCheckFailure = OnCheckFailure.RESTART


class RestartPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In place, on the same node. `delay_ms` doubles up to `max_delay_ms`."""

    policy: RestartCondition = RestartCondition.ALWAYS
    attempts: int = 3
    window_ms: int = 600_000
    delay_ms: int = 1_000
    max_delay_ms: int = 60_000


class ReschedulePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """On another node, for tasks that failed. `attempts` 0 means unlimited."""

    attempts: int = 0
    delay_ms: int = 5_000
    max_delay_ms: int = 3_600_000


class UpdatePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    parallelism: int = 1
    order: UpdateOrder = UpdateOrder.STOP_FIRST
    min_healthy_ms: int = 10_000
    deadline_ms: int = 300_000
    canaries: int = 0
    on_failure: OnUpdateFailure = OnUpdateFailure.ROLLBACK


class Constraint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`value` is text, or a tuple of texts for `in` and `not_in`, or empty for the exists pair."""

    attribute: str
    operator: Operator = Operator.EQ
    value: str | tuple[str, ...] = ""


class Affinity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wish: `weight` −100..100 is added for nodes that match."""

    attribute: str
    operator: Operator = Operator.EQ
    value: str | tuple[str, ...] = ""
    weight: int = 50


class Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`policy` None: the cluster's default. `max_per_node` 0: no limit."""

    policy: PlacementPolicy | None = None
    spread_over: tuple[str, ...] = ()
    max_per_node: int = 0
    constraints: tuple[Constraint, ...] = ()
    affinities: tuple[Affinity, ...] = ()


class Ulimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    soft: int
    hard: int


class DockerOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What only the docker driver understands. Empty means: the engine's default. Capabilities are those
    of cube.model.allowed, less `cap_drop` ("ALL": all), and `cap_add`."""

    init: bool = True  # as process 1 a program that handles no SIGTERM would ignore it
    privileged: bool = False
    network_mode: str = ""
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    gpus: str = ""
    ulimits: tuple[Ulimit, ...] = ()  # the older place of GroupSpec.ulimits
    shm_size_bytes: int = 0
    memory_swap_bytes: int = 0  # beside the memory limit
    read_only: bool = False
    security_opt: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    hostname: str = ""
    labels: dict[str, str] = {}
    pull: str = "missing"  # missing | always | never
    registry_secret: str = ""


class GroupSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A template of tasks. `cpu_max_milli` and `memory_max_bytes` 0: no limit beyond the default."""

    count: int = 1
    driver: DriverName = DriverName.DOCKER
    image: str = ""
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: dict[str, str | SecretRef] = {}
    user: str = ""
    working_dir: str = ""
    stop_signal: str = "SIGTERM"
    stop_timeout_ms: int = 10_000
    shutdown_delay_ms: int = 0
    depends_on: tuple[str, ...] = ()
    at_most_one: bool = False
    on_partition: OnPartition = OnPartition.KEEP
    lost_after_ms: int = 30_000  # of a lease; without on_partition = stop it means nothing
    resources: Resources = Resources(cpu_milli=100, memory_bytes=64 << 20)
    cpu_max_milli: int = 0
    memory_max_bytes: int = 0
    pids: int = 1024
    ports: dict[str, PortSpec] = {}
    mounts: tuple[MountSpec, ...] = ()
    checks: tuple[CheckSpec, ...] = ()
    restart: RestartPolicy = RestartPolicy()
    reschedule: ReschedulePolicy = ReschedulePolicy()
    update: UpdatePolicy = UpdatePolicy()
    docker: DockerOptions = DockerOptions()
    placement: Placement = Placement()
    ulimits: tuple[Ulimit, ...] = ()  # none has the name of one in `docker`

    @property
    def lives_alone(self) -> bool:
        """Two tasks of a slot cannot run side by side: a fixed host port, a volume, at most one."""
        return (
            self.at_most_one
            or any(port.host for port in self.ports.values())
            or any(mount.type is MountType.VOLUME for mount in self.mounts)
        )

    @property
    def canaries(self) -> int:
        """The first so many slots are the canaries of a rollout."""
        return min(self.update.canaries, self.count)

    @property
    def is_leased(self) -> bool:
        """Its tasks run while their node is acknowledged by a leader, and `lost_after_ms` longer."""
        return self.on_partition is OnPartition.STOP or self.at_most_one


class CronSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schedule: str
    timezone: str = "UTC"
    overlap: Overlap = Overlap.FORBID


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    type: JobType
    groups: dict[str, GroupSpec]
    priority: int = 50
    meta: dict[str, str] = {}
    cron: CronSpec | None = None


# A change in these alone needs no new container: the running tasks take the new values in place.
IN_PLACE_FIELDS = frozenset(
    {"count", "restart", "reschedule", "update", "checks", "depends_on", "stop_timeout_ms",
     "shutdown_delay_ms", "placement"}
)  # fmt: skip


def same_container(old: GroupSpec, new: GroupSpec) -> bool:
    """True when a task made from `old` may go on as one of `new` without being replaced."""
    if old is new:
        return True
    return all(
        getattr(old, field) == getattr(new, field)
        for field in GroupSpec.__struct_fields__
        if field not in IN_PLACE_FIELDS
    )
