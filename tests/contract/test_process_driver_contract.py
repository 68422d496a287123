"""The process driver keeps the contract: with control groups where the host has them, and without."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cube.model.sessions import ExecOrder
from tests.contract.driver_cases import DriverContract, Rig, ended, new_task_id, read, text
from tests.contract.file_cases import WORDS, FileContract, file_of, with_files
from tests.contract.process_rig import ProcessRig, process_rig, settings_for
from tests.contract.session_cases import SessionContract


@pytest.fixture(params=["groups", "no groups"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ProcessRig]:
    settings = settings_for(request.param, tmp_path)
    async with process_rig(tmp_path / "tasks", settings) as rig:
        if request.param != "no groups" and rig.process_driver.cgroup_version == "none":
            pytest.skip("no writable cgroups here")
        yield rig


class TestProcessDriver(DriverContract, SessionContract):
    """All cases."""


class TestProcessFiles(FileContract):
    """All cases."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs tasks as others")
@pytest.mark.root
async def test_only_the_user_of_a_task_reads_its_secrets(rig: ProcessRig) -> None:
    script = 'cat "$S/words" || echo refused; stat -c "%u %g %a" "$S/words"'
    told = []
    for uid in (None, 12345):  # the task's own user, and somebody else
        task_id = new_task_id()
        words = msgspec.structs.replace(file_of(rig, "words", WORDS.encode()), uid=uid)
        launch = with_files(rig, task_id, script, words)
        _ = await rig.driver.start(msgspec.structs.replace(launch, user="nobody"))
        _ = await ended(rig, task_id)
        told.append(text(await read(rig, task_id, ("stdout",))))
        await rig.driver.remove(task_id, keep_logs=False)
    assert told == [f"{WORDS}65534 65534 400\n", "refused\n12345 65534 400\n"]


async def test_a_session_ends_with_its_task_though_nothing_marks_it(tmp_path: Path) -> None:
    """It has no groups, and has thrown the task's id out of its environment."""
    async with process_rig(tmp_path / "tasks", settings_for("no groups", tmp_path)) as rig:
        launch = rig.launch(new_task_id())
        await rig.driver.start(launch)
        argv = ("env", "-i", "/bin/sh", "-c", "echo ready; read never")
        one = await rig.driver.open_exec(launch.task_id, 1, ExecOrder(argv=argv))
        try:
            output = aiter(one.output())
            async with asyncio.timeout(rig.patience_s):
                assert (await anext(output)).data == b"ready\n"
                await rig.driver.stop(launch.task_id, 1, "SIGKILL", 0)
                assert [piece async for piece in output] == []
                assert await one.exit_code() == 137
        finally:
            await one.close()


def test_the_rig_is_a_rig(tmp_path: Path) -> None:
    rig: Rig = ProcessRig(tmp_path)
    assert rig.driver.name == "process"
