"""What a node could be rid of: images that nothing uses any more, and what finished tasks left."""

from __future__ import annotations

import msgspec

from cube.model.ids import TaskId


class ImageVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """`keep`: why it stays; empty: it may go. `used_at_ms` 0: nobody knows."""

    id: str
    names: tuple[str, ...]
    size_bytes: int  # what other images share with it included
    used_at_ms: int = 0
    keep: str = ""


class OutputVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a task of which no attempt is on the node any more. `keep` as above; it may go
    once the cluster has forgotten the task. `name`: while it has not."""

    driver: str
    task_id: TaskId
    name: str = ""
    ended_at_ms: int = 0
    keep: str = ""


class DiskRoom(msgspec.Struct, frozen=True, kw_only=True):
    """Of one file system, as users may fill it."""

    total_bytes: int
    free_bytes: int


class Waste(msgspec.Struct, frozen=True, kw_only=True):
    """All that the node has of either kind. `path`: where its images are; `room` None: that is not on
    this machine. By itself the node removes images while less than `room_wanted_bytes` is free.
    `problems`: what could not be looked at, as sentences."""

    images: tuple[ImageVerdict, ...] = ()
    outputs: tuple[OutputVerdict, ...] = ()
    path: str = ""
    room: DiskRoom | None = None
    room_wanted_bytes: int = 0  # 0: never
    problems: tuple[str, ...] = ()


class Cleaned(msgspec.Struct, frozen=True, kw_only=True):
    """What went. `freed_bytes`: by how much more is free where the images are, whoever freed or filled
    it meanwhile. `is_more`: it goes on; ask again."""

    images: tuple[ImageVerdict, ...] = ()
    outputs: tuple[OutputVerdict, ...] = ()
    freed_bytes: int = 0
    is_more: bool = False
    problems: tuple[str, ...] = ()
