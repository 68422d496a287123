"""/v1/cluster/settings: what all nodes agree on."""

from __future__ import annotations

import msgspec
from aiohttp import web

from cube.api.bodies import read_json
from cube.api.call import Call
from cube.api.errors import Problem
from cube.model import commands
from cube.model.cluster import FINISHED_FOR_MS_MIN, FINISHED_PER_SLOT_MAX, ClusterState
from cube.model.clusterviews import SettingsChanged, SettingsView
from cube.model.outcome import Done
from cube.model.spec import PlacementPolicy
from cube.model.units import exact_duration, format_duration, parse_duration_ms
from cube.model.views import ProblemError


class SettingsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is not given stays as it is."""

    policy: PlacementPolicy | None = None
    preemption: bool | None = None
    rebalance: bool | None = None
    finished_per_slot: int | None = None
    finished_for: str | int | float | None = None
    finished_beyond: str | int | float | None = None


async def show_settings(call: Call) -> web.Response:
    return call.json(_view(call.state))


async def change_settings(call: Call) -> web.Response:
    body, data = await read_json(call, SettingsBody)
    count = body.finished_per_slot
    if count is not None and not 1 <= count <= FINISHED_PER_SLOT_MAX:
        raise _invalid("finished_per_slot", f"must be between 1 and {FINISHED_PER_SLOT_MAX}")
    finished_for_ms = _duration_ms("finished_for", body.finished_for)
    if finished_for_ms is not None and 0 < finished_for_ms < FINISHED_FOR_MS_MIN:
        least = format_duration(FINISHED_FOR_MS_MIN)
        raise _invalid("finished_for", f"must be at least {least}, or 0: however old they are")
    command = commands.ChangeSettings(
        body.policy,
        body.preemption,
        body.rebalance,
        count,
        finished_for_ms,
        _duration_ms("finished_beyond", body.finished_beyond),
    )
    proposed = await call.propose(command, data)
    outcome = proposed.outcome
    assert isinstance(outcome, Done), outcome
    return call.json(SettingsChanged(_view(call.state), outcome.changed, proposed.index))


def _duration_ms(key: str, value: str | float | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_duration_ms(value)
    except ValueError as error:
        raise _invalid(key, str(error)) from None


def _invalid(key: str, problem: str) -> Problem:
    return Problem("invalid", f"{key}: {problem}", errors=(ProblemError(f"/{key}", problem, key),))


def _view(state: ClusterState) -> SettingsView:
    settings = state.settings
    return SettingsView(
        settings.policy.value,
        settings.preemption,
        settings.rebalance,
        settings.finished_per_slot,
        exact_duration(settings.finished_for_ms),
        exact_duration(settings.finished_beyond_ms),
    )
