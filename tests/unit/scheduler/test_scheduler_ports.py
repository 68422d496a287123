"""Host ports: each once per domain, dynamic ones from an offset of the plan's seed."""

from __future__ import annotations

from cube.model.cluster import ClusterState, Node
from cube.model.spec import PortSpec, Protocol
from cube.scheduler.ports import PortBook
from tests.builders import facts, group, job
from tests.scheduler_cluster import Cluster


def node(name: str, host: str, first: int = 20000, last: int = 20002) -> Node:
    one = facts(name, advertise=host, port_first=first, port_last=last)
    return Node(id=one.id, name=name, facts=one)


def book(seed: str = "seed") -> PortBook:
    ports = PortBook()
    ports.sync(ClusterState())
    ports.begin(seed)
    return ports


def test_in_order_of_name_and_once_per_host() -> None:
    ports = book()
    two = group(ports={"b": PortSpec(host=20001), "a": PortSpec()})
    first = ports.give(node("x", "h"), two)
    assert first is not None
    assert first[1] == 20001
    assert first[0] in (20000, 20002)
    assert ports.give(node("y", "h"), two) is None
    assert ports.give(node("z", "other"), two) is not None


def test_what_is_not_given_whole_is_not_given() -> None:
    ports = book()
    assert ports.give(node("x", "h"), group(ports={"a": PortSpec(host=81)})) == (81,)
    assert (
        ports.give(node("x", "h"), group(ports={"a": PortSpec(host=80), "b": PortSpec(host=81)}))
        is None
    )
    assert ports.give(node("x", "h"), group(ports={"a": PortSpec(host=80)})) == (80,)


def test_taken_back() -> None:
    ports = book()
    one = group(ports={"a": PortSpec(host=80)})
    assert ports.give(node("x", "h"), one) == (80,)
    ports.take_back(node("x", "h"), one, (80,))
    assert ports.give(node("x", "h"), one) == (80,)


def test_a_range_is_used_up_and_protocols_are_apart() -> None:
    ports = book()
    tcp, udp = group(ports={"p": PortSpec()}), group(ports={"p": PortSpec(protocol=Protocol.UDP)})
    here = node("x", "h")
    for one in (tcp, udp):
        assert {ports.give(here, one) for _ in range(3)} == {(20000,), (20001,), (20002,)}
        assert ports.give(here, one) is None
    assert ports.give(node("y", "h2", first=5, last=4), tcp) is None


def test_the_seed_moves_the_start() -> None:
    one = group(ports={"p": PortSpec()})
    wide = node("x", "h", 20000, 29999)
    assert len({book(f"seed-{n}").give(wide, one) for n in range(20)}) > 10
    assert book("same").give(wide, one) == book("same").give(wide, one)


def test_a_port_that_a_job_asks_for_by_number_is_given_to_others_last() -> None:
    """Whatever the seed, so the job has its place."""
    cluster = Cluster("a")
    cluster.submit(job("one", {"g": group(ports={"p": PortSpec(host=20001)})}))
    for number in range(20):
        ports = PortBook()
        ports.sync(cluster.state)
        ports.begin(f"seed-{number}")
        here, any_port = node("x", "h"), group(ports={"p": PortSpec()})
        given = [ports.give(here, any_port) for _ in range(4)]
        assert set(given[:2]) == {(20000,), (20002,)}
        assert given[2:] == [(20001,), None]
