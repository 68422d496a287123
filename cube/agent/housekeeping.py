"""What a node cleans, by itself and when it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cube.adapters import host
from cube.config.settings import GcSettings
from cube.model.cluster import ClusterState
from cube.model.ids import NodeId
from cube.model.launch import ROOT_FACT
from cube.ports.clock import Clock
from cube.ports.disk import Disk
from cube.ports.driver import Driver
from cube.services.driver_facts import DriverFacts
from cube.services.forgotten import Forgotten
from cube.services.housekeeping import Housekeeping
from cube.services.image_keeper import ImageKeeper
from cube.worker.images import ImageSettings


def make_housekeeping(
    config: GcSettings,
    node_id: NodeId,
    disk: Disk,
    clock: Clock,
    state: Callable[[], ClusterState],
    is_caught_up: Callable[[], bool],
    drivers: Mapping[str, Driver],
    facts: DriverFacts,
) -> Housekeeping:
    """`drivers` may be filled later, before `images.attach()`."""

    roots: dict[str, str] = {}  # as last told: an engine that is down says nothing

    def engine_root(driver: str) -> str:
        info = facts.infos.get(driver)
        if info is not None and (root := info.attributes.get(ROOT_FACT)):
            roots[driver] = root
        return roots.get(driver, "")

    settings = ImageSettings(
        unused_for_ms=config.image_unused_for_ms,
        disk_percent=config.image_disk_percent,
        free_min_bytes=config.disk_free_min_bytes,
    )
    images = ImageKeeper(
        node_id, disk, clock, state, is_caught_up, drivers, engine_root, host.disk_room, settings
    )
    return Housekeeping(images, Forgotten(state, is_caught_up, drivers), state, is_caught_up)
