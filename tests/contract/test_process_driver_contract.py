"""The process driver keeps the contract: with control groups where the host has them, and without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.driver_cases import DriverContract, Rig
from tests.contract.file_cases import FileContract
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


def test_the_rig_is_a_rig(tmp_path: Path) -> None:
    rig: Rig = ProcessRig(tmp_path)
    assert rig.driver.name == "process"
