"""What is done to containers, as plain blocking functions over the SDK's client.

Each is one visit of a pool thread. They raise DriverFailed for what they understand, and let the
SDK's own errors pass to Engine, which maps them.
"""

from __future__ import annotations

import logging
import time

import docker.errors
import msgspec

from cube.adapters.docker_engine.engine import Client
from cube.adapters.docker_engine.failures import WEATHER
from cube.adapters.docker_engine.marks import (
    REASON_CHARS_MAX,
    Found,
    Marks,
    Raw,
    container_name,
    gone,
    kept_name,
)
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.launch import Launch, Observation

log = logging.getLogger(__name__)

CONFLICT = 409
NAME_TRIES = 20  # 2 s: a creation takes a tenth of it
NAME_RETRY_S = 0.1
# Of the container's init (tini) when it cannot execute the command, as a shell would exit.
NOT_EXECUTED = (126, 127)
INIT_FATAL = "[FATAL tini"
INIT_LINES = 5


def find(client: Client, marks: Marks, task_id: TaskId, attempt: int) -> Raw | None:
    """The attempt's container as inspected, if there is one and it is ours."""
    try:
        inspected: Raw = client.inspect_container(container_name(task_id, attempt))
    except docker.errors.NotFound:
        return None
    return inspected if marks.are_on(inspected["Config"]["Labels"]) else None


def look(client: Client, marks: Marks, task_id: TaskId, attempt: int) -> Observation:
    inspected = find(client, marks, task_id, attempt)
    if inspected is None:
        return gone(task_id, attempt)
    return _look_at(client, marks, inspected, task_id, attempt)


def _look_at(
    client: Client, marks: Marks, inspected: Raw, task_id: TaskId, attempt: int
) -> Observation:
    seen = marks.observe(inspected, task_id, attempt)
    if seen.exit_code in NOT_EXECUTED and inspected["HostConfig"].get("Init"):
        return msgspec.structs.replace(seen, reason=_said_by_init(client, seen.handle))
    return seen


def _said_by_init(client: Client, container_id: str) -> str:
    """Why the command could not be executed, when that is what happened. Without an init the engine
    itself says so at the start; with one, the container starts, and init says it as its last words."""
    try:
        tail: bytes = client.logs(container_id, stdout=False, tail=INIT_LINES)
    except WEATHER:
        return ""
    for line in tail.decode(errors="replace").splitlines():
        if line.startswith(INIT_FATAL):
            return line.partition("] ")[2][:REASON_CHARS_MAX]
    return ""


def check_network(client: Client, mode: str) -> None:
    """A named network is there. Raises DriverFailed."""
    try:
        client.inspect_network(mode)
    except docker.errors.NotFound:
        raise DriverFailed(
            "network_missing",
            f"there is no network {mode} on this node: docker network create {mode} there, or set "
            "docker.network_mode to another",
            transient=False,
        ) from None


def listing(client: Client, marks: Marks, task_id: TaskId | None = None) -> list[Found]:
    """All of ours, of the task or of all tasks, oldest attempt first; kept ones too."""
    items = client.containers(all=True, filters={"label": marks.filters(task_id)})
    found = [one for item in items if (one := marks.found(item)) is not None]
    return sorted(found, key=lambda one: (one.task_id, one.attempt))


def start(
    client: Client, marks: Marks, launch: Launch, config: dict[str, object], *, is_first: bool
) -> Observation:
    """It runs, or ran already. Three requests when `is_first`: nothing of the task is here yet."""
    older = [] if is_first else _replaced_by(client, marks, launch)
    container_id, status = _create(client, marks, launch, config)
    if status == "created":
        _retire(client, older)
        _start_created(client, container_id)
    return look(client, marks, launch.task_id, launch.attempt)


def _create(
    client: Client, marks: Marks, launch: Launch, config: dict[str, object]
) -> tuple[str, str]:
    """Id and status of the attempt's container: a new one, or the one that has its name already."""
    name = container_name(launch.task_id, launch.attempt)
    for _ in range(NAME_TRIES):
        try:
            made: Raw = client.create_container_from_config(config, name)  # type: ignore[no-untyped-call]
        except docker.errors.APIError as error:
            if error.response is None or error.response.status_code != CONFLICT:
                raise
        else:
            return made["Id"], "created"
        try:
            there: Raw = client.inspect_container(name)
        except docker.errors.NotFound:
            # A creation, whose answer we did not wait for, or a removal is under way.
            time.sleep(NAME_RETRY_S)
            continue
        if not marks.are_on(there["Config"]["Labels"]):
            raise DriverFailed(
                "name_taken", f"a container {name} is there that is not ours", transient=False
            )
        return there["Id"], there["State"]["Status"]
    raise DriverFailed("engine_busy", f"the engine is still at work on {name}", transient=True)


def _replaced_by(client: Client, marks: Marks, launch: Launch) -> list[Found]:
    """The earlier attempts. Raises DriverFailed when this one may not start."""
    others = listing(client, marks, launch.task_id)
    for one in others:
        if one.attempt > launch.attempt or (one.attempt == launch.attempt and one.is_kept):
            raise DriverFailed(
                "attempt_superseded",
                f"attempt {one.attempt} of task {launch.task_id} was started already",
                transient=False,
            )
        if one.attempt < launch.attempt and one.is_running:
            raise DriverFailed("still_running", f"attempt {one.attempt} still runs", transient=True)
    return [one for one in others if one.attempt < launch.attempt]


def _retire(client: Client, older: list[Found]) -> None:
    """Only the newest one's output is left of them, under a name that no attempt has."""
    newest = max((one.attempt for one in older if not one.is_unstarted), default=0)
    for one in older:
        if one.attempt != newest:
            delete(client, one.id)
        elif not one.is_kept:
            client.rename(one.id, kept_name(one.task_id, one.attempt))


def _start_created(client: Client, container_id: str) -> None:
    """Runs, or is not there: what cannot start leaves nothing that a later start would trip over."""
    try:
        client.start(container_id)
    except docker.errors.APIError:
        try:
            delete(client, container_id)
        except WEATHER:
            log.warning("docker_left_behind container=%s", container_id)
        raise


def delete(client: Client, container_id: str) -> None:
    """It is not there, nor are its anonymous volumes. Refused by the engine when it runs."""
    try:
        client.remove_container(container_id, v=True)
    except docker.errors.NotFound:
        pass
    except docker.errors.APIError as error:
        # Somebody else removes it at this moment.
        if "already in progress" not in str(error.explanation):
            raise


def signal(client: Client, container_id: str, name: str) -> None:
    """Sent, unless it has ended already. A signal the engine does not know becomes KILL."""
    try:
        client.kill(container_id, name)
    except docker.errors.NotFound:
        pass
    except docker.errors.APIError as error:
        text = str(error.explanation).lower()
        if "invalid signal" in text:
            signal(client, container_id, "SIGKILL")  # better than a task that nothing stops
        elif "is not running" not in text:
            raise


def signal_running(client: Client, marks: Marks, task_id: TaskId, attempt: int, name: str) -> None:
    """Sent to an attempt that runs; a signal the engine does not know is refused."""
    inspected = find(client, marks, task_id, attempt)
    if inspected is None or not inspected["State"]["Running"]:
        raise DriverFailed(
            "not_running", f"attempt {attempt} of task {task_id} does not run", transient=False
        )
    try:
        client.kill(inspected["Id"], name)
    except docker.errors.APIError as error:
        if "invalid signal" not in str(error.explanation).lower():
            raise
        raise DriverFailed("bad_signal", f"there is no signal {name!r}", transient=False) from None


def discard_unstarted(client: Client, inspected: Raw) -> None:
    """What was created and not started is not there: no later start of it can take effect."""
    if inspected["State"]["Status"] == "created":
        delete(client, inspected["Id"])


def recover(client: Client, marks: Marks, one: Found) -> tuple[Observation, Raw | None]:
    """What one of a listing is now, and as it was inspected. Created and never started: it is removed.
    No start of the task may be under way."""
    inspected = find(client, marks, one.task_id, one.attempt)
    if inspected is None:
        return gone(one.task_id, one.attempt), None
    if inspected["State"]["Status"] == "created":
        if one.is_unstarted:
            discard_unstarted(client, inspected)
        return gone(one.task_id, one.attempt), None
    return _look_at(client, marks, inspected, one.task_id, one.attempt), inspected


def kept(client: Client, marks: Marks) -> list[TaskId]:
    """Tasks of which only containers that hold output are left."""
    found = listing(client, marks)
    live = {one.task_id for one in found if not one.is_kept}
    return sorted({one.task_id for one in found} - live)


def remove(client: Client, marks: Marks, task_id: TaskId, *, keep_logs: bool) -> None:
    """Nothing of the task is left, or the containers that hold its output, under other names."""
    found = listing(client, marks, task_id)
    for one in found:
        if one.is_running:
            raise DriverFailed(
                "still_running", f"attempt {one.attempt} of task {task_id} runs", transient=True
            )
    for one in found:
        if one.is_unstarted or not keep_logs:
            delete(client, one.id)
        elif not one.is_kept:
            client.rename(one.id, kept_name(one.task_id, one.attempt))
