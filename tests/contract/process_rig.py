"""One host with one node's process driver on it, for the contract and for tests of the driver itself."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cube.adapters.process.driver import ProcessDriver
from cube.adapters.process.host import all_stats, is_dead, read_text
from cube.adapters.process.settings import ProcessSettings
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Launch, Observation, RunState
from cube.ports.driver import Driver

CLUSTER = ClusterId("cluster-1")


UNIFIED = Path("/sys/fs/cgroup/unified")  # version 2 beside version 1, with no limits, but real


def settings_for(kind: str, tmp_path: Path) -> ProcessSettings:
    """The host's own groups, none, or those of version 2 on a host that has both."""
    roots = {"no groups": tmp_path / "nothing-mounted-here", "version 2": UNIFIED}
    if kind == "version 2" and not (UNIFIED / "cgroup.controllers").exists():
        pytest.skip("no second hierarchy here")
    return ProcessSettings(cgroup_root=str(roots[kind])) if kind in roots else ProcessSettings()


class WallClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


def pids_of(task_id: TaskId) -> set[int]:
    """All living processes that were started with this task's id in their environment."""
    mark = f"CUBE_TASK_ID={task_id}"
    return {
        pid
        for pid, stat in all_stats().items()
        if not is_dead(stat[0]) and mark in read_text(f"/proc/{pid}/environ").split("\0")
    }


class ProcessRig:
    has_paths = False  # of tests.contract.file_cases.FileRig
    patience_s = 15.0

    def __init__(self, directory: Path, settings: ProcessSettings | None = None) -> None:
        self.directory = directory
        self.node_id = NodeId(f"node-{secrets.token_hex(4)}")
        # A parent of its own: what is left of the groups is found by nobody else, and removed.
        self.settings = msgspec.structs.replace(
            settings or ProcessSettings(), cgroup_parent=f"cube-test-{secrets.token_hex(4)}"
        )
        self.changes: list[Observation] = []
        self.process_driver = self._new(CLUSTER, self.node_id)
        self.driver: Driver = self.process_driver

    def _new(self, cluster_id: ClusterId, node_id: NodeId) -> ProcessDriver:
        directory = self.directory / node_id
        return ProcessDriver(cluster_id, node_id, directory, WallClock(), self.settings)

    async def open(self) -> None:
        await self.process_driver.open(self.changes.append)

    async def restart(self) -> Driver:
        await self.kill_agent()
        self.driver = self.process_driver = self._new(CLUSTER, self.node_id)
        await self.open()
        return self.driver

    async def kill_agent(self) -> None:
        # As death does it: no task is told anything, all of the agent's descriptors are closed.
        await self.process_driver.close()

    async def stranger(self) -> Driver:
        stranger = self._new(ClusterId("cluster-2"), NodeId("node-stranger"))
        await stranger.open(self.changes.append)
        return stranger

    def launch(self, task_id: TaskId, attempt: int = 1) -> Launch:
        return Launch(
            cluster_id=CLUSTER,
            node_id=self.node_id,
            task_id=task_id,
            task_name="job.group.1",
            job="job",
            group="group",
            attempt=attempt,
            command=("sleep", "1000"),
            env={"CUBE_TASK_ID": task_id},
        )

    def shell(self, launch: Launch, script: str) -> Launch:
        return msgspec.structs.replace(launch, command=("sh", "-c", script))

    def runs(self, launch: Launch, script: str) -> Launch:
        return self.shell(launch, script)

    def exits(self, launch: Launch, code: int) -> Launch:
        return self.shell(launch, f"exit {code}")

    def prints(self, launch: Launch, stdout: str, stderr: str = "") -> Launch:
        script = f"printf %s {shlex.quote(stdout)}; printf %s {shlex.quote(stderr)} >&2"
        return self.shell(launch, script)

    def prints_for_ever(self, launch: Launch, line: str) -> Launch:
        return self.shell(launch, f"while :; do echo {shlex.quote(line)}; sleep 0.02; done")

    def ignores_sigterm(self, launch: Launch) -> Launch:
        return self.shell(launch, "trap '' TERM; echo ready; while :; do sleep 0.05; done")

    def forks(self, launch: Launch) -> Launch:
        script = "sleep 1000 & setsid sleep 1000 & sleep 0.1; echo ready; wait"
        return self.shell(launch, script)

    def cannot_start(self, launch: Launch) -> Launch:
        return msgspec.structs.replace(launch, command=("no-such-command-here",))

    def argv_that_says(self, text: str, code: int) -> tuple[str, ...]:
        return ("sh", "-c", f"echo {shlex.quote(text)}; exit {code}")

    def argv_that_never_ends(self) -> tuple[str, ...]:
        return ("sleep", "1000")

    def argv_that_copies(self) -> tuple[str, ...]:
        return ("cat",)

    def argv_that_tells_its_size(self) -> tuple[str, ...]:
        return ("sh", "-c", "while :; do stty size; sleep 0.1; done")

    def argv_that_pours(self) -> tuple[str, ...]:
        return ("sh", "-c", "head -c 67108864 /dev/zero | tr '\\0' x")

    async def process_count(self, task_id: TaskId) -> int:
        return len(pids_of(task_id))

    async def clean_up(self) -> None:
        driver = self.process_driver
        if driver.fault:
            await driver.open(self.changes.append)
        for seen in await driver.recover():
            if seen.state is RunState.RUNNING:
                await driver.stop(seen.task_id, seen.attempt, "SIGKILL", 0)
            await driver.remove(seen.task_id, keep_logs=False)
        await driver.close()
        for controller in ("", "cpu", "memory", "pids"):
            parent = Path(self.settings.cgroup_root) / controller / self.settings.cgroup_parent
            for home in (*(parent.iterdir() if parent.is_dir() else ()), parent):
                with contextlib.suppress(OSError):
                    os.rmdir(home)


@contextlib.asynccontextmanager
async def process_rig(
    directory: Path, settings: ProcessSettings | None = None
) -> AsyncIterator[ProcessRig]:
    rig = ProcessRig(directory, settings)
    await rig.open()
    try:
        yield rig
    finally:
        await rig.clean_up()
