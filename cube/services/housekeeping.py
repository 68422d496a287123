"""What `cube node gc` asks of a node, over the two services that clean by themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cube.model.cluster import ClusterState
from cube.model.errors import DriverFailed
from cube.model.housekeeping import Cleaned, ImageVerdict, OutputVerdict, Waste
from cube.services.forgotten import Forgotten
from cube.services.image_keeper import ImageKeeper

CLEAN_S = 10.0  # one answer: much less than a client, or another node, waits for one
NOT_YET = "this node is still catching up with its cluster, and does not know what is wanted"
REMEMBERED = "the cluster remembers the task"

_log = logging.getLogger(__name__)


class Housekeeping:
    """`run` is the agent's; the others are the API's. One cleaning at a time, whoever asks."""

    def __init__(
        self,
        images: ImageKeeper,
        forgotten: Forgotten,
        state: Callable[[], ClusterState],
        is_caught_up: Callable[[], bool],
    ) -> None:
        self.images = images
        self._forgotten = forgotten
        self._state = state
        self._is_caught_up = is_caught_up
        self._cleaning: asyncio.Task[None] | None = None
        self._gone_images: list[ImageVerdict] = []  # since the last answer, as are these
        self._gone_outputs: list[OutputVerdict] = []
        self._problems: list[str] = []
        self._free_bytes: dict[str, int] = {}  # by path: when the last answer was given

    async def run(self) -> None:
        """For ever: what the node cleans by itself."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.images.run())
            group.create_task(self._forgotten.run())

    # ports.housekeeping.Housekeeping

    async def waste(self) -> Waste:
        problems: list[str] = []
        if not self._is_caught_up():
            return Waste(problems=(NOT_YET,))
        found = [one for name in self.images.drivers for one in await self._images(name, problems)]
        path, room, wanted_bytes = "", None, 0
        for name in self.images.drivers:
            path, room, wanted_bytes = self.images.room(name)
        return Waste(
            images=tuple(found),
            outputs=tuple(await self._outputs(problems)),
            path=path,
            room=room,
            room_wanted_bytes=wanted_bytes,
            problems=tuple(problems),
        )

    async def clean(self, actor: str) -> Cleaned:
        if not self._is_caught_up():
            return Cleaned(problems=(NOT_YET,))
        if self._cleaning is None or self._cleaning.done():
            _log.info("cleaning_asked actor=%s", actor)
            self._free_bytes = self._measure()
            self._cleaning = asyncio.create_task(self._clean(), name="cleaning")
        await asyncio.wait({self._cleaning}, timeout=CLEAN_S)
        if self._cleaning.done():
            self._cleaning.result()  # a bug must not be quiet
        images, self._gone_images = self._gone_images, []
        outputs, self._gone_outputs = self._gone_outputs, []
        problems, self._problems = self._problems, []
        before, self._free_bytes = self._free_bytes, self._measure()
        freed_bytes = sum(
            self._free_bytes[path] - before[path] for path in self._free_bytes if path in before
        )
        return Cleaned(
            images=tuple(images),
            outputs=tuple(outputs),
            freed_bytes=max(0, freed_bytes),
            is_more=not self._cleaning.done(),
            problems=tuple(problems),
        )

    def _measure(self) -> dict[str, int]:
        rooms = [self.images.room(name) for name in self.images.drivers]
        return {path: room.free_bytes for path, room, _ in rooms if room is not None}

    async def _clean(self) -> None:
        for name in self.images.drivers:
            for verdict in await self._images(name, self._problems):
                if verdict.keep:
                    break  # those that may go come first
                try:
                    if await self.images.remove(name, verdict):
                        self._gone_images.append(verdict)
                except DriverFailed as failed:
                    self._note(name, failed, self._problems)
                    break
        for output in await self._outputs(self._problems):
            if output.keep:
                continue
            try:
                if await self._forgotten.remove(output.driver, output.task_id):
                    self._gone_outputs.append(output)
            except DriverFailed as failed:
                self._note(output.driver, failed, self._problems)
                break

    async def _images(self, driver: str, problems: list[str]) -> list[ImageVerdict]:
        try:
            return await self.images.verdicts(driver)
        except DriverFailed as failed:
            self._note(driver, failed, problems)
            return []

    def _note(self, driver: str, failed: DriverFailed, problems: list[str]) -> None:
        """An engine that was never there is no problem, and one that is down is told of once."""
        problem = f"{driver}: {failed.message}"
        is_there = driver not in self.images.drivers or self.images.is_known(driver)
        if is_there and problem not in problems:
            problems.append(problem)

    async def _outputs(self, problems: list[str]) -> list[OutputVerdict]:
        """By driver; those that may go first."""
        found = []
        for driver in self._forgotten.drivers:
            try:
                kept = await self._forgotten.kept(driver)
            except DriverFailed as failed:
                self._note(driver, failed, problems)
                continue
            known = self._state().tasks
            for task_id in kept:
                task = known.get(task_id)
                if task is None:
                    found.append(OutputVerdict(driver=driver, task_id=task_id))
                else:
                    ended_at_ms = task.finished_at_ms or (task.state_at_ms if task.ended else 0)
                    found.append(
                        OutputVerdict(
                            driver=driver, task_id=task_id, name=task.name,
                            ended_at_ms=ended_at_ms, keep=REMEMBERED,
                        )
                    )  # fmt: skip
        return sorted(found, key=lambda one: (one.driver, bool(one.keep), one.name, one.task_id))
