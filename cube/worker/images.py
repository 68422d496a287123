"""Which images of this node may be removed. Pure, as the machine is; services/image_keeper acts on it.

Only what a pull of Cube's own brought here is ever removed, and only under the names that Cube gave
it: a further name is somebody's wish to keep it. What cannot be known for sure counts as use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import msgspec

from cube.model.housekeeping import DiskRoom, ImageVerdict
from cube.model.images import ImagePulled, ImageSeen, canonical, repository
from cube.model.units import format_duration
from cube.worker.disk import CLEAR_PERCENT

RECORDS_MAX = 5_000  # images of one node; what is pulled beyond is never removed
NAMES_MAX = 100  # likewise, of one image
NEVER_PERCENT = 100  # a disk is never fuller


class ImageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[gc]`. Images go that nothing used for `unused_for_ms`, while the disk is fuller than
    `disk_percent` or has little more than `free_min_bytes` free."""

    unused_for_ms: int = 86_400_000
    disk_percent: int = 80
    free_min_bytes: int = 1 << 30


class ImageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An image that Cube pulled on this node. `names`: canonical, each given by a pull of Cube's."""

    id: str
    names: tuple[str, ...]
    pulled_at_ms: int
    used_at_ms: int  # when it was last seen in use; its pull counts


class ImageMemory:
    """What is known of the images that Cube pulled through one driver. Times are the wall clock's:
    they outlive the agent."""

    def __init__(self, records: Sequence[ImageRecord], unused_for_ms: int) -> None:
        self._records = {one.id: one for one in records[:RECORDS_MAX]}
        self._unused_for_ms = unused_for_ms

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """By id."""
        return tuple(self._records[key] for key in sorted(self._records))

    def pulled(self, pulled: ImagePulled, now_ms: int) -> None:
        """It is ours when it came by this pull. One that was here and is not ours stays so."""
        known = self._records.get(pulled.id)
        if known is not None:
            names = tuple(sorted({*known.names, pulled.name}))[:NAMES_MAX]
            self._records[pulled.id] = msgspec.structs.replace(
                known, names=names, used_at_ms=max(known.used_at_ms, now_ms)
            )
        elif not pulled.was_here and len(self._records) < RECORDS_MAX:
            self._records[pulled.id] = ImageRecord(
                id=pulled.id, names=(pulled.name,), pulled_at_ms=now_ms, used_at_ms=now_ms
            )

    def look(
        self, seen: Sequence[ImageSeen], wanted: Set[str], asked_at_ms: int, now_ms: int
    ) -> list[ImageVerdict]:
        """What the engine has, asked for at `asked_at_ms`, each with a verdict; those that may go
        first, the longest unused before others. `wanted`: canonical names that tasks of this host
        go by, also those that have ended and are remembered.

        An image that is not there any more is not ours any more, should it come back."""
        here = {one.id for one in seen}
        for record in self.records:
            if record.id not in here and record.pulled_at_ms < asked_at_ms:
                del self._records[record.id]
        verdicts = [self._judge(one, wanted, now_ms) for one in seen]
        return sorted(verdicts, key=lambda one: (bool(one.keep), one.used_at_ms, one.id))

    def _judge(self, image: ImageSeen, wanted: Set[str], now_ms: int) -> ImageVerdict:
        record = self._records.get(image.id)
        names = {canonical(name) for name in image.names}
        users = image.users or sorted(names & wanted)
        if record is not None:
            # A clock that was set back must not keep an image for ever.
            used_at_ms = now_ms if users else min(record.used_at_ms, now_ms)
            record = self._records[image.id] = msgspec.structs.replace(
                record, used_at_ms=used_at_ms, pulled_at_ms=min(record.pulled_at_ms, now_ms)
            )
        return ImageVerdict(
            id=image.id,
            names=image.names,
            size_bytes=image.size_bytes,
            used_at_ms=0 if record is None else record.used_at_ms,
            keep=self._why_kept(image, record, names, wanted, now_ms),
        )

    def _why_kept(
        self,
        image: ImageSeen,
        record: ImageRecord | None,
        names: Set[str],
        wanted: Set[str],
        now_ms: int,
    ) -> str:
        if record is None:
            return "Cube did not pull it here"
        if image.users:
            return f"a container has it: {image.users[0]}"
        if names & wanted:
            return "a task that is placed here, or is remembered, goes by it"
        if foreign := _foreign(image.names, record.names):
            return f"{foreign} is a name that Cube did not give it"
        if image.is_base:
            return "another image is built on it"
        unused_ms = now_ms - record.used_at_ms
        if unused_ms < self._unused_for_ms:
            least = format_duration(self._unused_for_ms)
            return f"last used {format_duration(unused_ms)} ago, less than {least}"
        return ""

    def may_go(self, verdict: ImageVerdict, wanted: Set[str], now_ms: int) -> bool:
        """Still, after a while in which others may have gone: no task has come that goes by it."""
        record = self._records.get(verdict.id)
        if verdict.keep or record is None or now_ms - record.used_at_ms < self._unused_for_ms:
            return False
        return not {canonical(name) for name in verdict.names} & wanted

    def removed(self, image_id: str) -> None:
        """It is gone."""
        self._records.pop(image_id, None)


def _foreign(names: Sequence[str], ours: Sequence[str]) -> str:
    """A name of the image's that no pull of ours gave it. Digests are given by the way."""
    repositories = {repository(name) for name in ours}
    for name in names:
        full = canonical(name)
        if full not in ours and ("@" not in full or repository(full) not in repositories):
            return name
    return ""


def room_wanted_bytes(room: DiskRoom, settings: ImageSettings) -> int:
    """How much is to be free, before images stay. Unused ones go before a node has to refuse tasks
    for want of room (DiskFloor). 0: images never go by themselves."""
    if settings.disk_percent >= NEVER_PERCENT:
        return 0
    by_percent = room.total_bytes * (100 - settings.disk_percent) // 100
    return min(room.total_bytes, max(by_percent, settings.free_min_bytes * CLEAR_PERCENT // 100))


def records_by_driver(memories: Mapping[str, ImageMemory]) -> dict[str, list[ImageRecord]]:
    """For the node's disk."""
    return {name: list(memories[name].records) for name in sorted(memories)}
