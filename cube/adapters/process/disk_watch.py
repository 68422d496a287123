"""How much a task keeps in its own directory, and the end of one that keeps more than it asked for.

Looked at by the agent, not by the supervisors: a walk through a directory is the dearest thing that is ever
done for a task, so that there is one at a time on a node, and each task rests long after its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import msgspec

from cube.adapters.process.attempts import Identity
from cube.model.errors import DriverFailed
from cube.ports.clock import Clock

LOG = logging.getLogger(__name__)

BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own is
ENTRIES_MAX = 1_000_000  # of one look: what has more is judged by these
DEPTH_MAX = 200  # of directories; each costs an open descriptor. What is deeper does not count
REST_SHARE = 20  # a task rests this many times as long as a look at it took: 5 % of a core at most


class Quota(msgspec.Struct, frozen=True):
    """Of one running attempt. 0: not limited."""

    directory: Path
    limit_bytes: int


class DiskWatch:
    """`running`: identities of what runs now. `quota_of` may raise OSError, or DriverFailed when the
    attempt has just ended. `end` is told of each that holds more than its limit, and how much; when it
    raises DriverFailed it is told again at the next look."""

    def __init__(
        self,
        clock: Clock,
        look_ms: int,
        running: Callable[[], Iterable[Identity]],
        quota_of: Callable[[Identity], Awaitable[Quota]],
        end: Callable[[Identity, Quota, int], Awaitable[None]],
    ) -> None:
        self._clock = clock
        self._look_ms = look_ms
        self._running, self._quota_of, self._end = running, quota_of, end
        self._quotas: dict[Identity, Quota] = {}
        self._due_ms: dict[Identity, int] = {}
        self.looks = 0  # at single tasks, for tests

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._look_ms / 1000)
            await self.look()

    async def look(self) -> None:
        """Once at every attempt whose time has come."""
        running = set(self._running())
        for known in (self._quotas, self._due_ms):
            for identity in known.keys() - running:
                del known[identity]
        for identity in sorted(running):
            if self._clock.monotonic_ms() < self._due_ms.get(identity, 0):
                continue
            try:
                await self._look_at(identity)
            except (DriverFailed, OSError) as error:
                LOG.info("disk_not_looked_at task=%s attempt=%d %s", *identity, error)

    async def _look_at(self, identity: Identity) -> None:
        quota = self._quotas.get(identity)
        if quota is None:
            quota = self._quotas[identity] = await self._quota_of(identity)
        if not quota.limit_bytes:
            return
        began_ms = self._clock.monotonic_ms()
        held = await asyncio.to_thread(held_bytes, quota.directory)
        now_ms = self._clock.monotonic_ms()
        self._due_ms[identity] = now_ms + max(self._look_ms, REST_SHARE * (now_ms - began_ms))
        self.looks += 1
        if held > quota.limit_bytes:
            LOG.warning(
                "disk_exceeded task=%s attempt=%d bytes=%d limit=%d",
                *identity,
                held,
                quota.limit_bytes,
            )
            await self._end(identity, quota, held)


def held_bytes(directory: Path) -> int:
    """What the files below take of the disk: their blocks, a file of several names once, nothing of
    other file systems, no link followed, also while it changes. What cannot be read does not count."""
    try:
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return 0
    return _Walk(os.fstat(top).st_dev).through(top)


class _Walk:
    def __init__(self, device: int) -> None:
        self._device = device
        self._held = self._entries = 0
        self._seen: set[int] = set()

    def through(self, top: int) -> int:
        """Closes `top`. Each level is read to its end before its directories are entered, from its
        own descriptor: whoever moves things meanwhile leads it nowhere else."""
        levels = [(top, self._read(top))]
        try:
            while levels and self._entries < ENTRIES_MAX:
                fd, names = levels[-1]
                if not names:
                    os.close(levels.pop()[0])
                    continue
                below = self._enter(fd, names.pop())
                if below is not None:
                    found = self._read(below)
                    levels.append((below, found if len(levels) < DEPTH_MAX else []))
            return self._held
        finally:
            for fd, _ in levels:
                os.close(fd)

    def _enter(self, fd: int, name: str) -> int | None:
        try:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        except OSError:
            return None
        if os.fstat(below).st_dev == self._device:
            return below
        os.close(below)
        return None

    def _read(self, fd: int) -> list[str]:
        """The files of this directory are counted; the names of those below it."""
        below = []
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    self._entries += 1
                    if self._entries >= ENTRIES_MAX:
                        break
                    if self._count(entry):
                        below.append(entry.name)
        except OSError:
            pass
        return below

    def _count(self, entry: os.DirEntry[str]) -> bool:
        """True: a directory."""
        try:
            stat = entry.stat(follow_symlinks=False)
        except OSError:
            return False
        if stat.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
            if stat.st_ino in self._seen:
                return False
            self._seen.add(stat.st_ino)
        if stat.st_dev == self._device:
            self._held += stat.st_blocks * BLOCK_BYTES
        return entry.is_dir(follow_symlinks=False)
