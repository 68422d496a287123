"""Loops that may die of a bug without taking the node with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

RESTART_S = 1.0  # after the first death; doubles up to
RESTART_MAX_S = 30.0
CALM_S = 60.0  # lived for longer than this: the next death counts as the first

_log = logging.getLogger(__name__)


async def keep_running(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """`run()` for ever: when it raises, it is told at CRITICAL and begun anew after a pause.

    Only for loops that begin with a full pass over the state and keep nothing that a death could
    leave half done: the leader's. A job that the scheduler cannot digest must not end one leader
    after the other; every other loop's bug ends the process, and whatever started it starts it
    again.
    """
    pause_s = RESTART_S
    loop = asyncio.get_running_loop()
    while True:
        began_s = loop.time()
        try:
            await run()
        except Exception:  # noqa: BLE001 - a named boundary (DESIGN.md)
            if loop.time() - began_s > CALM_S:
                pause_s = RESTART_S
            _log.critical("loop_died name=%s restart_in_s=%g", name, pause_s, exc_info=True)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RESTART_MAX_S)
        else:
            return
