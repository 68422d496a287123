"""How this driver fails: always by DriverFailed, never by what the host raised."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from cube.model.errors import DriverFailed

P = ParamSpec("P")
R = TypeVar("R")


def lasting(code: str, message: str) -> DriverFailed:
    """Trying again will not help."""
    return DriverFailed(code, message, transient=False)


def passing(code: str, message: str) -> DriverFailed:
    """Trying again may help."""
    return DriverFailed(code, message, transient=True)


def refused(error: OSError) -> DriverFailed:
    """The host said no: full disk, failing disk, no process or descriptor left."""
    return passing("host_refused", f"{error.filename or 'the host'}: {error.strerror}")


def host_errors(call: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """`call`, with what the host raises as DriverFailed."""

    @functools.wraps(call)
    async def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await call(*args, **kwargs)
        except OSError as error:
            raise refused(error) from error

    return called


@contextlib.asynccontextmanager
async def patience(timeout_ms: int, code: str, message: str) -> AsyncIterator[None]:
    """What takes longer is weather."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            yield
    except TimeoutError:
        raise passing(code, f"{message} (after {timeout_ms / 1000:g} s)") from None
