from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.docker_rig import DockerRig, engine_for_tests
from tests.contract.driver_cases import DriverContract, Rig
from tests.contract.file_cases import FileContract, FileRig
from tests.contract.session_cases import SessionContract

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def docker_host() -> str:
    return engine_for_tests()


class TestDockerDriverContract(DriverContract, SessionContract):
    @pytest.fixture
    async def rig(self, docker_host: str) -> AsyncIterator[Rig]:
        rig = DockerRig(docker_host)
        await rig.open()
        yield rig
        await rig.close()


class TestDockerFiles(FileContract):
    @pytest.fixture
    async def rig(self, docker_host: str) -> AsyncIterator[FileRig]:
        rig = DockerRig(docker_host)
        await rig.open()
        yield rig
        await rig.close()
