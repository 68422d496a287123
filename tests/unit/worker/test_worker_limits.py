"""Limits of single processes and of a task's disk reach the drivers; what drivers say of ends is quoted."""

from __future__ import annotations

import msgspec

from cube.model.ids import TaskId
from cube.model.launch import Observation, RunState
from cube.model.resources import Resources
from cube.model.spec import DockerOptions, Ulimit
from cube.worker.endings import cause_of
from cube.worker.local_task import Cause
from tests.unit.worker.test_worker_parts import launch_of


def test_limits_of_processes_reach_both_drivers_from_both_places() -> None:
    limits = (Ulimit("core", 0, 0), Ulimit("nofile", 1, 2))
    old = DockerOptions(hostname="h", ulimits=(Ulimit("memlock", -1, -1),))
    launch = launch_of("docker", ulimits=limits, docker=old)
    assert launch.docker == DockerOptions(hostname="h", ulimits=old.ulimits + limits)
    launch = launch_of("process", ulimits=limits, resources=Resources(disk_bytes=5))
    assert (launch.ulimits, launch.disk_bytes) == (limits, 5)


def test_a_driver_that_says_why_is_quoted() -> None:
    seen = Observation(task_id=TaskId("t"), attempt=1, state=RunState.EXITED, exit_code=200)
    assert cause_of(seen) == Cause("exited", "killed by signal 72", 200)
    why = msgspec.structs.replace(seen, reason="disk_exceeded", message="it has 2, its limit is 1")
    assert cause_of(why) == Cause("disk_exceeded", "it has 2, its limit is 1", 200)
    lost = msgspec.structs.replace(why, exit_code=None, reason="host_rebooted", message="it was")
    assert cause_of(lost) == Cause("host_rebooted", "it was")
