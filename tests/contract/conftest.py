"""What several contract tests of the docker driver stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.docker_rig import DockerRig, engine_for_tests


@pytest.fixture(scope="module")
def docker_host() -> str:
    """An engine that answers and has the image; skips where there is none."""
    return engine_for_tests()


@pytest.fixture
async def rig(docker_host: str) -> AsyncIterator[DockerRig]:
    """A driver on it, of a cluster of its own, of which nothing is left."""
    rig = DockerRig(docker_host)
    await rig.open()
    yield rig
    await rig.close()
