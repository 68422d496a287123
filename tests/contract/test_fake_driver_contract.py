"""The fake driver keeps the contract that the real ones keep, or tests over it prove nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from cube.adapters.fake_driver import FakeDriver, FakeHost
from cube.model.errors import DriverFailed
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.images import canonical
from cube.model.launch import Launch, Observation, RunState
from cube.ports.driver import Driver
from tests.contract.driver_cases import DriverContract, Rig, new_task_id
from tests.contract.image_cases import ImageContract
from tests.contract.session_cases import SessionContract

CLUSTER = ClusterId("cluster-1")
NODE = NodeId("node-1")


class TestClock:
    __test__ = False

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


def with_env(launch: Launch, **env: str) -> Launch:
    return msgspec.structs.replace(launch, env=launch.env | env)


class FakeRig:
    patience_s = 5.0

    def __init__(self) -> None:
        self.host = FakeHost()
        self.changes: list[Observation] = []
        self.driver: Driver = self._new(CLUSTER, NODE)

    def _new(self, cluster_id: ClusterId, node_id: NodeId) -> FakeDriver:
        return FakeDriver(cluster_id, node_id, self.host, TestClock())

    async def restart(self) -> Driver:
        await self.kill_agent()
        self.driver = self._new(CLUSTER, NODE)
        await self.driver.open(self.changes.append)
        return self.driver

    async def kill_agent(self) -> None:
        self.host.listeners.clear()

    async def stranger(self) -> Driver:
        driver = self._new(ClusterId("cluster-2"), NodeId("node-2"))
        await driver.open(self.changes.append)
        return driver

    def launch(self, task_id: TaskId, attempt: int = 1) -> Launch:
        return Launch(
            cluster_id=CLUSTER,
            node_id=NODE,
            task_id=task_id,
            task_name="job.group.1",
            job="job",
            group="group",
            attempt=attempt,
            command=("run",),
        )

    def exits(self, launch: Launch, code: int) -> Launch:
        return with_env(launch, FAKE_RUN_FOR_MS="10", FAKE_EXIT_CODE=str(code))

    def prints(self, launch: Launch, stdout: str, stderr: str = "") -> Launch:
        return with_env(launch, FAKE_RUN_FOR_MS="10", FAKE_STDOUT=stdout, FAKE_STDERR=stderr)

    def prints_for_ever(self, launch: Launch, line: str) -> Launch:
        return with_env(launch, FAKE_TICK=line)

    def ignores_sigterm(self, launch: Launch) -> Launch:
        return with_env(launch, FAKE_IGNORE_SIGTERM="1", FAKE_STDOUT="ready\n")

    def forks(self, launch: Launch) -> Launch:
        return with_env(launch, FAKE_STDOUT="ready\n")

    def cannot_start(self, launch: Launch) -> Launch:
        return msgspec.structs.replace(launch, command=("/no/such/command",))

    def argv_that_says(self, text: str, code: int) -> tuple[str, ...]:
        return ("say", text, str(code))

    def argv_that_never_ends(self) -> tuple[str, ...]:
        return ("hang",)

    def argv_that_copies(self) -> tuple[str, ...]:
        return ("copy",)

    def argv_that_tells_its_size(self) -> tuple[str, ...]:
        return ("size",)

    def argv_that_pours(self) -> tuple[str, ...]:
        return ("pour", str(64 << 20))

    # tests.contract.image_cases.ImageRig

    def publish(self, name: str, tag: str, content: str) -> str:
        image = f"registry.test/{name}:{tag}"
        self.host.digests[image] = f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
        return image

    def pull_by_hand(self, image: str) -> None:
        self.host.images.pull(image, self.host.digests[image])

    def tag_by_hand(self, image: str, other: str) -> str:
        found = self.host.images.find(image)
        assert found is not None
        self.host.images.names[found].add(canonical(other))
        return canonical(other)

    def build_by_hand(self, image: str) -> None:
        found = self.host.images.find(image)
        assert found is not None
        self.host.images.bases.add(found)

    def run_by_hand(self, image: str) -> str:
        found = self.host.images.find(image)
        assert found is not None
        self.host.images.containers["somebody"] = found
        return "somebody"

    async def process_count(self, task_id: TaskId) -> int:
        attempt = self.host.attempts.get((NODE, task_id))
        return 3 if attempt is not None and attempt.seen.state is RunState.RUNNING else 0


@pytest.fixture
async def rig() -> AsyncIterator[FakeRig]:
    rig = FakeRig()
    await rig.driver.open(rig.changes.append)
    yield rig
    rig.host.halt()


@pytest.fixture
def image_rig(rig: FakeRig) -> FakeRig:
    return rig


class TestFakeDriver(DriverContract, SessionContract, ImageContract):
    """All cases."""


async def test_what_the_environment_asks_for_happens(rig: FakeRig) -> None:
    lasting = with_env(rig.launch(new_task_id()), FAKE_PREPARE_ERROR="image_missing")
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.prepare(lasting)
    assert (failed.value.code, failed.value.transient) == ("image_missing", False)

    passing = with_env(rig.launch(new_task_id()), FAKE_START_ERROR="engine_busy:transient")
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.start(passing)
    assert (failed.value.code, failed.value.transient) == ("engine_busy", True)
    assert rig.host.starts == {}


async def test_an_engine_that_is_down_fails_every_call_and_says_why(rig: FakeRig) -> None:
    rig.host.engine_down = True
    assert not (await rig.driver.fingerprint()).healthy
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.inspect(new_task_id(), 1)
    assert (failed.value.code, failed.value.transient) == ("engine_down", True)


def test_the_rig_is_a_rig() -> None:
    rig: Rig = FakeRig()
    assert rig.driver.name == "fake"
