"""Raft alone: three members as three processes on loopback, fdatasync on. See ../bench_raft.py."""

from __future__ import annotations

from typing import Any

from bench_raft import bench


def main(args: list[str]) -> dict[str, Any]:
    return bench(args)
