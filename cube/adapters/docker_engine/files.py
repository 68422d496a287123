"""Files out of containers and into them, by the engine's own archives: no `tar` in the image is needed.

The engine works as root, below the container's root directory as it resolves it, and refuses a file
system that is mounted read-only. It sees volumes and binds, and not what only the container's own
kernel mounts have (tmpfs, /proc): there the command of the order is run instead.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import posixpath
import tarfile
import urllib.parse
from collections.abc import AsyncIterator, Callable
from functools import partial

import docker.errors
import msgspec

from cube.adapters.docker_engine import containers
from cube.adapters.docker_engine.engine import Client, Engine
from cube.adapters.docker_engine.exec import ANSWER_S
from cube.adapters.docker_engine.failures import engine_down
from cube.adapters.docker_engine.marks import Marks, Raw
from cube.adapters.docker_engine.raw import WEATHER, Wire, connect
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.sessions import ExecOutput, FileOrder, FileOwner
from cube.model.spec import ID_MAX
from cube.ports.session import Session

SILENCE_S = 120.0  # the engine reads or writes a piece in far less; so long a silence is a hang
ACCOUNTS_BYTES_MAX = 1 << 20  # of a container's /etc/passwd
OK, NOT_FOUND, SERVER_ERROR = 200, 404, 500
STAT_HEADER = "X-Docker-Container-Path-Stat"
DIRECTORY, LINK = 1 << 31, 1 << 27  # in Go's FileMode
ID_DIGITS = len(str(ID_MAX))
_KERNELS = ("/proc", "/sys", "/dev")
PARTS_MAX = 64  # of a path, each of which is a question to the engine


class _Place(msgspec.Struct, frozen=True):
    container_id: str
    api_version: str
    path: str  # absolute

    def target(self, **more: str) -> str:
        query = urllib.parse.urlencode({"path": self.path, **more})
        return f"/v{self.api_version}/containers/{self.container_id}/archive?{query}"


async def open_files(
    engine: Engine, marks: Marks, task_id: TaskId, attempt: int, order: FileOrder
) -> Session | None:
    """See FileOrder. None: the engine cannot do it there, and the order's command may. Raises
    DriverFailed."""

    def prepare(client: Client) -> tuple[_Place, FileSession | None] | None:
        inspected = containers.find(client, marks, task_id, attempt)
        if inspected is None or not inspected["State"]["Running"]:
            raise DriverFailed(
                "not_running", f"attempt {attempt} of task {task_id} does not run", transient=False
            )
        path = absolute(order.path, inspected["Config"].get("WorkingDir") or "/")
        if is_unseen(path, inspected):
            return None
        if tmpfs_of(inspected):  # a link may lead there, such as /var/run
            behind = order.action != "get" or path.endswith("/.")
            where = resolved(path, partial(_stat, client, inspected["Id"]), behind=behind)
            if where is None or is_unseen(where, inspected):
                return None
        place = _Place(inspected["Id"], client.api_version, path)
        return place, _look(client, place, inspected) if order.action == "look" else None

    prepared = await engine.call(prepare)
    if prepared is None:
        return None
    place, looked = prepared
    if looked is not None:
        return looked
    wire = await connect(engine)
    try:
        if order.action == "put":
            await wire.begin(
                "PUT", place.target(noOverwriteDirNonDir="true"),
                {"Content-Type": "application/x-tar", "Transfer-Encoding": "chunked"},
            )  # fmt: skip
            return PutSession(wire, place.path)
        async with asyncio.timeout(ANSWER_S):
            await wire.ask("GET", place.target(), {})
        if wire.status != OK:
            raise await _problem(wire, place.path)
    except (*WEATHER, TimeoutError) as error:
        await wire.close()
        raise engine_down(f"no files came: {str(error) or 'timed out'}") from None
    except BaseException:
        await wire.close()
        raise
    return GetSession(wire)


def absolute(path: str, directory: str) -> str:
    """With its last part as it was given: `.` asks for what is in a directory."""
    whole = posixpath.join("/", directory, path)
    is_all = posixpath.basename(whole) in ("", ".", "..")
    found = posixpath.normpath(whole)
    if found.startswith("//"):  # which normpath keeps
        found = found[1:]
    return posixpath.join(found, ".") if is_all else found


def is_unseen(path: str, inspected: Raw) -> bool:
    """Lies where only the container itself can see."""
    hidden = [*_KERNELS, *tmpfs_of(inspected)]
    inside = posixpath.normpath(path)
    return any(inside == top or inside.startswith(f"{top.rstrip('/')}/") for top in hidden)


def tmpfs_of(inspected: Raw) -> list[str]:
    mounts = inspected.get("Mounts") or ()
    found = [mount["Destination"] for mount in mounts if mount.get("Type") == "tmpfs"]
    return [*(inspected["HostConfig"].get("Tmpfs") or ()), *found]


def resolved(path: str, stat: Callable[[str], tuple[int, str]], *, behind: bool) -> str | None:
    """Where this absolute path leads; `behind`: its last part, too, if that is a link. `stat`: the mode
    of a path whose last part alone may be a link, and where that leads in the end; 0: there is none.
    None: it would take too long to find out."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) > PARTS_MAX:
        return None
    found = "/"
    for at, part in enumerate(parts):
        found = posixpath.join(found, part)
        if at == len(parts) - 1 and not behind:
            break
        mode, target = stat(found)
        if not mode:  # nor is there anything below it
            return posixpath.join(found, *parts[at + 1 :])
        if mode & LINK:
            found = posixpath.normpath(posixpath.join("/", target))
    return found


def _look(client: Client, place: _Place, inspected: Raw) -> FileSession:
    """On a thread. A link to a directory is one."""
    mode, target = _stat(client, place.container_id, place.path)
    if mode & LINK:
        mode, _ = _stat(client, place.container_id, target)
    if not mode & DIRECTORY:
        return FileSession(1)
    owner = owner_of(
        inspected["Config"].get("User") or "",
        lambda name: _accounts(client, place.container_id, name),
    )
    return FileSession(0, msgspec.json.encode(owner))


def _stat(client: Client, container_id: str, path: str) -> tuple[int, str]:
    """Go's FileMode of it, 0 where there is none; and where it leads in the end, if it is a link."""
    url = f"{client.base_url}/v{client.api_version}/containers/{container_id}/archive"
    answer = client.head(url, params={"path": path})
    if answer.status_code >= SERVER_ERROR:
        answer.raise_for_status()
    if not answer.ok:
        return 0, ""
    try:
        told = json.loads(base64.b64decode(answer.headers.get(STAT_HEADER, "")))
        return int(told["mode"]), str(told.get("linkTarget") or "")
    except (ValueError, KeyError, TypeError):
        return 0, ""


def owner_of(user: str, accounts: Callable[[str], str]) -> FileOwner:
    """`user`: as the container has it, `name` or `uid`, and perhaps `:group`. `accounts`: the text of a
    file of the container's, /etc/passwd or /etc/group, or nothing."""
    name, _, group = user.partition(":")
    uid, gid = _id(name), 0
    if name:
        for fields in map(_fields, accounts("/etc/passwd").splitlines()):
            if name == fields[0] or (name.isdecimal() and name == fields[2]):
                uid, gid = _id(fields[2]), _id(fields[3])
                break
    if group.isdecimal():
        gid = _id(group)
    elif group:
        for fields in map(_fields, accounts("/etc/group").splitlines()):
            if group == fields[0]:
                gid = _id(fields[2])
                break
    return FileOwner(uid, gid)


def _fields(line: str) -> list[str]:
    """Four at least, whatever the line is."""
    return [*line.split(":"), "", "", ""]


def _id(text: str) -> int:
    """A number that a user can have, else root's."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= ID_DIGITS else 0
    return number if number <= ID_MAX else 0


def _accounts(client: Client, container_id: str, name: str) -> str:
    """What a task's own file says, of which nothing is to be trusted but that it is text."""
    try:
        pieces, stat = client.get_archive(container_id, name)
        if stat["size"] > ACCOUNTS_BYTES_MAX:
            return ""
        data = b""
        for piece in pieces:
            data += piece
            if len(data) > 2 * ACCOUNTS_BYTES_MAX:
                return ""
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            member = tar.next()
            file = tar.extractfile(member) if member is not None and member.isreg() else None
            return "" if file is None else file.read(ACCOUNTS_BYTES_MAX).decode(errors="replace")
    except (docker.errors.APIError, tarfile.TarError, ValueError):
        return ""


async def _problem(wire: Wire, path: str) -> DriverFailed:
    failure = await wire.problem()
    if wire.status == NOT_FOUND:
        return DriverFailed("no_such_file", f"the task has no file {path}", transient=False)
    return failure


class FileSession:
    """cube.ports.session.Session of something that is over: this exit code, and this output."""

    def __init__(self, code: int | None = None, said: bytes = b"") -> None:
        self._code, self._said = code, said

    async def output(self) -> AsyncIterator[ExecOutput]:
        if self._said:
            yield ExecOutput("stdout", self._said)

    async def write(self, data: bytes) -> None:
        """Nobody reads it."""

    async def end_input(self) -> None:
        """It has ended."""

    async def resize(self, rows: int, columns: int) -> None:
        """It has no terminal."""

    async def exit_code(self) -> int | None:
        return self._code

    async def close(self) -> None:
        """Nothing is left of it."""


class GetSession(FileSession):
    """Its output is the engine's archive, which waits for who reads it."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    async def output(self) -> AsyncIterator[ExecOutput]:
        pieces = self._wire.body()
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    data = await anext(pieces, None)
                if data is None:
                    break
                yield ExecOutput("stdout", data)
        except (*WEATHER, TimeoutError) as error:
            raise engine_down(f"the archive broke off: {str(error) or 'timed out'}") from None
        self._code = 0

    async def close(self) -> None:
        await self._wire.close()


class PutSession(FileSession):
    """Its input goes to the engine as it comes."""

    def __init__(self, wire: Wire, path: str) -> None:
        super().__init__()
        self._wire, self._path = wire, path
        self._is_whole = False
        self._waiting: asyncio.Timeout | None = None

    async def output(self) -> AsyncIterator[ExecOutput]:
        """Nothing: the engine answers when it has all of it, or can take no more."""
        try:
            async with asyncio.timeout(SILENCE_S if self._is_whole else None) as self._waiting:
                await self._wire.read_head()
        except (*WEATHER, TimeoutError) as error:
            raise engine_down(f"the engine did not say that it has all: {error}") from None
        if self._wire.status != OK:
            raise await _problem(self._wire, self._path)
        self._code = 0
        async for nothing in super().output():
            yield nothing

    async def write(self, data: bytes) -> None:
        if data:
            await self._send(data)

    async def end_input(self) -> None:
        if self._is_whole:
            return
        self._is_whole = True
        await self._send(b"")
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time() + SILENCE_S)

    async def _send(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(SILENCE_S):
                await self._wire.send_chunk(data)
        except TimeoutError:
            raise engine_down("the engine takes nothing any more") from None
        except WEATHER:
            pass  # it has answered: output() says what

    async def close(self) -> None:
        """Of an archive that is not whole the engine keeps what it had unpacked."""
        await self._wire.close()
