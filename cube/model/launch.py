"""What a driver is told to make real, and what it says it saw. Drivers know nothing else of Cube."""

from __future__ import annotations

import enum

import msgspec

from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.spec import DockerOptions, MountSpec, Protocol, Ulimit
from cube.model.stored import StoredRef


class LaunchPort(msgspec.Struct, frozen=True):
    """`host` is bound on `address`; `target` is where the task listens (equal for a process)."""

    name: str
    host: int
    target: int
    protocol: Protocol
    address: str  # the node's advertise address


class LaunchLease(msgspec.Struct, frozen=True):
    """The task ends when its node was not acknowledged for `lost_after_ms`: with its stop signal at
    that time and with KILL `stop_timeout_ms` later. It was last at `from_ms`, on the host's monotonic
    clock; later ones are in the node's lease file (adapters/process/lease.py)."""

    from_ms: int
    lost_after_ms: int


class LaunchValue(msgspec.Struct, frozen=True):
    """A secret or config of one version; 0: the newest there is."""

    ref: StoredRef
    version: int


class LaunchFile(msgspec.Struct, frozen=True, kw_only=True):
    """A secret or config as a file of the task, in memory and never on a disk, read-only. `target`: a
    path in the container; with a process a name in the directory of its kind. Of `uid` and `gid`, None
    is whoever the task runs as. `data` is empty until the launch is about to be made real."""

    value: LaunchValue
    target: str
    mode: int
    uid: int | None = None
    gid: int | None = None
    data: bytes = b""

    def __repr__(self) -> str:
        return f"LaunchFile({self.value.ref}, {self.target})"


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of one task, complete: a driver needs no other knowledge to run it.

    Identity is (task_id, attempt). `env` is final, CUBE_* included. Limits of 0 mean none. `user` is
    empty for the driver's default. For a driver, secrets are in it: `env_from` and `login_from` have
    become part of `env` and `login` (services.stored_values), and the files have their data. Nothing
    of this is shown by repr().
    """

    cluster_id: ClusterId
    node_id: NodeId
    task_id: TaskId
    task_name: str
    job: str
    group: str
    attempt: int
    image: str = ""
    image_digest: str = ""  # that the image must have; empty: whatever its name means now
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: dict[str, str] = {}
    env_from: dict[str, LaunchValue] = {}
    files: tuple[LaunchFile, ...] = ()
    login_from: LaunchValue | None = None
    login: str = ""  # for the image's registry: `user:password`, or a Docker config.json
    user: str = ""
    working_dir: str = ""
    stop_signal: str = "SIGTERM"
    stop_timeout_ms: int = 10_000
    lease: LaunchLease | None = None  # a driver that can sees to it even when the agent is dead
    cpu_milli: int = 0  # reserved: a share
    cpu_max_milli: int = 0  # hard limit
    memory_bytes: int = 0  # reserved
    memory_limit_bytes: int = 0  # hard limit: memory_max, else the reservation
    pids_limit: int = 0
    ports: tuple[LaunchPort, ...] = ()
    mounts: tuple[MountSpec, ...] = ()
    docker: DockerOptions = DockerOptions()  # with the group's ulimits
    ulimits: tuple[Ulimit, ...] = ()
    disk_bytes: int = 0  # of the task's own directory; a driver that cannot watch it does not

    def __repr__(self) -> str:
        return f"Launch({self.task_name} attempt {self.attempt}, {self.task_id})"


class RunState(enum.StrEnum):
    RUNNING = "running"
    EXITED = "exited"
    GONE = "gone"  # nothing carries this identity (any more)


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver knows of one attempt. Times are the node's own wall clock, for display.

    `handle` is the container's id, or the pid of the command itself as text.
    `exit_code` is None while running and when it cannot be known (`reason` then says why);
    a death by signal N is 128 + N. `message`: a sentence for people, where `reason` is a code that
    says too little.
    """

    task_id: TaskId
    attempt: int
    state: RunState
    handle: str = ""
    exit_code: int | None = None
    oom_killed: bool = False
    reason: str = ""
    message: str = ""
    started_at_ms: int = 0
    finished_at_ms: int = 0


# Attributes of a driver that other parts of Cube know by name.
ROOT_FACT = "root"  # the directory on the node's disk that holds what its tasks write
DISK_FACT, DISK_SHORT = "disk", "short"  # there is too little room for more tasks


class DriverInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`healthy` False with a `reason` means: no new task may be placed here with this driver.

    `attributes` are scheduling facts: {"version": "20.10.24", "cgroup": "1", …}.
    """

    name: str
    healthy: bool
    reason: str = ""
    attributes: dict[str, str] = {}


class LogChunk(msgspec.Struct, frozen=True):
    """A piece of a task's output. Lines may be cut anywhere. `at_ms` 0: the driver does not know.
    `dropped_bytes`: about so much of the stream before this piece was lost, because it was
    overwritten before it could be read."""

    stream: str  # stdout | stderr
    data: bytes
    at_ms: int = 0
    dropped_bytes: int = 0


class TaskStats(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt holds now, and has used since it began. `at_ms`: the node's wall clock. None:
    neither driver nor host can tell."""

    at_ms: int
    cpu_ms: int | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    pids: int | None = None
    read_bytes: int | None = None  # from and to disks
    written_bytes: int | None = None
    received_bytes: int | None = None  # of its own network
    sent_bytes: int | None = None


class ExecResult(msgspec.Struct, frozen=True):
    """`exit_code` None: it was killed at its deadline. `output` is the first 4 KiB of both streams."""

    exit_code: int | None
    output: bytes
