from __future__ import annotations

import pytest

from tests.contract.driver_cases import DriverContract
from tests.contract.file_cases import FileContract
from tests.contract.session_cases import SessionContract

pytestmark = pytest.mark.docker


class TestDockerDriverContract(DriverContract, SessionContract):
    """On the rig of conftest.py."""


class TestDockerFiles(FileContract):
    """On the same."""
