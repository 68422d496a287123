"""Agents that are killed and started again over and over, with tasks that must not notice, among
things that look like theirs and are not."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import docker.errors

from cube.adapters.process.driver import ProcessDriver
from cube.adapters.process.host import is_dead, read_text, start_time, stat_of
from cube.adapters.system_clock import SystemClock
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Launch, RunState
from tests.contract.process_rig import pids_of
from tests.e2e.harness import Json, Node, TestCluster, wait_for

JOBS = {"process": "sleepers", "docker": "boxes"}  # by driver
DIRECTORY = "tasks"  # of the process driver, below an agent's data directory
ADOPTED_S = 120.0  # a busy machine; the figure is what counts
LOOK_S = 0.005


def job(driver: str, count: int) -> Json:
    group: Json = {
        "count": count,
        "driver": driver,
        "command": ["sleep", "1000000"],
        "stop_signal": "SIGKILL",
        "resources": {"cpu": 0.01, "memory": "8MiB"},
    }
    if driver == "docker":
        group["image"] = "busybox"
    return {"name": JOBS[driver], "type": "service", "groups": {"g": group}}


@dataclass(frozen=True)
class Death:
    """One agent's, and its return. Milliseconds from the kill until its log says, by driver, that all
    that the driver has was found and is looked after again; and until it answers. `import_ms`: until
    the first line of its log, which is how long an interpreter takes here to load the agent."""

    node: str
    adopted_ms: dict[str, int]
    ready_ms: int
    import_ms: int


@dataclass
class Adoption:
    """Wanted tasks on a cluster that has formed, and everything that may not be touched.

    `engine`: the one that all agents share; None: no containers.
    """

    cluster: TestCluster
    counts: dict[str, int]  # of tasks by driver
    engine: docker.APIClient | None = None
    wanted: set[tuple[object, ...]] = field(default_factory=set)
    _decoys: list[ProcessDriver] = field(default_factory=list)
    _processes: dict[int, int] = field(default_factory=dict)  # decoys: pid → start time
    _containers: list[str] = field(default_factory=list)  # decoys
    _alone: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """All tasks run, and the decoys with them."""
        for driver, count in self.counts.items():
            self.cluster.running()[0].call("POST", "/v1/jobs", job(driver, count))
        for driver, count in self.counts.items():
            self.cluster.serving(JOBS[driver], count)
        asyncio.run(self._plant_processes())
        self._plant_containers()
        self.wanted = self.seen()

    def seen(self) -> set[tuple[object, ...]]:
        """Of each task what must not change. Its process or container is there, and the same one."""
        found: set[tuple[object, ...]] = set()
        for driver in self.counts:
            for task in self.cluster.tasks(JOBS[driver]):
                began = self._began(driver, task["handle"])
                history = len(task["history"])
                found.add(
                    (task["id"], task["handle"], task["attempt"], task["state"], history, began)
                )
        return found

    def _began(self, driver: str, handle: str) -> object:
        if driver == "process":
            stat = stat_of(int(handle))
            return None if stat is None or is_dead(stat[0]) else stat[3]
        assert self.engine is not None
        state = self.engine.inspect_container(handle)["State"]
        return state["StartedAt"] if state["Running"] else None

    # Deaths

    def kill(self, node: Node, *, with_strays: bool = False) -> Death:
        """The agent was killed, and is back: nothing that is wanted has changed, nothing else was
        touched, and what is not wanted is gone. `with_strays`: something that is not wanted and has
        its marks appeared meanwhile."""
        where = self._identity(node)
        log_bytes = node.log.stat().st_size
        began = time.monotonic()
        node.kill()
        strays = self._plant_strays(node, *where) if with_strays else []
        self.cluster.start(node)
        adopted, import_ms = self._adopted_ms(node, log_bytes, began)
        wait_for(f"{node.name} answers", node.is_ready)
        ready_ms = _since_ms(began)
        for stray in strays:
            wait_for("what is not wanted is gone", lambda s=stray: self._is_gone(s))  # type: ignore[misc]
        seen = self.seen()
        assert seen == self.wanted, f"not as before: {sorted(map(str, seen ^ self.wanted))}"
        self.check_decoys()
        return Death(node.name, adopted, ready_ms, import_ms)

    def _identity(self, node: Node) -> tuple[ClusterId, NodeId]:
        told = node.get("/v1/status")
        return ClusterId(told["cluster_id"]), NodeId(told["node"]["id"])

    def _adopted_ms(self, node: Node, log_bytes: int, began: float) -> tuple[dict[str, int], int]:
        adopted: dict[str, int] = {}
        import_ms = 0
        while len(adopted) < len(self.counts):
            assert time.monotonic() < began + ADOPTED_S, f"not adopted:\n{self.cluster.logs()}"
            time.sleep(LOOK_S)
            with node.log.open(errors="replace") as log:
                log.seek(log_bytes)
                told = log.read()
            import_ms = import_ms or (_since_ms(began) if told else 0)
            for driver in self.counts:
                if driver not in adopted and f"recovered driver={driver} " in told:
                    adopted[driver] = _since_ms(began)
        return adopted, import_ms

    # What is not wanted

    def _plant_strays(self, node: Node, cluster_id: ClusterId, node_id: NodeId) -> list[TaskId]:
        """As an agent would have made them: of tasks that no state knows."""
        strays = []
        if "process" in self.counts:
            launch = _launch(cluster_id, node_id)
            asyncio.run(_start_one(node.directory / DIRECTORY, launch))
            strays.append(launch.task_id)
        if self.engine is not None:
            task_id = TaskId(secrets.token_hex(8))
            labels = _labels(cluster_id, node_id, task_id)
            self._run_container(f"cube-{task_id}-1", labels)
            strays.append(task_id)
        return strays

    def _is_gone(self, task_id: TaskId) -> bool:
        if pids_of(task_id):
            return False
        try:
            return self.engine is None or not self.engine.inspect_container(f"cube-{task_id}-1")
        except docker.errors.NotFound:
            return True

    # What is not ours

    async def _plant_processes(self) -> None:
        """Tasks of the same driver of other nodes on this host, and a process that nobody marked."""
        if "process" not in self.counts:
            return
        cluster_id, _ = self._identity(self.cluster.running()[0])
        marks = [
            (ClusterId("another-cluster"), _some_node()),
            (cluster_id, _some_node()),
        ]
        for number, (cluster, node) in enumerate(marks):
            directory = self.cluster.directory / f"decoy-{number}"
            launch = _launch(cluster, node)
            self._decoys.append(_driver(directory, launch))
            pid = int(await _start_one(directory, launch))
            self._processes[pid] = start_time(pid)
        self._alone = subprocess.Popen(
            ["/bin/sleep", "1000000"], env={"CUBE_TASK_ID": secrets.token_hex(8)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._processes[self._alone.pid] = start_time(self._alone.pid)

    def _plant_containers(self) -> None:
        if self.engine is None:
            return
        cluster_id, node_id = self._identity(self.cluster.running()[0])
        task_id = TaskId(secrets.token_hex(8))
        whole = _labels(cluster_id, node_id, task_id)
        without_task = {key: value for key, value in whole.items() if key != "cube.task"}
        for name, labels in (
            (f"cube-{secrets.token_hex(8)}-1", {}),
            (f"cube-{secrets.token_hex(8)}-1", without_task),
            (f"cube-{task_id}-1", _labels(ClusterId("another"), node_id, task_id)),
            (f"cube-{secrets.token_hex(8)}-1", _labels(cluster_id, NodeId("other"), task_id)),
            (f"mine-{secrets.token_hex(8)}", whole),  # a copy by hand, with all the labels
        ):
            self._containers.append(self._run_container(name, labels))

    def _run_container(self, name: str, labels: dict[str, str]) -> str:
        assert self.engine is not None
        made: dict[str, Any] = self.engine.create_container(
            "busybox:latest", ["sleep", "1000000"], name=name, labels=labels
        )
        self.engine.start(made["Id"])
        return str(made["Id"])

    def check_decoys(self) -> None:
        """All that is not Cube's is as it was."""
        for pid, started in self._processes.items():
            stat = stat_of(pid)
            assert stat is not None, f"decoy {pid} is gone"
            assert stat[3] == started, f"decoy {pid} is another process"
            assert not is_dead(stat[0]), f"decoy {pid} was killed"
        for container in self._containers:
            assert self.engine is not None
            assert self.engine.inspect_container(container)["State"]["Running"], container

    def clean_up(self) -> None:
        """No decoy is left."""
        if self.engine is not None:
            for container in self._containers:
                self.engine.remove_container(container, force=True)
        asyncio.run(self._end_decoys())

    async def _end_decoys(self) -> None:
        for driver in self._decoys:
            await driver.open(lambda _: None)
            for seen in await driver.recover():
                if seen.state is RunState.RUNNING:
                    await driver.stop(seen.task_id, seen.attempt, "SIGKILL", 0)
                await driver.remove(seen.task_id, keep_logs=False)
            await driver.close()
        if self._alone is not None:
            self._alone.kill()
            self._alone.wait()

    # What a supervisor costs

    def supervisor_kib(self) -> dict[str, float]:
        """Medians over all tasks of the process driver."""
        found: dict[str, list[int]] = {"Rss": [], "Pss": [], "Private_Dirty": []}
        for task in self.cluster.tasks(JOBS["process"]):
            stat = stat_of(int(task["handle"]))
            assert stat is not None
            for line in read_text(f"/proc/{stat[1]}/smaps_rollup").splitlines():
                name, _, rest = line.partition(":")
                if name in found:
                    found[name].append(int(rest.split()[0]))
        return {name.lower(): statistics.median(values) for name, values in found.items()}


def _some_node() -> NodeId:
    """No other run on this host has it: a node ends what is in its groups and not in its directory."""
    return NodeId(f"another-node-{secrets.token_hex(8)}")


def _driver(directory: Path, launch: Launch) -> ProcessDriver:
    return ProcessDriver(launch.cluster_id, launch.node_id, directory, SystemClock())


async def _start_one(directory: Path, launch: Launch) -> str:
    """Its task runs, as by an agent that was killed right afterwards. Returns the handle."""
    driver = _driver(directory, launch)
    await driver.open(lambda _: None)
    await driver.prepare(launch)
    seen = await driver.start(launch)
    await driver.close()
    return seen.handle


def _launch(cluster_id: ClusterId, node_id: NodeId) -> Launch:
    task_id = TaskId(secrets.token_hex(8))
    return Launch(
        cluster_id=cluster_id, node_id=node_id, task_id=task_id, task_name="decoy.g.0", job="decoy",
        group="g", attempt=1, command=("sleep", "1000000"), env={"CUBE_TASK_ID": task_id},
    )  # fmt: skip


def _labels(cluster_id: str, node_id: str, task_id: str) -> dict[str, str]:
    return {
        "cube.cluster": cluster_id,
        "cube.node": node_id,
        "cube.task": task_id,
        "cube.attempt": "1",
    }


def _since_ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
