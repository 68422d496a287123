"""What a container uses, as the engine counts it."""

from __future__ import annotations

from typing import Any

from cube.adapters.docker_engine import containers
from cube.adapters.docker_engine.engine import Client
from cube.adapters.docker_engine.marks import Marks
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.launch import TaskStats

ONE_SHOT_API = (1, 41)  # before, the engine waits two seconds for a second sample


def usage(client: Client, marks: Marks, task_id: TaskId, attempt: int, at_ms: int) -> TaskStats:
    """See Driver.stats. On a thread."""
    inspected = containers.find(client, marks, task_id, attempt)
    if inspected is None or not inspected["State"]["Running"]:
        raise DriverFailed(
            "not_running", f"attempt {attempt} of task {task_id} does not run", transient=False
        )
    version = tuple(int(part) for part in client.api_version.split(".")[:2])
    one_shot = True if version >= ONE_SHOT_API else None
    told: Any = client.stats(inspected["Id"], stream=False, one_shot=one_shot)
    return stats_of(told, at_ms)


def stats_of(told: dict[str, Any], at_ms: int) -> TaskStats:
    """The engine's answer, of which anything may be missing: on some hosts it cannot count all."""
    memory: dict[str, Any] = told.get("memory_stats") or {}
    details: dict[str, int] = memory.get("stats") or {}
    used = memory.get("usage")
    cache = details.get("inactive_file", details.get("total_inactive_file", 0))
    cpu_ns = ((told.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    networks: dict[str, dict[str, int]] | None = told.get("networks")
    return TaskStats(
        at_ms=at_ms,
        cpu_ms=None if cpu_ns is None else cpu_ns // 1_000_000,
        memory_bytes=None if used is None else max(0, used - cache),
        memory_limit_bytes=memory.get("limit"),
        pids=(told.get("pids_stats") or {}).get("current"),
        read_bytes=_io(told, "read"),
        written_bytes=_io(told, "write"),
        received_bytes=_sum(networks, "rx_bytes"),
        sent_bytes=_sum(networks, "tx_bytes"),
    )


def _io(told: dict[str, Any], kind: str) -> int | None:
    rows = (told.get("blkio_stats") or {}).get("io_service_bytes_recursive")
    if rows is None:
        return None
    return sum(int(row["value"]) for row in rows if row["op"].lower() == kind)


def _sum(networks: dict[str, dict[str, int]] | None, name: str) -> int | None:
    return None if networks is None else sum(one.get(name, 0) for one in networks.values())
