"""One health check, once, whatever its type."""

from __future__ import annotations

from cube.model.errors import DriverFailed
from cube.model.spec import CheckType
from cube.ports.driver import Driver
from cube.ports.prober import Prober
from cube.worker.inputs import ProbeResult
from cube.worker.instructions import Probe

MESSAGE_CHARS_MAX = 200  # of a check's output in a task's message

# The check itself is wrong, and will be until somebody changes it. Any other failure of the driver
# says nothing about the task: it is not held against it.
_OWN_FAULTS = frozenset({"command_not_found", "not_allowed", "unsupported"})


async def run_check(probe: Probe, driver: Driver, prober: Prober) -> ProbeResult:
    """The check's answer, within its timeout (an exec's: within the driver's bounds)."""
    check = probe.check
    match check.type:
        case CheckType.HTTP:
            probed = await prober.http(probe.address, probe.port, check.path, check.timeout_ms)
            return ProbeResult(probe.token, probed.is_healthy, probed.message)
        case CheckType.TCP:
            probed = await prober.tcp(probe.address, probe.port, check.timeout_ms)
            return ProbeResult(probe.token, probed.is_healthy, probed.message)
        case CheckType.EXEC:
            return await _execute(probe, driver)


async def _execute(probe: Probe, driver: Driver) -> ProbeResult:
    check = probe.check
    try:
        result = await driver.execute(probe.task_id, probe.attempt, check.command, check.timeout_ms)
    except DriverFailed as failure:
        is_healthy = False if failure.code in _OWN_FAULTS else None
        return ProbeResult(probe.token, is_healthy, failure.message)
    if result.exit_code == 0:
        return ProbeResult(probe.token, True)
    if result.exit_code is None:
        return ProbeResult(probe.token, False, f"no answer within {check.timeout_ms} ms")
    output = result.output.decode(errors="replace").strip()[:MESSAGE_CHARS_MAX]
    said = f": {output}" if output else ""
    return ProbeResult(probe.token, False, f"exit code {result.exit_code}{said}")
