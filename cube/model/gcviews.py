"""The JSON shapes of cleaning: what cube.api.housekeeping renders and cube.client reads."""

from __future__ import annotations

import msgspec


class GcImageView(msgspec.Struct, frozen=True, kw_only=True):
    """`size_bytes`: with what other images share. `keep`: why it stays; null: it may go, or has gone."""

    id: str
    names: tuple[str, ...]
    size_bytes: int
    used_at: str | None
    keep: str | None


class GcOutputView(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a finished task. `task`: its name, null once the cluster has forgotten it."""

    driver: str
    task_id: str
    task: str | None
    ended_at: str | None
    keep: str | None


class GcDiskView(msgspec.Struct, frozen=True, kw_only=True):
    """Where the images are. By itself the node removes images while less than `wanted_free_bytes` is
    free; null: never."""

    path: str
    total_bytes: int
    free_bytes: int
    wanted_free_bytes: int | None


class GcPlanView(msgspec.Struct, frozen=True, kw_only=True):
    """Of both kinds those that may go come first, among images the longest unused. `problems`: what
    could not be looked at."""

    node: str
    disk: GcDiskView | None
    images: tuple[GcImageView, ...]
    outputs: tuple[GcOutputView, ...]
    problems: tuple[str, ...]


class GcDoneView(msgspec.Struct, frozen=True, kw_only=True):
    """What went. `freed_bytes`: by how much more is free where the images are. `more`: it goes on; the
    same request tells of the rest."""

    node: str
    images: tuple[GcImageView, ...]
    outputs: tuple[GcOutputView, ...]
    freed_bytes: int
    more: bool
    problems: tuple[str, ...]
