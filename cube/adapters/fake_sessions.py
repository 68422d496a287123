"""Sessions of the fake driver: cube.ports.session.Session in memory.

What a command does is in its name: `say TEXT CODE` writes and ends, `hang` never does, `copy` writes
what it reads until its input ends, `size` writes its terminal's size at each change, and `pour BYTES`
writes as much as is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cube.model.sessions import NOT_FOUND, ExecOrder, ExecOutput

WAITING_MAX = 4  # pieces that nobody has taken yet; then the command waits
PIECE_BYTES = 16 * 1024


class FakeSession:
    """`over`: set when the task ends."""

    def __init__(self, order: ExecOrder, over: asyncio.Event, other_code: int) -> None:
        self._order = order
        self._over = over
        self._other_code = other_code
        self._out: asyncio.Queue[ExecOutput | None] = asyncio.Queue(WAITING_MAX)
        self._in: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING_MAX)
        self._sizes: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self._code: int | None = None
        self.is_closed = False
        self.written_bytes = 0  # by the command, taken or waiting
        self._command = asyncio.create_task(self._run())
        self._killer = asyncio.create_task(self._die_with_the_task())

    async def _run(self) -> None:
        code = self._other_code
        match self._order.argv:
            case ("say", words, text):
                await self._say(f"{words}\n".encode())
                code = int(text)
            case ("hang",):
                await asyncio.Event().wait()
            case ("copy",):
                while (data := await self._in.get()) is not None:
                    await self._say(data)
                code = 0
            case ("size",):
                self._sizes.put_nowait((self._order.rows, self._order.columns))
                while True:
                    rows, columns = await self._sizes.get()
                    await self._say(f"{rows} {columns}\n".encode())
            case ("pour", count):
                for _ in range(0, int(count), PIECE_BYTES):
                    await self._say(b"x" * PIECE_BYTES)
                code = 0
            case ("/no/such/command",):
                await self._say(b"cube: there is no /no/such/command\n", "stderr")
                code = NOT_FOUND
            case _:
                pass
        self._code = code
        await self._out.put(None)

    async def _die_with_the_task(self) -> None:
        await self._over.wait()
        if self._code is None:
            self._command.cancel()
            self._code = 137
            while not self._out.empty():
                self._out.get_nowait()
            self._out.put_nowait(None)

    async def _say(self, data: bytes, stream: str = "stdout") -> None:
        await self._out.put(ExecOutput("stdout" if self._order.tty else stream, data))
        self.written_bytes += len(data)

    async def output(self) -> AsyncIterator[ExecOutput]:
        while (piece := await self._out.get()) is not None:
            yield piece

    async def write(self, data: bytes) -> None:
        if not self._command.done():
            await self._in.put(data)

    async def end_input(self) -> None:
        if not self._command.done():
            await self._in.put(None)

    async def resize(self, rows: int, columns: int) -> None:
        if self._order.tty:
            self._sizes.put_nowait((rows, columns))

    async def exit_code(self) -> int | None:
        return self._code

    async def close(self) -> None:
        self.is_closed = True
        for task in (self._command, self._killer):
            task.cancel()
        await asyncio.wait({self._command, self._killer})
