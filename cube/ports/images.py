"""Images on a node's engine: what a driver that pulls them can say and do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from cube.model.images import ImagePulled, ImageSeen


@runtime_checkable
class ImageStore(Protocol):
    """Beside cube.ports.driver.Driver, for drivers whose tasks run images. Only DriverFailed is
    raised; every call is bounded in time."""

    def tell_pulls(self, on_pulled: Callable[[ImagePulled], None]) -> None:
        """From now on `on_pulled` is called, on this event loop and before prepare() returns, when a
        pull of this driver's gave an image a name. What had the name before, whoever gave it, is
        not told. A pull that was cancelled, or broke off, may have come through untold."""
        ...

    async def images(self) -> list[ImageSeen]:
        """All that the engine has, whoever brought them, sorted by id."""
        ...

    async def remove_image(self, image_id: str, names: Sequence[str]) -> bool:
        """It is gone, when it had these names (as images() writes them) and no others. False: it is
        not here. Raises DriverFailed "image_in_use" when a container has it, anybody's, or another
        image needs it, and "image_renamed" when its names are others: then it is still here. What
        it had of these names may be lost when somebody begins to use it at this very moment."""
        ...
