"""Which keys of a job file are sizes and which are durations, for those who write them out."""

from __future__ import annotations

SIZE_KEYS = frozenset({"memory", "memory_max", "disk", "shm_size", "memory_swap", "size"})
DURATION_KEYS = frozenset(
    {"stop_timeout", "shutdown_delay", "lost_after", "interval", "timeout", "start_period", "window",
     "delay", "max_delay", "min_healthy", "deadline"}
)  # fmt: skip
