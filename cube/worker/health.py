"""Thresholds and grace of health checks: when to probe next and what the answers mean."""

from __future__ import annotations

import msgspec

from cube.model.lifecycle import Health
from cube.model.spec import CheckSpec, GroupSpec, OnCheckFailure


class CheckState(msgspec.Struct):
    """One check of one attempt. Mutable; owned by its task. `token` 0: no probe is under way.

    Until the first success, and for max(start_period, interval) at most, probes come faster than the
    interval and failures do not count: a task that is ready early is known early, and one that is
    slow is judged as if it had been probed at its interval from the start.
    """

    spec: CheckSpec
    due_ms: int
    grace_until_ms: int
    status: Health = Health.UNKNOWN
    token: int = 0
    successes: int = 0  # in a row
    failures: int = 0  # in a row, counted ones
    message: str = ""  # of the last failure

    def on_result(
        self, is_healthy: bool | None, message: str, now_ms: int, probe_start_ms: int
    ) -> bool:
        """True when this answer made the check unhealthy. None counts neither way."""
        self.token = 0
        was = self.status
        if is_healthy is None:
            self.due_ms = now_ms + self.spec.interval_ms
            return False
        if is_healthy:
            self.successes += 1
            self.failures = 0
            self.grace_until_ms = min(self.grace_until_ms, now_ms)
            if self.successes >= self.spec.healthy_after:
                self.status = Health.HEALTHY
        else:
            self.successes = 0
            self.message = message
            if now_ms >= self.grace_until_ms:
                self.failures += 1
            if self.failures >= self.spec.unhealthy_after:
                self.status = Health.UNHEALTHY
        self.due_ms = now_ms + self._pause_ms(now_ms, probe_start_ms)
        return self.status is Health.UNHEALTHY and was is not Health.UNHEALTHY

    def _pause_ms(self, now_ms: int, probe_start_ms: int) -> int:
        is_starting = self.status is Health.UNKNOWN and (
            now_ms < self.grace_until_ms or self.successes > 0
        )
        if not is_starting:
            return self.spec.interval_ms
        pause_ms = min(probe_start_ms, self.spec.interval_ms)
        if now_ms < self.grace_until_ms:
            # The first probe that counts comes as the grace ends, not an interval later.
            pause_ms = max(1, min(pause_ms, self.grace_until_ms - now_ms))
        return pause_ms


def fresh_checks(group: GroupSpec, now_ms: int) -> dict[str, CheckState]:
    """The checks of an attempt that runs since now."""
    return {spec.name: _fresh(spec, now_ms) for spec in group.checks}


def adopted_checks(group: GroupSpec, health: Health, now_ms: int) -> dict[str, CheckState]:
    """The checks of an attempt that ran before this process did: what was healthy still counts as
    that, and no grace is given to it."""
    checks = fresh_checks(group, now_ms)
    if health is Health.HEALTHY:
        for check in checks.values():
            check.status = Health.HEALTHY
            check.successes = check.spec.healthy_after
            check.grace_until_ms = now_ms
    return checks


def changed_checks(
    checks: dict[str, CheckState], group: GroupSpec, now_ms: int
) -> dict[str, CheckState]:
    """After an update in place: what is the same goes on, what is new starts."""
    return {
        spec.name: old
        if (old := checks.get(spec.name)) is not None and old.spec == spec
        else _fresh(spec, now_ms)
        for spec in group.checks
    }


def overall(checks: dict[str, CheckState]) -> Health:
    """NONE without checks; the worst of them otherwise, unknown being worse than healthy."""
    if not checks:
        return Health.NONE
    statuses = {check.status for check in checks.values()}
    for worst in (Health.UNHEALTHY, Health.UNKNOWN):
        if worst in statuses:
            return worst
    return Health.HEALTHY


def demands_restart(check: CheckState) -> bool:
    return check.spec.on_failure is OnCheckFailure.RESTART


def _fresh(spec: CheckSpec, now_ms: int) -> CheckState:
    grace_ms = max(spec.start_period_ms, spec.interval_ms)
    return CheckState(spec, due_ms=now_ms, grace_until_ms=now_ms + grace_ms)
