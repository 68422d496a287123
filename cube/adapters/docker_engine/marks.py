"""How we know what is ours: names and labels of containers, and what the engine says of them. Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Launch, Observation, RunState

LABEL_CLUSTER = "cube.cluster"
LABEL_NODE = "cube.node"
LABEL_TASK = "cube.task"
LABEL_ATTEMPT = "cube.attempt"
LABEL_TASK_NAME = "cube.task_name"
LABEL_BOOT = "cube.boot"  # the boot id of the host that the agent ran on
NAME_PREFIX = "cube-"
KEPT_PREFIX = "cube-logs-"
# What the engine says of a container that ran when its host went down.
EXIT_UNKNOWN = 255

REASON_CHARS_MAX = 200
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

Raw = Mapping[str, Any]  # JSON of the engine's


def container_name(task_id: TaskId, attempt: int) -> str:
    """The engine lets one container have it: that is what makes a start happen once."""
    return f"{NAME_PREFIX}{task_id}-{attempt}"


def kept_name(task_id: TaskId, attempt: int) -> str:
    """Of an ended attempt that is gone for everybody but logs()."""
    return f"{KEPT_PREFIX}{task_id}-{attempt}"


class Found(msgspec.Struct, frozen=True):
    """A container of ours in a listing. `is_kept`: only its output is of interest any more."""

    id: str
    task_id: TaskId
    attempt: int
    status: str  # the engine's word
    is_kept: bool

    @property
    def is_running(self) -> bool:
        return self.status in _RUNNING

    @property
    def is_unstarted(self) -> bool:
        return self.status == "created"


_RUNNING = frozenset({"running", "paused", "restarting"})


class Marks:
    """Of one cluster's node."""

    def __init__(self, cluster_id: ClusterId, node_id: NodeId, boot_id: str = "") -> None:
        """`boot_id`: of this host since it was last booted."""
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._boot_id = boot_id

    def labels(self, launch: Launch) -> dict[str, str]:
        return {
            LABEL_CLUSTER: self._cluster_id,
            LABEL_NODE: self._node_id,
            LABEL_TASK: launch.task_id,
            LABEL_ATTEMPT: str(launch.attempt),
            LABEL_BOOT: self._boot_id,
            LABEL_TASK_NAME: launch.task_name,
            "cube.job": launch.job,
            "cube.group": launch.group,
        }

    def observe(self, inspected: Raw, task_id: TaskId, attempt: int) -> Observation:
        """observe(), and whether it ended with its host."""
        seen = observe(inspected, task_id, attempt)
        boot_id = (inspected["Config"].get("Labels") or {}).get(LABEL_BOOT, self._boot_id)
        if seen.exit_code != EXIT_UNKNOWN or boot_id == self._boot_id:
            return seen
        return msgspec.structs.replace(seen, exit_code=None, reason="its host was rebooted")

    def volume_labels(self) -> dict[str, str]:
        return {LABEL_CLUSTER: self._cluster_id}

    def filters(self, task_id: TaskId | None = None) -> list[str]:
        """For the engine's `label` filter, which wants all of them."""
        wanted = [f"{LABEL_CLUSTER}={self._cluster_id}", f"{LABEL_NODE}={self._node_id}"]
        if task_id is not None:
            wanted.append(f"{LABEL_TASK}={task_id}")
        return wanted

    def are_on(self, labels: Mapping[str, str] | None) -> bool:
        labels = labels or {}
        return (
            labels.get(LABEL_CLUSTER) == self._cluster_id
            and labels.get(LABEL_NODE) == self._node_id
            and LABEL_TASK in labels
            and labels.get(LABEL_ATTEMPT, "").isdecimal()
        )

    def found(self, listed: Raw) -> Found | None:
        """From an item of GET /containers/json; None when it is not ours, or somebody renamed it."""
        labels = listed.get("Labels") or {}
        if not self.are_on(labels):
            return None
        task_id, attempt = TaskId(labels[LABEL_TASK]), int(labels[LABEL_ATTEMPT])
        names = {name.removeprefix("/") for name in listed.get("Names") or ()}
        is_kept = kept_name(task_id, attempt) in names
        if not is_kept and container_name(task_id, attempt) not in names:
            return None
        return Found(listed["Id"], task_id, attempt, listed["State"], is_kept)


def gone(task_id: TaskId, attempt: int) -> Observation:
    return Observation(task_id=task_id, attempt=attempt, state=RunState.GONE)


def observe(inspected: Raw, task_id: TaskId, attempt: int) -> Observation:
    """From GET /containers/X/json. What was created and never started has not run: GONE."""
    state = inspected["State"]
    status = state["Status"]
    if status in _RUNNING:
        return Observation(
            task_id=task_id,
            attempt=attempt,
            state=RunState.RUNNING,
            handle=inspected["Id"],
            reason="paused" if status == "paused" else "",
            started_at_ms=time_ms(state["StartedAt"]),
        )
    if status not in ("exited", "dead"):
        return gone(task_id, attempt)
    exit_code = int(state["ExitCode"])
    # The engine also sets it when only a child of a task that ended well was killed.
    oom_killed = bool(state["OOMKilled"]) and exit_code != 0
    started_at_ms = time_ms(state["StartedAt"])
    return Observation(
        task_id=task_id,
        attempt=attempt,
        state=RunState.EXITED,
        handle=inspected["Id"],
        exit_code=exit_code,
        oom_killed=oom_killed,
        reason="oom_killed" if oom_killed else state.get("Error", "")[:REASON_CHARS_MAX],
        started_at_ms=started_at_ms,
        # The engine stamps a start when it has heard of it: a short task may have ended before.
        finished_at_ms=max(started_at_ms, time_ms(state["FinishedAt"])),
    )


def time_ns(text: str) -> int:
    """Of the engine's RFC 3339 with up to nine digits; 0 for its zero time (year 1)."""
    match = _TIME.fullmatch(text)
    if match is None:
        return 0
    seconds, fraction, zone = match.groups()
    at = datetime.datetime.fromisoformat(seconds + zone.replace("Z", "+00:00"))
    if at < _EPOCH:
        return 0
    whole = (at - _EPOCH) // datetime.timedelta(seconds=1)
    return whole * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))


def time_ms(text: str) -> int:
    return time_ns(text) // 1_000_000
