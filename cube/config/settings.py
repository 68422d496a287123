"""The agent's configuration as values: one struct per section of the file, every default in place.

A field's name is the file's key and its unit: `node_grace_ms` is `[cluster] node_grace = "5s"`.
cluster.example.toml shows every key with a comment; a test holds the two together.
"""

from __future__ import annotations

import enum

import msgspec

from cube.gossip.settings import GossipSettings
from cube.model.allowed import USERS_DEFAULT
from cube.model.resources import NOTHING, Resources
from cube.model.spec import PlacementPolicy

HTTP_PORT = 7700  # also of an address in `join` that names none


class Switch(enum.StrEnum):
    """`auto`: on when it can work here (docker), when it is safe here (process)."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LogLevel(enum.StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Empty name: the host's. After load() data_dir is never empty. Zero quantities: as detected."""

    name: str = ""
    data_dir: str = ""
    labels: dict[str, str] = {}
    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    reserved: Resources = NOTHING  # kept from tasks, for the host itself


class BindSettings(msgspec.Struct, frozen=True, kw_only=True):
    """After load() `advertise` is never empty. port_first..port_last (inclusive) is `port_range`."""

    address: str = "127.0.0.1"
    advertise: str = ""
    http: int = HTTP_PORT
    raft: int = 7701
    gossip: int = 7702
    port_first: int = 20_000
    port_last: int = 29_999


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """After load() each address in `join` is HOST:PORT."""

    name: str = "cube"
    join: tuple[str, ...] = ()
    bootstrap_expect: int = 0
    secret_file: str = ""
    node_grace_ms: int = 5_000
    dead_voter_grace_ms: int = 10_000
    write_timeout_ms: int = 5_000


class RaftValues(msgspec.Struct, frozen=True, kw_only=True):
    """Invariant: 3 × heartbeat_ms < election_min_ms < election_max_ms ≤ ELECTION_MS_MAX."""

    voters: int = 5
    heartbeat_ms: int = 150
    election_min_ms: int = 600
    election_max_ms: int = 1_200
    snapshot_every: int = 10_000


class AuthSettings(msgspec.Struct, frozen=True, kw_only=True):
    join_token: str = ""


class DockerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Empty host: DOCKER_HOST, else the default socket."""

    enabled: Switch = Switch.AUTO
    host: str = ""
    allow: tuple[str, ...] = ()


class ProcessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Empty user: tasks that name none run as the agent itself. `users`: whom others may name, under
    an agent that is root."""

    enabled: Switch = Switch.AUTO
    allow: tuple[str, ...] = ()
    users: tuple[str, ...] = USERS_DEFAULT
    user: str = ""


class DriversSettings(msgspec.Struct, frozen=True, kw_only=True):
    docker: DockerSettings = DockerSettings()
    process: ProcessSettings = ProcessSettings()


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """They take effect when the cluster is made; afterwards they are the cluster's own, which
    `cube cluster settings` changes."""

    policy: PlacementPolicy = PlacementPolicy.EPVM
    preemption: bool = False
    rebalance: bool = False


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`level` is of the agent's own log; the others bound the output kept of each task."""

    level: LogLevel = LogLevel.INFO
    file_size_bytes: int = 10 << 20
    files: int = 2


class GcSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`disk_free_min_bytes`: with less than that free the node takes no new tasks; 0: it always does.
    `image_disk_percent`: how full the engine's disk is when unused images go; 100: they never do.
    The `finished` ones take effect when the cluster is made, as SchedulerSettings do."""

    disk_free_min_bytes: int = 1 << 30
    image_disk_percent: int = 80
    image_unused_for_ms: int = 86_400_000
    finished_per_slot: int = 5
    finished_for_ms: int = 0
    finished_beyond_ms: int = 600_000


class TelemetrySettings(msgspec.Struct, frozen=True, kw_only=True):
    """No keys yet."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """`insecure` has no key in the file: it is a flag, so that nobody leaves it in a file."""

    node: NodeSettings = NodeSettings()
    bind: BindSettings = BindSettings()
    cluster: ClusterSettings = ClusterSettings()
    raft: RaftValues = RaftValues()
    gossip: GossipSettings = GossipSettings()
    auth: AuthSettings = AuthSettings()
    drivers: DriversSettings = DriversSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    logs: LogSettings = LogSettings()
    gc: GcSettings = GcSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    insecure: bool = False
