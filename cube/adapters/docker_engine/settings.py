"""What a node's configuration says of its Docker Engine: [drivers.docker], [logs]."""

from __future__ import annotations

import msgspec


class DockerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`host` None: DOCKER_HOST and its companions, else the default socket."""

    host: str | None = None
    allow: tuple[str, ...] = ()  # of cube.model.allowed.ALLOW_WORDS
    call_timeout_ms: int = 30_000  # create and start under load take seconds; longer is a hang
    ping_timeout_ms: int = 2_000  # an engine that is well answers a ping in about a millisecond
    pull_timeout_ms: int = 600_000
    pool_size: int = 8  # in flight: the engine's rate is flat from 4 on (performance.md)
    log_file_bytes: int = 10 << 20  # per file of a container's output
    log_files: int = 2
