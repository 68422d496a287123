"""What the engine says of a container's use, of which anything may be missing."""

from __future__ import annotations

from cube.adapters.docker_engine.usage import stats_of
from cube.model.launch import TaskStats

TOLD = {
    "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}},
    "memory_stats": {"usage": 10_000, "limit": 50_000, "stats": {"total_inactive_file": 4_000}},
    "pids_stats": {"current": 3},
    "blkio_stats": {
        "io_service_bytes_recursive": [
            {"op": "Read", "value": 5}, {"op": "Write", "value": 6}, {"op": "read", "value": 7},
            {"op": "Total", "value": 18},
        ]
    },
    "networks": {"eth0": {"rx_bytes": 1, "tx_bytes": 2}, "eth1": {"rx_bytes": 10, "tx_bytes": 20}},
}  # fmt: skip


def test_everything_that_is_told() -> None:
    assert stats_of(TOLD, 7) == TaskStats(
        at_ms=7, cpu_ms=2_500, memory_bytes=6_000, memory_limit_bytes=50_000, pids=3,
        read_bytes=12, written_bytes=6, received_bytes=11, sent_bytes=22,
    )  # fmt: skip


def test_what_is_not_told_is_not_known() -> None:
    nothing = {
        "cpu_stats": {},
        "memory_stats": {},
        "blkio_stats": {"io_service_bytes_recursive": None},
    }
    for told in ({}, nothing):
        assert stats_of(told, 7) == TaskStats(at_ms=7)
