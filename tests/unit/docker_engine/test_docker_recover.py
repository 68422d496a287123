"""What an agent does with many containers when it comes back, without an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cube.adapters.docker_driver import LOOKS_AT_ONCE, DockerDriver, DockerSettings
from cube.adapters.docker_engine.marks import container_name
from cube.adapters.system_clock import SystemClock
from cube.model.errors import DriverFailed
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import RunState

MARKS = {"cube.cluster": "c", "cube.node": "n", "cube.attempt": "1"}


class Engine:
    """Stands for docker_engine.engine.Engine and for the SDK's client: `states` by task."""

    def __init__(self, **states: str) -> None:
        self.states = states
        self.failing = ""
        self.commands: set[str] = set()
        self.removed: list[str] = []
        self.under_way = self.most_under_way = 0

    async def call(self, what: Callable[[Any], Any]) -> Any:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            return what(self)
        finally:
            self.under_way -= 1

    def containers(self, **_: object) -> list[dict[str, Any]]:
        return [
            {"Id": task, "Names": ["/" + container_name(TaskId(task), 1)], "State": state,
             "Labels": {**MARKS, "cube.task": task}}
            for task, state in self.states.items()
        ]  # fmt: skip

    def inspect_container(self, name: str) -> dict[str, Any]:
        task = name.split("-")[1]
        if task == self.failing:
            raise DriverFailed("engine_down", "it is gone", transient=True)
        state = {"Status": self.states[task], "StartedAt": "2026-01-01T00:00:00Z"}
        labels = {**MARKS, "cube.task": task}
        return {"Id": task, "State": state, "Config": {"Labels": labels}, "HostConfig": {}}

    def remove_container(self, container_id: str, *, v: bool) -> None:
        self.removed.append(container_id)


def driver_on(engine: Engine) -> DockerDriver:
    driver = DockerDriver(ClusterId("c"), NodeId("n"), DockerSettings(), SystemClock())
    driver._maybe_engine = engine  # type: ignore[assignment]
    return driver


async def test_several_are_looked_at_at_once_and_not_all() -> None:
    engine = Engine(**{f"t{number}": "running" for number in range(20)})
    seen = await driver_on(engine).recover()
    assert {one.state for one in seen} == {RunState.RUNNING}
    assert len(seen) == 20
    assert engine.most_under_way == LOOKS_AT_ONCE


async def test_what_fails_is_told_as_one_failure() -> None:
    engine = Engine(a="running", b="running", c="running")
    engine.failing = "b"
    with pytest.raises(DriverFailed, match="it is gone"):
        await driver_on(engine).recover()


async def test_what_was_never_started_goes_unless_its_start_is_under_way() -> None:
    engine = Engine(left="created", begun="created", runs="running")
    driver = driver_on(engine)
    driver._starting.add((TaskId("begun"), 1))
    assert [one.task_id for one in await driver.recover()] == ["runs"]
    assert engine.removed == ["left"]


async def test_what_starts_while_it_is_looked_at_is_not_removed() -> None:
    """It was created when all were listed, and a start of it has come since."""
    engine = Engine(late="created")
    driver = driver_on(engine)
    async with driver._lock(TaskId("late")):
        recovering = asyncio.create_task(driver.recover())
        for _ in range(20):  # all that it can do by now
            await asyncio.sleep(0)
        assert not recovering.done()
        engine.states["late"] = "running"
    assert [one.state for one in await recovering] == [RunState.RUNNING]
    assert engine.removed == []
