"""A host with a Docker Engine, for tests of the docker driver. The image is busybox."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import docker
import docker.errors
import msgspec
import pytest
import requests

from cube.adapters.docker_driver import DockerDriver, DockerSettings
from cube.adapters.docker_engine import transport
from cube.adapters.system_clock import SystemClock
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Launch, Observation
from cube.model.spec import DockerOptions
from cube.ports.driver import Driver
from tests.contract.driver_cases import until

CHECKOUT = Path(__file__).resolve().parents[2]
ENGINE_ENV = "CUBE_TEST_DOCKER_HOST"
DEFAULT_HOST = "unix:///var/run/docker.sock"
IMAGE = "busybox:latest"
PROBE_S = 30

# As the first process of a container a shell ends by SIGTERM only when it says so.
OBEYS = "trap 'exit 0' TERM; "
WAITS = "while :; do sleep 1000 & wait $!; done"


def shell(launch: Launch, script: str) -> Launch:
    return msgspec.structs.replace(launch, command=("sh", "-c", script))


def connect(host: str) -> docker.APIClient:
    """A plain client, for looking at what the driver did without it."""
    return transport.connect({"base_url": host}, PROBE_S)


def engine_for_tests() -> str:
    """The host of an engine that answers and has the image; skips the test when there is none."""
    host = os.environ.get(ENGINE_ENV, DEFAULT_HOST)
    try:
        with contextlib.closing(connect(host)) as client:
            client.ping()
    except (docker.errors.DockerException, requests.RequestException) as error:
        pytest.skip(
            f"no Docker Engine at {host}: scripts/test-engine start DIR, and set {ENGINE_ENV}"
            f" to what it prints ({error})"
        )
    add_image(host)
    return host


def add_image(host: str) -> None:
    script = CHECKOUT / "scripts" / "busybox-image"
    subprocess.run([sys.executable, script, "--host", host], check=True, capture_output=True)


class DockerRig:
    """cube's tests.contract.driver_cases.Rig on the engine at `host`."""

    has_paths = True  # of tests.contract.file_cases.FileRig
    patience_s = 60.0  # a loaded machine; one start takes a third of a second

    def __init__(self, host: str, settings: DockerSettings | None = None) -> None:
        self.host = host
        self.cluster_id = ClusterId(f"test-{secrets.token_hex(4)}")
        self.node_id = NodeId(f"node-{secrets.token_hex(4)}")
        self.settings = settings or DockerSettings(host=host)
        self.changes: list[Observation] = []
        self.client: Any = connect(host)  # untyped: tests poke where the stubs do not reach
        self.driver: Driver = self._new_driver()
        self._generation = 0

    async def open(self) -> None:
        """What is told after a kill_agent() is told to nobody."""
        generation = self._generation

        def on_change(seen: Observation) -> None:
            if generation == self._generation:
                self.changes.append(seen)

        await self.driver.open(on_change)

    async def restart(self) -> Driver:
        await self.kill_agent()
        self.driver = self._new_driver()
        await self.open()
        return self.driver

    async def kill_agent(self) -> None:
        # close() sends the engine nothing: to it, a closed driver and a killed one look the same.
        self._generation += 1
        await self.driver.close()

    async def stranger(self) -> Driver:
        driver = DockerDriver(
            ClusterId("another-cluster"), NodeId("another-node"), self.settings, SystemClock()
        )
        await driver.open(lambda _: None)
        return driver

    async def close(self) -> None:
        await self.driver.close()
        for container in self.containers():
            with contextlib.suppress(docker.errors.NotFound):
                self.client.remove_container(container["Id"], force=True, v=True)
        self.client.close()

    def _new_driver(self) -> DockerDriver:
        return DockerDriver(self.cluster_id, self.node_id, self.settings, SystemClock())

    def containers(self, task_id: TaskId | None = None) -> list[dict[str, Any]]:
        """What the engine has of this rig's cluster."""
        labels = [f"cube.cluster={self.cluster_id}"]
        if task_id is not None:
            labels.append(f"cube.task={task_id}")
        listed: list[dict[str, Any]] = self.client.containers(all=True, filters={"label": labels})
        return listed

    def inspected(self, task_id: TaskId, attempt: int = 1) -> dict[str, Any]:
        found: dict[str, Any] = self.client.inspect_container(f"cube-{task_id}-{attempt}")
        return found

    def launch(self, task_id: TaskId, attempt: int = 1) -> Launch:
        return Launch(
            cluster_id=self.cluster_id,
            node_id=self.node_id,
            task_id=task_id,
            task_name="job.group.0",
            job="job",
            group="group",
            attempt=attempt,
            image=IMAGE,
            command=("sh", "-c", OBEYS + WAITS),
            memory_limit_bytes=32 << 20,
            pids_limit=64,
        )

    def runs(self, launch: Launch, script: str) -> Launch:
        return shell(launch, OBEYS + script)

    def exits(self, launch: Launch, code: int) -> Launch:
        return shell(launch, f"exit {code}")

    def prints(self, launch: Launch, stdout: str, stderr: str = "") -> Launch:
        script = 'printf %s "$OUT"; printf %s "$ERR" >&2'
        env = {"OUT": stdout, "ERR": stderr}
        return msgspec.structs.replace(shell(launch, script), env=env)

    def prints_for_ever(self, launch: Launch, line: str) -> Launch:
        return shell(launch, f"{OBEYS}while :; do echo {line}; sleep 0.1 & wait $!; done")

    def ignores_sigterm(self, launch: Launch) -> Launch:
        return shell(launch, f"trap '' TERM; echo ready; {WAITS}")

    def forks(self, launch: Launch) -> Launch:
        return shell(
            launch, f"{OBEYS}sleep 1000 & setsid sleep 1000 & sleep 0.2; echo ready; {WAITS}"
        )

    def cannot_start(self, launch: Launch) -> Launch:
        """With an init the container starts, and init ends with 127: see test_docker_driver.py."""
        without = DockerOptions(init=False)
        return msgspec.structs.replace(launch, command=("/no/such/command",), docker=without)

    def argv_that_says(self, text: str, code: int) -> tuple[str, ...]:
        return ("sh", "-c", f"echo {text}; exit {code}")

    def argv_that_never_ends(self) -> tuple[str, ...]:
        return ("sleep", "1234")

    def argv_that_copies(self) -> tuple[str, ...]:
        return ("cat",)

    def argv_that_tells_its_size(self) -> tuple[str, ...]:
        return ("sh", "-c", "while :; do stty size; sleep 0.1; done")

    def argv_that_pours(self) -> tuple[str, ...]:
        return ("sh", "-c", "head -c 67108864 /dev/zero | tr '\\0' x")

    async def process_count(self, task_id: TaskId) -> int:
        """Once each init has begun its command."""
        ids = [container["Id"] for container in self.containers(task_id)]
        return sum([len(await begun_in(self, container_id)) for container_id in ids])


def with_options(launch: Launch, **options: Any) -> Launch:
    return msgspec.structs.replace(launch, docker=DockerOptions(**options))


async def run(rig: DockerRig, launch: Launch) -> Observation:
    await rig.driver.prepare(launch)
    return await rig.driver.start(launch)


async def begun_in(rig: DockerRig, container_id: str) -> list[int]:
    """The pids of a container; of one that runs, once its init, if it has one, has begun the command."""
    seen = rig.client.inspect_container(container_id)
    least = 1 + bool(seen["HostConfig"]["Init"]) if seen["State"]["Running"] else 0

    async def has_begun() -> bool:
        return len(processes_in(container_id)) >= least

    await until(has_begun, rig.patience_s)
    return processes_in(container_id)


def processes_in(container_id: str) -> list[int]:
    """The pids on this host whose cgroup is the container's."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if container_id in path.read_text():
                pids.append(int(path.parent.name))
    return pids
