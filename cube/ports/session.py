"""A command under way beside a task, with somebody at its other end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from cube.model.sessions import ExecOutput

CLOSE_GRACE_MS = 2_000  # for a command whose caller has gone to end by itself


class Session(Protocol):
    """Made by Driver.open_exec, and ended by close(). One reader, one writer. Nothing is kept beyond
    a small bound: who does not take the output makes the command wait, and a command that does not
    read makes write() wait. Only DriverFailed is raised."""

    def output(self) -> AsyncIterator[ExecOutput]:
        """What it writes, as it comes, to its end. What it has left in the background may hold its
        streams open; that is not waited for. Called once."""
        ...

    async def write(self, data: bytes) -> None:
        """Given to it, or dropped when it reads no more."""
        ...

    async def end_input(self) -> None:
        """It finds the end of its input (on a terminal: ^D)."""
        ...

    async def resize(self, rows: int, columns: int) -> None:
        """Its terminal has this size, and it is told. Without a terminal: nothing."""
        ...

    async def exit_code(self) -> int | None:
        """Once output() has ended. A death by signal N is 128 + N; a command that could not be found
        126 or 127, with a sentence in its output. None: it cannot be known."""
        ...

    async def close(self) -> None:
        """It has ended: by itself, hung up, or killed CLOSE_GRACE_MS later. Nothing of the session is
        left. Idempotent."""
        ...
