"""What the worker wants done. Each is carried out beside the others and answered by one input that
bears its token; WakeAt and Cancel are not answered."""

from __future__ import annotations

import msgspec

from cube.model.commands import TaskReport
from cube.model.ids import TaskId
from cube.model.launch import Launch
from cube.model.spec import CheckSpec


class Recover(msgspec.Struct, frozen=True):
    """Open the driver if it is not yet, and ask it for everything it has of this node. → Recovered"""

    token: int
    driver: str

    def describe(self) -> str:
        return f"recover what {self.driver} has"


class Prepare(msgspec.Struct, frozen=True):
    token: int
    driver: str
    launch: Launch

    def describe(self) -> str:
        return f"prepare {self.launch.task_name} attempt {self.launch.attempt}"


class Start(msgspec.Struct, frozen=True):
    """`test_ports`: fail with port_taken unless every host port is free. Only asked for when nothing
    of this attempt can be running yet."""

    token: int
    driver: str
    launch: Launch
    test_ports: bool

    def describe(self) -> str:
        return f"start {self.launch.task_name} attempt {self.launch.attempt}"


class Inspect(msgspec.Struct, frozen=True):
    token: int
    driver: str
    task_id: TaskId
    attempt: int

    def describe(self) -> str:
        return f"inspect {self.task_id} attempt {self.attempt}"


class Stop(msgspec.Struct, frozen=True):
    token: int
    driver: str
    task_id: TaskId
    attempt: int
    stop_signal: str
    timeout_ms: int

    def describe(self) -> str:
        return f"stop {self.task_id} attempt {self.attempt} with {self.stop_signal}"


class Kill(msgspec.Struct, frozen=True):
    token: int
    driver: str
    task_id: TaskId
    attempt: int

    def describe(self) -> str:
        return f"kill {self.task_id} attempt {self.attempt}"


class Remove(msgspec.Struct, frozen=True):
    token: int
    driver: str
    task_id: TaskId
    keep_logs: bool

    def describe(self) -> str:
        return f"remove {self.task_id}" + ("" if self.keep_logs else " and its logs")


class Cancel(msgspec.Struct, frozen=True):
    """Give the Prepare with this token up. It is answered all the same: done, or CANCELLED."""

    of_token: int

    def describe(self) -> str:
        return f"cancel {self.of_token}"


class Probe(msgspec.Struct, frozen=True):
    """One check, once. `address` and `port` are the task's own; port 0 for exec. → ProbeResult"""

    token: int
    driver: str
    task_id: TaskId
    attempt: int
    check: CheckSpec
    address: str
    port: int

    def describe(self) -> str:
        return f"probe {self.task_id} {self.check.name}"


class Report(msgspec.Struct, frozen=True):
    """Propose these. One is under way at a time. → Reported | ReportFailed"""

    token: int
    reports: tuple[TaskReport, ...]

    def describe(self) -> str:
        return "report " + ", ".join(f"{r.task_id} {r.state}" for r in self.reports)


class WakeAt(msgspec.Struct, frozen=True):
    """Step again at this (monotonic) time, even without inputs. Replaces the one before."""

    at_ms: int

    def describe(self) -> str:
        return f"wake at {self.at_ms}"


DriverInstruction = Prepare | Start | Inspect | Stop | Kill | Remove
Instruction = Recover | DriverInstruction | Cancel | Probe | Report | WakeAt
