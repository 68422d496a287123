"""What a process task started ends with it, whoever is there to see to that."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cube.adapters.process.host import boot_id, stat_of
from cube.adapters.process.lease import read_lease, write_lease
from cube.adapters.process.wire import pack, unpack
from cube.model.errors import DriverFailed
from cube.model.launch import Launch, Observation, RunState
from tests.contract.driver_cases import NEVER_MS, ended, new_task_id, read, text, until
from tests.contract.process_rig import ProcessRig, pids_of
from tests.contract.test_process_driver_life import (
    LOST_AFTER_MS,
    STOP_TIMEOUT_MS,
    claim_of,
    daemon_launch,
    lease_file,
    leased,
    monotonic_ms,
    none_left,
    plain_rig,
    rig,
    said,
)

__all__ = ["plain_rig", "rig"]  # fixtures

# -- all that it started ----------------------------------------------------------------------------


async def test_a_daemon_does_not_outlive_a_command_that_ends(rig: ProcessRig) -> None:
    launch = daemon_launch(rig, rig.launch(new_task_id()), "exit 3")
    await rig.driver.start(launch)
    seen = await ended(rig, launch.task_id)
    assert seen.exit_code == 3
    assert pids_of(launch.task_id) == set()
    assert text(await read(rig, launch.task_id)) == "ready\n"


async def test_a_daemon_does_not_outlive_a_stop(rig: ProcessRig) -> None:
    launch = daemon_launch(rig, rig.launch(new_task_id()), "sleep 1000; true")
    await rig.driver.start(launch)
    await said(rig, launch.task_id, "ready\n")

    async def is_a_daemon_too() -> bool:  # a look may miss it between two of its forks
        return len(pids_of(launch.task_id)) >= 3

    await until(is_a_daemon_too, rig.patience_s)
    seen = await rig.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS)
    assert seen.state is RunState.EXITED
    assert pids_of(launch.task_id) == set()


@pytest.mark.parametrize("is_killed", [True, False])
async def test_what_a_command_beside_it_left_ends_with_the_task(
    rig: ProcessRig, tmp_path: Path, is_killed: bool
) -> None:
    go = tmp_path / "go"
    script = f"while [ ! -e {go} ]; do sleep 0.01; done"
    launch = rig.shell(rig.launch(new_task_id()), script)
    await rig.driver.start(launch)
    argv = ("sh", "-c", "sleep 1000 & setsid sleep 1000 & echo left")
    result = await rig.driver.execute(launch.task_id, 1, argv, NEVER_MS)
    assert result.output == b"left\n"
    if is_killed:
        await rig.driver.stop(launch.task_id, 1, "SIGKILL", 0)
    else:
        go.touch()
        await ended(rig, launch.task_id)
    await none_left(launch.task_id)


async def test_each_signal_by_its_name(plain_rig: ProcessRig) -> None:
    rig = plain_rig
    for name, number in (("SIGUSR1", 10), ("INT", 2), ("15", 15), ("SIGKILL", 9)):
        launch = rig.launch(new_task_id())
        await rig.driver.start(launch)
        seen = await rig.driver.stop(launch.task_id, 1, name, NEVER_MS)
        assert seen.exit_code == 128 + number
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.stop(new_task_id(), 1, "SIGSOMETHING", 0)
    assert (failed.value.code, failed.value.transient) == ("bad_signal", False)


async def test_a_kill_does_not_wait_for_a_patient_stop(plain_rig: ProcessRig) -> None:
    rig = plain_rig
    launch = rig.ignores_sigterm(rig.launch(new_task_id()))
    await rig.driver.start(launch)
    await said(rig, launch.task_id, "ready\n")
    patient = asyncio.create_task(rig.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS))
    await asyncio.sleep(0)
    seen = await rig.driver.stop(launch.task_id, 1, "SIGKILL", 0)
    assert seen.exit_code == 137
    assert await patient == seen


async def test_fifty_at_once(rig: ProcessRig) -> None:
    launches = [rig.launch(new_task_id()) for _ in range(50)]
    seen = await asyncio.gather(*(rig.driver.start(launch) for launch in launches))
    assert {o.state for o in seen} == {RunState.RUNNING}
    assert len({o.handle for o in seen}) == 50
    await rig.restart()
    by_id = {o.task_id: o for o in seen}
    assert {o.task_id: o for o in await rig.driver.recover()} == by_id

    async def end(launch: Launch) -> Observation:
        return await rig.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS)

    stopped = await asyncio.gather(*(end(launch) for launch in launches))
    assert {o.exit_code for o in stopped} == {143}
    for launch in launches:
        await rig.driver.remove(launch.task_id, keep_logs=False)
    assert list((rig.directory / rig.node_id).iterdir()) == []


async def test_an_agent_buries_its_supervisors(plain_rig: ProcessRig) -> None:
    rig, me = plain_rig, os.getpid()
    launch = rig.exits(rig.launch(new_task_id()), 0)
    await rig.driver.start(launch)
    pid = claim_of(rig, launch.task_id).supervisor_pid
    await ended(rig, launch.task_id)

    async def is_buried() -> bool:
        stat = stat_of(pid)
        return stat is None or stat[1] != me

    await until(is_buried, rig.patience_s)


def test_an_order_is_read_as_it_was_written() -> None:
    fields = [("argv", b"a=b"), ("argv", b""), ("env", b"X=\n\xff=")]
    assert unpack(pack(fields)) == {"argv": [b"a=b", b""], "env": [b"X=\n\xff="]}
    assert unpack(b"") == {}
    assert len(boot_id()) == 36


# -- leases: nobody but the supervisor is there to end the task ------------------------------------


@pytest.mark.parametrize("stubborn", [False, True])
async def test_without_a_lease_a_task_ends_though_its_agent_is_dead(
    rig: ProcessRig, stubborn: bool
) -> None:
    launch = rig.launch(new_task_id())
    launch = leased(rig, rig.ignores_sigterm(launch) if stubborn else launch)
    await rig.driver.start(launch)
    await rig.kill_agent()

    async def is_gone() -> bool:
        return not pids_of(launch.task_id)

    await until(is_gone, rig.patience_s)
    assert launch.lease is not None
    assert monotonic_ms() >= launch.lease.from_ms + LOST_AFTER_MS, "before its time"
    await rig.open()
    assert (await ended(rig, launch.task_id)).exit_code == (137 if stubborn else 143)


async def test_a_lease_that_is_renewed_keeps_the_task(plain_rig: ProcessRig) -> None:
    rig = plain_rig
    launch = leased(rig, rig.launch(new_task_id()))
    other = leased(rig, rig.launch(new_task_id()))
    write_lease(lease_file(rig), monotonic_ms() + 3_600_000)
    for each in (launch, other):
        await rig.driver.start(each)
    # When the time of the first lease is over, the file is asked.
    await asyncio.sleep(2 * (LOST_AFTER_MS + STOP_TIMEOUT_MS) / 1000)
    assert pids_of(launch.task_id)
    assert (await rig.driver.inspect(other.task_id, 1)).state is RunState.RUNNING


async def test_a_lease_of_another_boot_is_none(plain_rig: ProcessRig) -> None:
    rig = plain_rig
    path = Path(lease_file(rig))
    for content in (
        f"{'0' * len(boot_id())} {10**19:020d}\n",
        f"{boot_id()} soon\n",
        f"{boot_id()} 123\n",
        "",
        "\udcff" * 60,
    ):
        path.write_text(content, errors="surrogateescape")
        assert read_lease(str(path)) is None
    launch = leased(rig, rig.launch(new_task_id()))
    await rig.driver.start(launch)
    assert (await ended(rig, launch.task_id)).exit_code == 143
    write_lease(str(path), 41)
    write_lease(str(path), 42)
    assert read_lease(str(path)) == 42
