"""Ending what a node runs without its agent: for throw-away clusters."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from cube.adapters.docker_driver import DockerDriver
from cube.adapters.file_disk import FileDisk
from cube.adapters.process.driver import ProcessDriver
from cube.adapters.system_clock import SystemClock
from cube.agent.drivers import make_drivers
from cube.config import Config
from cube.model.errors import DriverFailed
from cube.model.ids import ClusterId, NodeId
from cube.model.launch import Observation, RunState
from cube.ports.driver import Driver
from cube.services.formation import NodeRecord, Records


async def end_tasks(config: Config) -> int:
    """Everything that this data directory's node started is killed and removed; how many ran.
    Raises Unavailable while its agent still runs."""
    disk = FileDisk(Path(config.node.data_dir))
    try:
        record = Records(disk, NodeRecord(node_id=NodeId("nobody"), raft_address="")).now
        if record.cluster_id is None:
            return 0
        drivers = make_drivers(
            config,
            ClusterId(record.cluster_id),
            record.node_id,
            SystemClock(),
            is_root=os.geteuid() == 0,
        )
        counts = [await _end(driver) for driver in drivers.values()]
        return sum(counts)
    finally:
        disk.close()


async def _end(driver: Driver) -> int:
    ended = 0
    await driver.open(lambda _: None)
    try:
        with contextlib.suppress(DriverFailed):  # no engine: nothing of ours runs there
            for found in await driver.recover():
                ended += found.state is RunState.RUNNING
                await _end_one(driver, found)
            if isinstance(driver, DockerDriver):  # the process driver's is in the data directory
                await driver.remove_kept()
            if isinstance(driver, ProcessDriver):
                await driver.give_up()
    finally:
        await driver.close()
    return ended


async def _end_one(driver: Driver, found: Observation) -> None:
    with contextlib.suppress(DriverFailed):
        await driver.stop(found.task_id, found.attempt, "SIGKILL", 0)
        await driver.remove(found.task_id, keep_logs=False)


def end_tasks_now(config: Config) -> int:
    """end_tasks() for a program that has no event loop."""
    return asyncio.run(end_tasks(config))
