"""Which drivers a node has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cube.adapters.docker_engine.settings import DockerSettings
from cube.adapters.process.driver import ProcessDriver
from cube.adapters.process.settings import ProcessSettings
from cube.config import Config, Switch
from cube.model.ids import ClusterId, NodeId
from cube.ports.clock import Clock
from cube.ports.driver import Driver
from cube.ports.reaper import Reaper

TASKS_DIRECTORY = "tasks"  # below the data directory: the process driver's


def make_drivers(
    config: Config, cluster_id: ClusterId, node_id: NodeId, clock: Clock, *, is_root: bool
) -> dict[str, Driver]:
    """By name. `auto` for docker: there, and healthy whenever an engine answers. `auto` for process:
    there unless the agent is root and not --insecure (interface.md, "Trust")."""
    drivers: dict[str, Driver] = {}
    docker = config.drivers.docker
    if docker.enabled is not Switch.OFF:
        # Here, since the SDK and what it needs take a fifth of the time in which an agent loads.
        from cube.adapters.docker_driver import DockerDriver

        settings = DockerSettings(
            host=docker.host or None,
            allow=docker.allow,
            log_file_bytes=config.logs.file_size_bytes,
            log_files=config.logs.files,
        )
        drivers["docker"] = DockerDriver(cluster_id, node_id, settings, clock)
    process = config.drivers.process.enabled
    if process is Switch.ON or (process is Switch.AUTO and (config.insecure or not is_root)):
        drivers["process"] = ProcessDriver(
            cluster_id,
            node_id,
            Path(config.node.data_dir) / TASKS_DIRECTORY,
            clock,
            ProcessSettings(
                log_segment_bytes=config.logs.file_size_bytes,
                log_segments=config.logs.files,
                allow=config.drivers.process.allow,
                users=config.drivers.process.users,
                user=config.drivers.process.user,
            ),
        )
    return drivers


def reapers_of(drivers: Mapping[str, Driver]) -> dict[str, Reaper]:
    """Those drivers that can end what removed nodes left."""
    return {name: driver for name, driver in drivers.items() if isinstance(driver, Reaper)}
