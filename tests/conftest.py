"""With CUBE_TEST_ALL=1 (CI) a skipped test is a failure: nothing goes untested for a missing tool.
No generated example has a deadline: how long one takes says how busy the machine is."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("cube", deadline=None)
settings.load_profile("cube")

ALL = os.environ.get("CUBE_TEST_ALL") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where everything must run: {report.longrepr}"
    return report
