"""The images that Cube pulled on this node: what is known of them is on its disk, and those that nothing
has used for long go while the engine's disk is too full. What decides is cube.worker.images."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from cube.model.cluster import ClusterState
from cube.model.errors import DriverFailed, Unavailable
from cube.model.housekeeping import DiskRoom, ImageVerdict
from cube.model.ids import NodeId
from cube.model.images import ImagePulled, canonical, pinned
from cube.model.units import format_size
from cube.ports.clock import Clock
from cube.ports.disk import Disk
from cube.ports.driver import Driver
from cube.ports.images import ImageStore
from cube.worker.images import (
    ImageMemory,
    ImageRecord,
    ImageSettings,
    records_by_driver,
    room_wanted_bytes,
)

FILE = "images.json"
LOOK_S = 60.0  # a use that begins and ends within it is not seen; a day is the measure
TRIED_PER_LOOK_MAX = 20  # removals: then others have a turn at the engine
REFUSED_PAUSE_MS = 3_600_000  # an image that the engine would not remove is left alone for so long
NOT_NOW = ("image_in_use", "image_renamed")

_log = logging.getLogger(__name__)


class ImageKeeper:
    """`attach` first, once the drivers are there and before they are opened."""

    def __init__(
        self,
        node_id: NodeId,
        disk: Disk,
        clock: Clock,
        state: Callable[[], ClusterState],
        is_caught_up: Callable[[], bool],
        drivers: Mapping[str, Driver],
        path_of: Callable[[str], str],
        room_at: Callable[[str], DiskRoom | None],
        settings: ImageSettings,
    ) -> None:
        """`path_of`: where this driver's engine has its images, empty until it has said so."""
        self._node_id = node_id
        self._disk = disk
        self._clock = clock
        self._state = state
        self._is_caught_up = is_caught_up
        self._drivers = drivers
        self._path_of = path_of
        self._room_at = room_at
        self._settings = settings
        self._memories: dict[str, ImageMemory] = {}
        self._changed = asyncio.Event()
        self._saved = b""
        self._is_failing = False
        self._refused: dict[str, int] = {}  # until when (monotonic), by image
        self._failures: dict[str, str] = {}  # code of the last look, by driver
        self._removing = asyncio.Lock()

    def attach(self) -> None:
        """What is known of earlier pulls is read; of later ones the drivers tell."""
        known = self._read()
        for name in sorted(self._drivers):
            driver = self._drivers[name]
            if isinstance(driver, ImageStore):
                memory = ImageMemory(known.get(name, ()), self._settings.unused_for_ms)
                self._memories[name] = memory
                driver.tell_pulls(partial(self._on_pulled, memory))

    def _read(self) -> dict[str, list[ImageRecord]]:
        """A file that cannot be read costs disk: what it had is nobody's, and never removed."""
        try:
            data = self._disk.read(FILE)
            if data is None:
                return {}
            return msgspec.json.decode(data, type=dict[str, list[ImageRecord]])
        except (Unavailable, msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.warning("images_forgotten file=%s cause=%s", FILE, error)
            return {}

    def _on_pulled(self, memory: ImageMemory, pulled: ImagePulled) -> None:
        memory.pulled(pulled, self._clock.now_ms())
        self._changed.set()

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watch())
            while True:
                await self._changed.wait()
                await self.save()

    async def watch(self) -> None:
        """For ever: a look each LOOK_S."""
        while True:
            if self._is_caught_up():
                await self.look()
            await asyncio.sleep(LOOK_S)

    async def save(self) -> None:
        """What is known is on the disk, if that can be written; one call at a time. In a thread: a disk
        that hangs must not hold up the loop, nor a task that has just got its image."""
        self._changed.clear()
        data = msgspec.json.encode(records_by_driver(self._memories))
        if data == self._saved:
            return
        try:
            await asyncio.to_thread(self._disk.replace, FILE, data)
        except Unavailable as error:
            if not self._is_failing:
                _log.error("images_not_written cause=%s", error)
            self._is_failing = True
        else:
            self._is_failing = False
            self._saved = data

    # What there is

    def wanted(self) -> frozenset[str]:
        """The names that tasks of this host go by: of every node that has its address, for they may
        share an engine."""
        return wanted_images(self._state(), self._node_id)

    async def verdicts(self, driver: str) -> list[ImageVerdict]:
        """All images of this driver's engine, those that may go first. Raises DriverFailed."""
        store = self._drivers[driver]
        assert isinstance(store, ImageStore)
        asked_at_ms = self._clock.now_ms()
        seen = await store.images()
        found = self._memories[driver].look(seen, self.wanted(), asked_at_ms, self._clock.now_ms())
        self._changed.set()
        return found

    @property
    def drivers(self) -> list[str]:
        """Those that have images."""
        return sorted(self._memories)

    def is_known(self, driver: str) -> bool:
        """Its engine is, or was, there. Drivers are tried where they might work."""
        return bool(self._memories[driver].records or self._path_of(driver))

    def room(self, driver: str) -> tuple[str, DiskRoom | None, int]:
        """Where the driver's images are, what room is there, and how much of it is to be free."""
        path = self._path_of(driver)
        room = self._room_at(path) if path else None
        return path, room, 0 if room is None else room_wanted_bytes(room, self._settings)

    def _is_short(self, driver: str) -> bool:
        _, room, wanted_bytes = self.room(driver)
        return room is not None and room.free_bytes < wanted_bytes

    # What goes

    async def look(self) -> int:
        """Uses are noted; where the disk is too full, unused images went. How many."""
        count = 0
        for name in self.drivers:
            if not self._memories[name].records:
                continue  # nothing of ours is there, so the engine need not be asked
            try:
                count += await self._look(name)
            except DriverFailed as failed:
                if failed.code != self._failures.get(name):
                    _log.info("images_not_seen driver=%s code=%s", name, failed.code)
                self._failures[name] = failed.code
            else:
                self._failures.pop(name, None)
        return count

    async def _look(self, driver: str) -> int:
        now_ms = self._clock.monotonic_ms()
        self._refused = {key: until for key, until in self._refused.items() if until > now_ms}
        count = tried = 0
        for verdict in await self.verdicts(driver):
            if verdict.keep or tried == TRIED_PER_LOOK_MAX or not self._is_short(driver):
                break
            if verdict.id in self._refused:
                continue
            tried += 1
            count += await self.remove(driver, verdict)
        return count

    async def remove(self, driver: str, verdict: ImageVerdict) -> bool:
        """It went. False: something has come that uses it, or it was gone. Raises DriverFailed."""
        store, memory = self._drivers[driver], self._memories[driver]
        assert isinstance(store, ImageStore)
        async with self._removing:
            if not self._is_caught_up():
                return False
            if not memory.may_go(verdict, self.wanted(), self._clock.now_ms()):
                return False
            try:
                is_gone = await store.remove_image(verdict.id, verdict.names)
            except DriverFailed as failed:
                if failed.code not in NOT_NOW:
                    raise
                self._refused[verdict.id] = self._clock.monotonic_ms() + REFUSED_PAUSE_MS
                _log.info("image_kept id=%s code=%s %s", verdict.id, failed.code, failed.message)
                return False
            memory.removed(verdict.id)
            self._changed.set()
        if is_gone:
            _log.info(
                "image_removed names=%s id=%s size=%r unused_s=%d",
                ",".join(verdict.names),
                verdict.id,
                format_size(verdict.size_bytes),
                (self._clock.now_ms() - verdict.used_at_ms) // 1000,
            )
        return is_gone


def wanted_images(state: ClusterState, node_id: NodeId) -> frozenset[str]:
    """See ImageKeeper.wanted. Of tasks that have ended, too, while they are remembered."""
    mine = state.nodes.get(node_id)
    here = {node_id}
    if mine is not None:
        here |= {
            node.id for node in state.nodes.values() if node.facts.advertise == mine.facts.advertise
        }
    names: set[str] = set()
    for one in here:
        for task in state.tasks_of_node(one):
            group = state.group_of(task)
            if group is None or not group.image:
                continue
            names.add(canonical(group.image))
            if digest := state.digest_for(task):
                names.add(canonical(pinned(group.image.partition("@")[0], digest)))
    return frozenset(names)
