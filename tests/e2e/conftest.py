from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.contract.docker_rig import engine_for_tests
from tests.e2e.harness import TestCluster


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TestCluster]:
    """An empty cluster whose agents see no Docker Engine."""
    made = TestCluster(tmp_path, {"CUBE_DRIVERS_DOCKER_ENABLED": "off"})
    failures = request.session.testsfailed
    yield made
    if request.session.testsfailed > failures:
        print(made.logs())
    made.stop()


@pytest.fixture
def docker_cluster(tmp_path: Path) -> Iterator[TestCluster]:
    """An empty cluster whose agents share one real Docker Engine."""
    host = engine_for_tests()
    made = TestCluster(tmp_path, {"CUBE_DRIVERS_DOCKER_HOST": host})
    yield made
    made.stop()


@pytest.fixture
def engine() -> Iterator[docker.APIClient]:
    """The same engine, looked at without Cube."""
    with contextlib.closing(docker.APIClient(base_url=engine_for_tests())) as client:
        yield client
