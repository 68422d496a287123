"""The images of a fake engine: cube.ports.images.ImageStore in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cube.model.errors import DriverFailed
from cube.model.ids import NodeId, TaskId
from cube.model.images import ImagePulled, ImageSeen, canonical, pinned, repository

SIZE_BYTES = 1 << 20  # of each


@dataclass
class FakeImages:
    """By id, with the names of each: canonical, and canonical is how this engine writes them.
    `containers`: the image of each, by the container's name. An image's id is its digest, or its name
    where no registry has given it one."""

    names: dict[str, set[str]] = field(default_factory=dict)
    containers: dict[str, str] = field(default_factory=dict)
    bases: set[str] = field(default_factory=set)  # images that others are built on

    def find(self, name: str) -> str | None:
        """The id of what has this name."""
        wanted = canonical(name)
        return next((id_ for id_, names in sorted(self.names.items()) if wanted in names), None)

    def pull(self, image: str, digest: str) -> ImagePulled | None:
        """It is here under that name. None: it was already."""
        name = canonical(pinned(image.partition("@")[0], digest) if "@" in image else image)
        id_ = digest or name
        before, was_here = self.find(name), id_ in self.names
        if before == id_:
            return None
        if before is not None:
            self.names[before].discard(name)
        given = {name, f"{repository(name)}@{digest}"} if digest else {name}
        self.names[id_] = self.names.get(id_, set()) | given
        return ImagePulled(id=id_, name=name, was_here=was_here)

    def use(self, node_id: NodeId, task_id: TaskId, image: str) -> None:
        """A container of this task has the image, until `leave`."""
        if id_ := self.find(image):
            self.containers[f"{node_id}/{task_id}"] = id_

    def leave(self, node_id: NodeId, task_id: TaskId) -> None:
        self.containers.pop(f"{node_id}/{task_id}", None)

    def seen(self) -> list[ImageSeen]:
        return [
            ImageSeen(
                id=id_,
                names=tuple(sorted(names)),
                size_bytes=SIZE_BYTES,
                users=tuple(sorted(key for key, of in self.containers.items() if of == id_)),
                is_base=id_ in self.bases,
            )
            for id_, names in sorted(self.names.items())
        ]

    def remove(self, image_id: str, names: Sequence[str]) -> bool:
        if image_id not in self.names:
            return False
        if more := self.names[image_id] - set(names):
            raise DriverFailed("image_renamed", f"it is also {min(more)}", transient=True)
        if image_id in self.containers.values():
            raise DriverFailed("image_in_use", "a container has it", transient=True)
        if image_id in self.bases:
            raise DriverFailed("image_in_use", "another image is built on it", transient=True)
        del self.names[image_id]
        return True
