"""What a removed node left on a host or an engine is ended by another node; nothing else is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from cube.adapters.docker_driver import DockerDriver
from cube.adapters.process.driver import ProcessDriver
from cube.adapters.process.reaping import ORDER_BYTES_MAX
from cube.adapters.process.wire import pack
from cube.adapters.system_clock import SystemClock
from cube.model.ids import ClusterId, NodeId
from cube.model.launch import Launch, RunState
from cube.ports.reaper import Reaper
from tests.contract.docker_rig import DockerRig, engine_for_tests
from tests.contract.driver_cases import new_task_id, until
from tests.contract.process_rig import CLUSTER, ProcessRig, pids_of, process_rig, settings_for

OTHERS = ClusterId("cluster-of-others")


@pytest.fixture(params=["groups", "no groups"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ProcessRig]:
    async with process_rig(tmp_path / "tasks", settings_for(request.param, tmp_path)) as rig:
        yield rig


@contextlib.asynccontextmanager
async def neighbour(
    rig: ProcessRig, cluster: ClusterId = CLUSTER
) -> AsyncIterator[tuple[ProcessDriver, Launch]]:
    """The driver of another node on this host, with a data directory of its own, and a launch."""
    node = NodeId(f"node-{secrets.token_hex(4)}")
    driver = rig._new(cluster, node)
    await driver.open(lambda _: None)
    launch = msgspec.structs.replace(rig.launch(new_task_id()), cluster_id=cluster, node_id=node)
    try:
        yield driver, launch
    finally:
        for seen in await driver.recover():
            if seen.state is RunState.RUNNING:
                await driver.stop(seen.task_id, seen.attempt, "SIGKILL", 0)
            await driver.remove(seen.task_id, keep_logs=False)
        await driver.close()


def test_both_drivers_reap() -> None:
    for kind in (ProcessDriver, DockerDriver):
        assert issubclass(kind, Reaper), kind


async def test_processes_of_removed_nodes_end_and_those_of_others_live(rig: ProcessRig) -> None:
    async with (
        neighbour(rig) as (removed, gone),
        neighbour(rig) as (member, lives),
        neighbour(rig, OTHERS) as (others, foreign),
    ):
        gone = rig.forks(gone)
        await removed.start(gone)
        await member.start(lives)
        await others.start(foreign)
        own = rig.launch(new_task_id())
        await rig.driver.start(own)

        async def has_forked() -> bool:
            return len(pids_of(gone.task_id)) >= 3

        await until(has_forked, rig.patience_s)
        await removed.close()
        assert await rig.process_driver.reap(set()) == 0
        # Of another cluster only ids that cannot be: but whoever asks for them ends nothing.
        named = {gone.node_id, rig.node_id, NodeId("../evil")}
        if rig.process_driver.cgroup_version == "none":
            named.add(foreign.node_id)
        assert await rig.process_driver.reap(named) == 1
        assert pids_of(gone.task_id) == set()
        assert all(len(pids_of(one.task_id)) == 1 for one in (own, lives, foreign))
        assert await rig.process_driver.reap(named) == 0
        for home in rig.process_driver._attempts.cgroups.homes_of(gone.node_id):
            assert not home.exists()


async def test_a_removed_nodes_processes_end_without_and_with_a_stopped_supervisor(
    rig: ProcessRig,
) -> None:
    async with neighbour(rig) as (removed, launch):
        handles = []
        for task_id in (launch.task_id, new_task_id()):
            one = msgspec.structs.replace(launch, task_id=task_id, env={"CUBE_TASK_ID": task_id})
            seen = await removed.start(one)
            handles.append((task_id, int(Path(f"/proc/{seen.handle}/stat").read_text().split()[3])))
        await removed.close()
        (stopped, supervisor), (killed, other) = handles
        os.kill(supervisor, signal.SIGSTOP)
        wanted = 1
        if rig.process_driver.cgroup_version != "none":
            os.kill(other, signal.SIGKILL)  # without groups nothing says whose it was
            wanted = 2
        assert await rig.process_driver.reap({launch.node_id}) >= wanted
        assert pids_of(stopped) == pids_of(killed) == set()


async def test_two_agents_reap_at_once(rig: ProcessRig) -> None:
    async with neighbour(rig) as (removed, launch), neighbour(rig) as (other, _):
        await removed.start(launch)
        await removed.close()
        await asyncio.gather(
            *(driver.reap({launch.node_id}) for driver in (rig.process_driver, other))
        )
        assert pids_of(launch.task_id) == set()


@contextlib.contextmanager
def forged_order(victim: Launch, node: NodeId, size: int = 0) -> Iterator[int]:
    """A descriptor of one that names a removed node, and the task of one that is none."""
    order = pack(
        [
            ("mode", b"supervise"),
            ("cluster_id", CLUSTER.encode()),
            ("node_id", node.encode()),
            ("task_id", victim.task_id.encode()),
            ("attempt", b"1"),
        ]
    )
    fd = os.memfd_create("cube-order")
    try:
        os.write(fd, order)
        os.truncate(fd, max(size, len(order)))
        yield fd
    finally:
        os.close(fd)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("who", ["another user", "root of a container", "more than an order"])
async def test_an_order_that_somebody_made_up_has_nothing_killed(rig: ProcessRig, who: str) -> None:
    victim = rig.launch(new_task_id())
    await rig.driver.start(victim)
    node = NodeId("node-removed")
    with forged_order(victim, node, ORDER_BYTES_MAX + 1 if who.startswith("more") else 0) as fd:
        if who == "root of a container":
            words = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c",
                     f"exec sleep 1000 < /proc/self/fd/{fd}"]  # fmt: skip
            forger = subprocess.Popen(words, stdin=subprocess.DEVNULL, pass_fds=[fd])
        else:
            user = 65534 if who == "another user" else None
            forger = subprocess.Popen(["sleep", "1000"], stdin=fd, user=user)
        try:

            async def is_there() -> bool:
                return any(
                    link.startswith("/memfd:cube-order") for link in stdins_below(forger.pid)
                )

            await until(is_there, rig.patience_s)
            assert await rig.process_driver.reap({node}) == 0
            assert forger.poll() is None
            assert pids_of(victim.task_id)
        finally:
            forger.kill()
            forger.wait()


def stdins_below(pid: int) -> list[str]:
    """What the process and its children have as descriptor 0."""
    found = []
    for one in (pid, *(child.pid for child in psutil.Process(pid).children())):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{one}/fd/0"))
    return found


# -- containers -------------------------------------------------------------------------------------


@pytest.mark.docker
async def test_containers_of_removed_nodes_end_and_all_others_live() -> None:
    rig = DockerRig(engine_for_tests())
    await rig.open()
    drivers: list[DockerDriver] = []
    foreign = ClusterId(f"others-{secrets.token_hex(4)}")
    try:
        launches = []
        for cluster, node in (
            (rig.cluster_id, NodeId("removed")),
            (rig.cluster_id, NodeId("removed")),
            (rig.cluster_id, NodeId("member")),
            (foreign, NodeId("removed")),
            (rig.cluster_id, rig.node_id),
        ):
            driver = DockerDriver(cluster, node, rig.settings, SystemClock())
            await driver.open(lambda _: None)
            drivers.append(driver)
            launch = msgspec.structs.replace(
                rig.prints_for_ever(rig.launch(new_task_id()), "x"),
                cluster_id=cluster,
                node_id=node,
            )
            await driver.prepare(launch)
            await driver.start(launch)
            launches.append(launch)
        ended = launches[1]
        await drivers[1].stop(ended.task_id, 1, "SIGKILL", 0)
        await drivers[1].remove(ended.task_id, keep_logs=True)
        assert isinstance(rig.driver, DockerDriver)
        renamed = rig.client.create_container(
            "busybox:latest",
            ["true"],
            name=f"mine-{secrets.token_hex(4)}",
            labels=rig.inspected(launches[0].task_id)["Config"]["Labels"],
        )
        assert await rig.driver.reap({NodeId("nobody")}) == 0
        named = {NodeId("removed"), rig.node_id}
        assert await rig.driver.reap(named) == 2
        assert await rig.driver.reap(named) == 0
        left = rig.client.containers(all=True, filters={"label": "cube.task"})
        ids = {item["Labels"]["cube.task"] for item in left if item["Id"] != renamed["Id"]}
        assert {launch.task_id for launch in launches[2:]} <= ids
        assert ids.isdisjoint({launches[0].task_id, launches[1].task_id})
        assert rig.client.inspect_container(renamed["Id"])
    finally:
        for opened in drivers:
            await opened.close()
        for item in rig.client.containers(all=True, filters={"label": f"cube.cluster={foreign}"}):
            rig.client.remove_container(item["Id"], force=True)
        await rig.close()
