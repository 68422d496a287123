"""One step's collected instructions, and who awaits which answer."""

from __future__ import annotations

from collections.abc import Callable

from cube.model.ids import TaskId
from cube.worker.health import CheckState
from cube.worker.instructions import DriverInstruction, Instruction, Probe, Recover
from cube.worker.launch import NodeIdentity
from cube.worker.lease import Lease
from cube.worker.local_task import LocalTask
from cube.worker.settings import WorkerSettings


class Step:
    """What the functions of this package share while one Worker.step runs, and between the steps
    the tokens under way. Tokens count up and are never used twice."""

    def __init__(
        self, settings: WorkerSettings, node: NodeIdentity, leased_from_ms: int | None = None
    ) -> None:
        self.settings = settings
        self.node = node
        self.lease = Lease(leased_from_ms)
        self.now_ms = 0
        self.instructions: list[Instruction] = []
        self.operations: dict[int, TaskId] = {}
        self.probes: dict[int, tuple[TaskId, str]] = {}
        self.recoveries: dict[int, str] = {}
        self._last_token = 0

    def token(self) -> int:
        self._last_token += 1
        return self._last_token

    def give(self, local: LocalTask, make: Callable[[int], DriverInstruction]) -> None:
        """The instruction is the task's one operation from now on."""
        assert not local.operation, f"{local.id} has {local.operation} under way"
        local.operation = self.token()
        self.operations[local.operation] = local.id
        self.instructions.append(make(local.operation))

    def give_probe(self, local: LocalTask, check: CheckState, make: Callable[[int], Probe]) -> None:
        check.token = self.token()
        self.probes[check.token] = (local.id, check.spec.name)
        self.instructions.append(make(check.token))

    def give_recover(self, driver: str) -> None:
        token = self.token()
        self.recoveries[token] = driver
        self.instructions.append(Recover(token, driver))
