"""Who has a right to a volume's data: only what nobody has may be removed."""

from __future__ import annotations

from cube.model import commands as c
from cube.model.ids import NodeId
from cube.model.volumeclaims import all_volumes, claims_of
from tests.fakes.cluster import World, job_spec, node_facts

MOUNTS: dict[str, object] = {"driver": "docker", "image": "db", "ports": {}, "mounts": [
    {"type": "volume", "source": "data", "target": "/data"}]}  # fmt: skip


def claims(world: World, node: str, name: str = "data") -> tuple[str, ...]:
    return claims_of(world.state, world.state.node_names[node], name)


def test_slots_claim_their_volume_on_their_node_alone() -> None:
    world = World()
    world.run(job_spec("shop", db={**MOUNTS, "count": 2}))
    assert claims(world, "n1") == (), "nothing was placed yet"
    world.place("shop", "db", [0, 1], "n1")
    assert claims(world, "n1") == ("shop.db.0", "shop.db.1")
    assert claims(world, "n2") == ()
    assert claims(world, "n1", "other") == ()
    assert [(one.slot, one.name) for one in all_volumes(world.state)] == [(0, "data"), (1, "data")]


def test_a_stopped_job_and_a_slot_that_is_not_wanted_keep_their_claims() -> None:
    world = World()
    world.run(job_spec("shop", db={**MOUNTS, "count": 2}))
    world.place("shop", "db", [0, 1], "n1")
    world.apply(c.ScaleJob("shop", {"db": 1}, None))
    world.apply(c.StopJob("shop"))
    assert claims(world, "n1") == ("shop.db.0", "shop.db.1")
    world.apply(c.DeleteJob("shop"))
    assert claims(world, "n1") == ()


def test_nodes_of_one_host_share_their_volumes() -> None:
    world = World(
        node_facts("n1", 1),
        node_facts("n2", 2, advertise="10.0.0.1"),
        node_facts("n3", 3),
    )
    world.run(job_spec("shop", db=MOUNTS))
    world.place("shop", "db", [0], "n1")
    assert claims(world, "n2") == ("shop.db.0",)
    assert claims(world, "n3") == ()
    assert claims_of(world.state, NodeId("nobody"), "data") == ()


def test_a_system_job_claims_its_volumes_everywhere() -> None:
    world = World()
    world.run(job_spec("logs", "system", agent=MOUNTS))
    assert claims(world, "n1") == claims(world, "n2") == ("logs.agent",)
    world.apply(c.DeleteJob("logs"))
    assert claims(world, "n1") == ()
