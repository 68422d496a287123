"""/v1/rebalance: what second thoughts would move, and their beginning."""

from __future__ import annotations

import asyncio

from aiohttp import web

from cube.api.bodies import read_nothing
from cube.api.call import Call
from cube.model import commands
from cube.model.clusterviews import RebalanceMoveView, RebalanceStarted, RebalanceView
from cube.model.outcome import Done
from cube.scheduler.rebalance import MOVES_MAX, all_moves


async def show_rebalance(call: Call) -> web.Response:
    state = call.state
    moves = await asyncio.to_thread(all_moves, state, state.now_ms)
    views = tuple(
        RebalanceMoveView(
            move.task.name,
            state.nodes[move.task.node_id].name,
            state.nodes[move.to].name,
            move.crowding,
            round(move.use, 4),
        )
        for move in moves
    )
    running = state.rebalance_since_ms > 0
    return call.json(RebalanceView(running, views, len(views) == MOVES_MAX))


async def start_rebalance(call: Call) -> web.Response:
    data = await read_nothing(call)
    proposed = await call.propose(commands.StartRebalance(), data)
    outcome = proposed.outcome
    assert isinstance(outcome, Done), outcome
    return call.json(RebalanceStarted(outcome.changed, proposed.index))
