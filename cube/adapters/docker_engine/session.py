"""cube.ports.session.Session for containers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from cube.adapters.docker_engine import containers
from cube.adapters.docker_engine.engine import Client, Engine
from cube.adapters.docker_engine.exec import ANSWER_S, DETACH_KEYS, Prepared, is_over, kill_exec
from cube.adapters.docker_engine.failures import engine_down, explain
from cube.adapters.docker_engine.frames import FRAME_BYTES_MAX, HEADER, STREAMS
from cube.adapters.docker_engine.marks import Marks
from cube.adapters.docker_engine.raw import WEATHER, Wire, connect
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.sessions import NOT_EXECUTABLE, NOT_FOUND, ExecOrder, ExecOutput
from cube.ports.session import CLOSE_GRACE_MS

log = logging.getLogger(__name__)

READ_BYTES = 32 * 1024
COULD_NOT_START = b"OCI runtime exec failed"  # then its output is a sentence of the engine's
CODE_LOOKS = 40  # × 50 ms: the engine notes the code a little after the streams have ended
LOOK_MS = 50
SIZE_TRIES = 20  # × 50 ms: a terminal exists a little after the engine's answer


async def open_session(
    engine: Engine, marks: Marks, task_id: TaskId, attempt: int, order: ExecOrder
) -> DockerSession:
    """See Driver.open_exec."""

    def prepare(client: Client) -> tuple[Prepared, str]:
        inspected = containers.find(client, marks, task_id, attempt)
        if inspected is None or not inspected["State"]["Running"]:
            raise DriverFailed(
                "not_running", f"attempt {attempt} of task {task_id} does not run", transient=False
            )
        made: Any = client.exec_create(
            inspected["Id"], list(order.argv), stdin=True, tty=order.tty,
            environment={"TERM": order.term} if order.tty and order.term else None,
            detach_keys=DETACH_KEYS,
        )  # fmt: skip
        engine.commands.add(made["Id"])
        return Prepared(inspected["Id"], made["Id"]), client.api_version

    prepared, version = await engine.call(prepare)
    wire = await connect(engine)
    try:
        async with asyncio.timeout(ANSWER_S):
            await wire.ask(
                "POST", f"/v{version}/exec/{prepared.exec_id}/start",
                {"Connection": "Upgrade", "Upgrade": "tcp", "Content-Type": "application/json"},
                json.dumps({"Detach": False, "Tty": order.tty}).encode(),
            )  # fmt: skip
        if wire.status != 101:
            raise await wire.problem()
    except (*WEATHER, TimeoutError) as error:
        await _give_up(engine, prepared, wire)
        raise engine_down(
            f"the command could not be started: {str(error) or 'timed out'}"
        ) from None
    except asyncio.CancelledError:  # whoever asked has gone meanwhile
        await _give_up(engine, prepared, wire)
        raise
    except DriverFailed:
        await wire.close()
        engine.commands.discard(prepared.exec_id)
        raise
    return DockerSession(engine, prepared, wire, order)


async def _give_up(engine: Engine, prepared: Prepared, wire: Wire) -> None:
    """The engine may have begun with it, or be about to: nobody else would end it."""
    await wire.close()
    await kill_exec(engine, prepared)
    engine.commands.discard(prepared.exec_id)


class DockerSession:
    """Owns one connection; what the engine does not tell there, it is asked."""

    def __init__(self, engine: Engine, prepared: Prepared, wire: Wire, order: ExecOrder) -> None:
        self._engine, self._prepared, self._wire = engine, prepared, wire
        self._is_terminal = order.tty
        self._code: int | None = None  # when it could not be started
        self._has_ended = self._is_closed = False
        self._sizing: asyncio.Task[None] | None = None
        if order.tty:
            self._sizing = asyncio.create_task(self._resize(order.rows, order.columns))

    async def output(self) -> AsyncIterator[ExecOutput]:
        is_first = True
        try:
            async for stream, data in self._pieces():
                if is_first and data.startswith(COULD_NOT_START) and await self._never_began():
                    data = self._explain(data)
                    stream = "stdout" if self._is_terminal else "stderr"
                is_first = False
                yield ExecOutput(stream, data)
        except WEATHER as error:
            if not self._is_closed:
                raise engine_down(f"the command's output broke off: {error}") from None
        self._has_ended = True

    async def _never_began(self) -> bool:
        """What reads like the engine's own words may be the command's."""
        try:
            return not (await self._inspect()).get("Pid")
        except DriverFailed:
            return False

    async def _pieces(self) -> AsyncIterator[tuple[str, bytes]]:
        reader = self._wire.reader
        if self._is_terminal:
            while data := await reader.read(READ_BYTES):
                yield "stdout", data
            return
        while True:
            try:
                kind, size = HEADER.unpack(await reader.readexactly(HEADER.size))
            except asyncio.IncompleteReadError:
                return
            if kind > max(STREAMS) or size > FRAME_BYTES_MAX:
                raise ValueError(f"not a frame of the engine's: {kind} {size}")
            while size:
                data = await reader.read(min(size, READ_BYTES))
                if not data:
                    return
                size -= len(data)
                yield STREAMS.get(kind, "stdout"), data

    def _explain(self, data: bytes) -> bytes:
        """The engine's prose as a sentence; and which code it means."""
        text = " ".join(data.decode(errors="replace").split()).removesuffix(": unknown")
        known = explain(text)
        is_missing = known is not None and known[0] == "command_not_found"
        self._code = NOT_FOUND if is_missing else NOT_EXECUTABLE
        what = text.rpartition("unable to start container process: ")[2]
        end = "\r\n" if self._is_terminal else "\n"
        return f"cube: {what}{end}".encode()

    async def write(self, data: bytes) -> None:
        if not self._has_ended and not self._wire.writer.is_closing():
            with contextlib.suppress(*WEATHER):  # it has ended: output() says so
                self._wire.writer.write(data)
                await self._wire.writer.drain()

    async def end_input(self) -> None:
        if self._is_terminal:
            await self.write(b"\x04")
        elif self._wire.writer.can_write_eof():
            with contextlib.suppress(*WEATHER):
                self._wire.writer.write_eof()

    async def resize(self, rows: int, columns: int) -> None:
        if self._is_terminal:
            await self._stop_sizing()
            self._sizing = asyncio.create_task(self._resize(rows, columns))

    async def _resize(self, rows: int, columns: int) -> None:
        for _ in range(SIZE_TRIES):
            with contextlib.suppress(DriverFailed):
                await self._engine.call(
                    lambda client: client.exec_resize(
                        self._prepared.exec_id, height=rows, width=columns
                    )
                )
                return
            await asyncio.sleep(LOOK_MS / 1000)

    async def _stop_sizing(self) -> None:
        if self._sizing is not None:
            self._sizing.cancel()
            await asyncio.wait({self._sizing})

    async def exit_code(self) -> int | None:
        if self._code is not None:
            return self._code
        for _ in range(CODE_LOOKS):
            try:
                seen = await self._inspect()
            except DriverFailed:
                return None  # the container is gone, and the engine with what it knew of this
            if not seen["Running"]:
                code: int | None = seen["ExitCode"]
                return code
            await asyncio.sleep(LOOK_MS / 1000)
        return None

    async def _inspect(self) -> Any:
        return await self._engine.call(lambda client: client.exec_inspect(self._prepared.exec_id))

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        await self._stop_sizing()
        if not self._has_ended:
            await self.end_input()
            await self._end()
        await self._wire.close()
        self._engine.commands.discard(self._prepared.exec_id)

    async def _end(self) -> None:
        """By the end of its input, or killed."""
        try:
            for _ in range(CLOSE_GRACE_MS // LOOK_MS):
                if is_over(await self._inspect()):
                    return
                await asyncio.sleep(LOOK_MS / 1000)
        except DriverFailed:
            return
        await kill_exec(self._engine, self._prepared)
