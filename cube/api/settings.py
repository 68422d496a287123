"""/v1/cluster/settings: what all nodes agree on."""

from __future__ import annotations

import msgspec
from aiohttp import web

from cube.api.bodies import read_json
from cube.api.call import Call
from cube.model import commands
from cube.model.cluster import ClusterState
from cube.model.clusterviews import SettingsChanged, SettingsView
from cube.model.outcome import Done
from cube.model.spec import PlacementPolicy


class SettingsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is not given stays as it is."""

    policy: PlacementPolicy | None = None
    preemption: bool | None = None
    rebalance: bool | None = None


async def show_settings(call: Call) -> web.Response:
    return call.json(_view(call.state))


async def change_settings(call: Call) -> web.Response:
    body, data = await read_json(call, SettingsBody)
    command = commands.ChangeSettings(body.policy, body.preemption, body.rebalance)
    proposed = await call.propose(command, data)
    outcome = proposed.outcome
    assert isinstance(outcome, Done), outcome
    return call.json(SettingsChanged(_view(call.state), outcome.changed, proposed.index))


def _view(state: ClusterState) -> SettingsView:
    settings = state.settings
    return SettingsView(settings.policy.value, settings.preemption, settings.rebalance)
