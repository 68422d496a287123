"""Commands beside a task, in its container."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import docker.errors
import msgspec
import psutil

from cube.adapters.docker_engine import containers
from cube.adapters.docker_engine.channel import Channel, wait_for_ever
from cube.adapters.docker_engine.engine import CONNECT_S, Client, Engine, describe
from cube.adapters.docker_engine.failures import WEATHER, engine_down, refused
from cube.adapters.docker_engine.frames import read_frames
from cube.adapters.docker_engine.marks import Marks, Raw
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.launch import ExecResult

log = logging.getLogger(__name__)

OUTPUT_BYTES_MAX = 4096  # what ExecResult holds
ANSWER_S = 30.0  # for the engine to begin with it
KILL_S = 5.0  # for the engine to say what to kill
KILL_LOOK_S = 0.1
TREE_MAX = 1_000  # processes looked at; more than a task has by default
STOP_LOOKS, STOP_LOOK_S = 100, 0.005  # for a process to stop; it takes microseconds of its own time


# Whatever is typed goes to the command: this is what nobody types (the default is ^P ^Q). The engine tells
# it of each command, so it is also the mark of those that an agent began.
DETACH_KEYS = ",".join(["ctrl-^"] * 5)
_MARK = base64.b64encode(b"\x1e" * 5).decode()


class Prepared(msgspec.Struct, frozen=True):
    container_id: str
    exec_id: str


async def execute(
    engine: Engine,
    marks: Marks,
    task_id: TaskId,
    attempt: int,
    argv: tuple[str, ...],
    timeout_ms: int,
) -> ExecResult:
    """cube.ports.driver.Driver.execute. The deadline counts from the command's creation."""

    def prepare(client: Client) -> Prepared:
        inspected = containers.find(client, marks, task_id, attempt)
        if inspected is None or not inspected["State"]["Running"]:
            raise DriverFailed(
                "not_running", f"attempt {attempt} of task {task_id} does not run", transient=False
            )
        made: Any = client.exec_create(inspected["Id"], list(argv), detach_keys=DETACH_KEYS)
        engine.commands.add(made["Id"])
        return Prepared(inspected["Id"], made["Id"])

    prepared = await engine.call(prepare)
    channel: Channel[bytes] = Channel()
    await engine.spawn("exec", lambda: _run_blocking(engine, prepared.exec_id, channel))
    output = b""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            async for batch in channel.batches():
                output = (output + b"".join(batch))[:OUTPUT_BYTES_MAX]
            ended: Any = await engine.call(lambda client: client.exec_inspect(prepared.exec_id))
            return ExecResult(ended["ExitCode"], output)
    except TimeoutError:
        await kill_exec(engine, prepared)
        return ExecResult(None, output)
    finally:
        channel.close()
        engine.commands.discard(prepared.exec_id)


def _run_blocking(engine: Engine, exec_id: str, channel: Channel[bytes]) -> None:
    """On a thread: starts it, passes its output on, finishes the channel when it has ended."""
    failure: DriverFailed | None = None
    try:
        client = engine.client()
        # Not the SDK's exec_start(): its raw socket loses what came together with the headers.
        with client.post(
            f"{client.base_url}/v{client.api_version}/exec/{exec_id}/start",
            json={"Detach": False, "Tty": False},
            stream=True,
            timeout=(CONNECT_S, ANSWER_S),
        ) as response:
            channel.attach(response)
            if not response.ok:
                failure = refused(docker.errors.APIError(response.reason, response, response.text))
            else:
                wait_for_ever(response)
                for _, data in read_frames(response):
                    if not channel.put(data, len(data)):
                        break
    except (*WEATHER, ValueError) as error:
        if not channel.is_closed:
            failure = engine_down(f"the command's output broke off: {describe(error)}")
    channel.finish(failure)


async def kill_exec(engine: Engine, prepared: Prepared) -> None:
    """The engine has no call for it: its processes are killed from the host, else from inside. A
    command that the engine has not begun yet is waited for: it would run on for ever."""
    try:
        pid = await _pid_of(engine, prepared)
        if not _is_in(pid, prepared.container_id):
            if pid:  # of another host's process: nobody here can end it
                log.warning("docker_exec_left_running exec=%s reason=other_host", prepared.exec_id)
            return
        with _held(pid) as held:
            # Asked again: a number that the command has now and had before is no other process's.
            if held is None or await _pid_of(engine, prepared) != pid:
                return
            try:
                signal.pidfd_send_signal(held, signal.SIGSTOP)  # from here on it ends by us alone
                await asyncio.to_thread(kill_tree, pid)
            except PermissionError:
                await _kill_inside(engine, prepared, pid)
            except ProcessLookupError:
                return
    except DriverFailed as failure:
        log.warning("docker_exec_left_running exec=%s reason=%s", prepared.exec_id, failure.code)


@contextlib.contextmanager
def _held(pid: int) -> Iterator[int | None]:
    """The process that has this number now; None when there is none."""
    try:
        held = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield held
    finally:
        os.close(held)


def left_over(client: Client, inspected: Raw, known: Set[str]) -> list[Prepared]:
    """Commands that run in this container, have an agent's mark and are not `known`: of an agent that
    was killed. One that was begun by hand is nobody's business. Blocks."""
    found = []
    for exec_id in inspected.get("ExecIDs") or ():
        if exec_id in known:
            continue
        try:
            seen: Any = client.exec_inspect(exec_id)
        except docker.errors.NotFound:  # it has ended meanwhile
            continue
        if seen["Running"] and seen.get("Pid") and seen.get("DetachKeys") == _MARK:
            found.append(Prepared(inspected["Id"], exec_id))
    return found


def is_over(seen: Any) -> bool:
    """Of an exec_inspect: what has not begun does not run either, and has no exit code."""
    return not seen["Running"] and seen["ExitCode"] is not None


async def _pid_of(engine: Engine, prepared: Prepared) -> int:
    """0 when it has ended."""
    for _ in range(round(KILL_S / KILL_LOOK_S)):
        seen: Any = await engine.call(
            lambda client: client.exec_inspect(prepared.exec_id), timeout_ms=int(KILL_S * 1000)
        )
        pid = int(seen["Pid"] or 0)
        if is_over(seen):
            return 0
        if pid:
            return pid
        await asyncio.sleep(KILL_LOOK_S)
    raise DriverFailed("not_begun", "the engine has not begun with it", transient=True)


def _is_in(pid: int, container_id: str) -> bool:
    """Whether this host's process with that number belongs to the container: it may be another
    host's engine, or another pid namespace than ours."""
    try:
        return pid > 1 and container_id in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def kill_tree(pid: int) -> None:
    """The process and its descendants, also those that it is about to have: each is stopped before it
    is asked for its children. A child whose parent is dead would be found by nobody. Blocks; raises
    PermissionError."""
    tree = [pid]
    stopped = 0
    while stopped < min(len(tree), TREE_MAX):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            one = psutil.Process(tree[stopped])
            os.kill(one.pid, signal.SIGSTOP)
            _wait_stopped(one)
            tree += (child.pid for child in one.children())
        stopped += 1
    for victim in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def _wait_stopped(process: psutil.Process) -> None:
    """One that is in the midst of a fork has the child first."""
    for _ in range(STOP_LOOKS):
        if process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            return
        time.sleep(STOP_LOOK_S)


async def _kill_inside(engine: Engine, prepared: Prepared, pid: int) -> None:
    """For an agent that is not root: works when the image has a `kill`."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return
    inside = next(
        (line.split()[-1] for line in status.splitlines() if line.startswith("NSpid")), ""
    )
    if not inside.isdecimal():
        return

    def kill(client: Client) -> None:
        made: Any = client.exec_create(prepared.container_id, ["kill", "-9", inside], user="root")
        client.exec_start(made["Id"], detach=True)

    await engine.call(kill, timeout_ms=int(KILL_S * 1000))
