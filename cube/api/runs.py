"""The runs of cron jobs: their history, and one more by hand."""

from __future__ import annotations

from aiohttp import web

from cube.api import render
from cube.api.bodies import read_nothing
from cube.api.call import Call
from cube.api.lookup import find_job
from cube.model import commands
from cube.model.outcome import RunStarted
from cube.model.views import Page, RunTriggered


async def list_runs(call: Call) -> web.Response:
    """Newest first. A job of another type has none."""
    job = find_job(call.state, call.path("job"))
    return call.json(Page(render.run_views(job), None, call.state.index))


async def trigger_run(call: Call) -> web.Response:
    name = call.path("job")
    data = await read_nothing(call)
    proposed = await call.propose(commands.TriggerJob(name), data)
    outcome = proposed.outcome
    assert isinstance(outcome, RunStarted), outcome
    return call.json(RunTriggered(outcome.name, outcome.run, proposed.index), status=201)
