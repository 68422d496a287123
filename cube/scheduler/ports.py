"""Host ports by domain: what the state has given, and what the plan in hand gives besides.

Nodes with one advertise address share their ports. Host ports that jobs ask for by number are given
to others last, and then in order: else a plan's seed would have a say in where those jobs fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import immutables

from cube.model.cluster import ClusterState, Job, Node, port_key
from cube.model.ids import JobId
from cube.model.spec import GroupSpec


class PortBook:
    """Gives each (domain, protocol, port) once. `begin` forgets what was given and not committed."""

    def __init__(self) -> None:
        self._state = ClusterState()
        self._seed = ""
        self._given: dict[str, set[int]] = {}
        self._cursor: dict[str, int] = {}
        self._asked: frozenset[int] = frozenset()
        self._asked_of: immutables.Map[JobId, Job] | None = None  # the jobs `_asked` is about

    def sync(self, state: ClusterState) -> None:
        self._state = state
        self._given = {}
        self._cursor = {}

    def begin(self, seed: str) -> None:
        """Dynamic ports start at an offset of the plan's seed, so that a port that has just been
        freed is not the next one given: peers may still hold its old address."""
        self._seed = seed
        self._given = {}
        self._cursor = {}

    def any_taken(self, domain: str, keys: Iterable[int]) -> bool:
        used = self._state.ports.get(domain)
        given = self._given.get(domain)
        return any(
            (used is not None and key in used) or (given is not None and key in given)
            for key in keys
        )

    def give(self, node: Node, group: GroupSpec) -> tuple[int, ...] | None:
        """One host port per port of the group in order of name, now given; None, and nothing given,
        when one is taken or the node's range is used up."""
        domain = node.facts.advertise
        given = self._given.setdefault(domain, set())
        chosen: list[int] = []
        keys: list[int] = []
        for name in sorted(group.ports, key=lambda name: (group.ports[name].host == 0, name)):
            port = group.ports[name]
            if port.host:
                key = port_key(port.host, port.protocol)
                host = None if key in given or self._used(domain, key) else port.host
            else:
                host = self._free_port(node, given, port.protocol == "udp")
                key = -1 if host is None else port_key(host, port.protocol)
            if host is None:
                given.difference_update(keys)
                return None
            given.add(key)
            keys.append(key)
            chosen.append(host)
        by_name = dict(
            zip(
                sorted(group.ports, key=lambda name: (group.ports[name].host == 0, name)),
                chosen,
                strict=True,
            )
        )
        return tuple(by_name[name] for name in sorted(by_name))

    def take(self, node: Node, group: GroupSpec, hosts: tuple[int, ...]) -> None:
        """These are given already, in order of the ports' names."""
        given = self._given.setdefault(node.facts.advertise, set())
        for name, host in zip(sorted(group.ports), hosts, strict=True):
            given.add(port_key(host, group.ports[name].protocol))

    def take_back(self, node: Node, group: GroupSpec, hosts: tuple[int, ...]) -> None:
        """The ports of a `give` that came to nothing."""
        given = self._given.get(node.facts.advertise, set())
        for name, host in zip(sorted(group.ports), hosts, strict=True):
            given.discard(port_key(host, group.ports[name].protocol))

    def _used(self, domain: str, key: int) -> bool:
        used = self._state.ports.get(domain)
        return used is not None and key in used

    def _free_port(self, node: Node, given: set[int], udp: bool) -> int | None:
        facts = node.facts
        size = facts.port_last - facts.port_first + 1
        if size <= 0:
            return None
        domain, asked = facts.advertise, self._asked_for()
        used = self._state.ports.get(domain)
        at = self._cursor.get(domain)
        if at is None:
            digest = hashlib.blake2b(f"{self._seed}/{domain}".encode(), digest_size=4).digest()
            at = int.from_bytes(digest, "big")
        for step in range(size):
            port = facts.port_first + (at + step) % size
            key = port * 2 + udp
            if key not in given and key not in asked and (used is None or key not in used):
                self._cursor[domain] = (at + step + 1) % size
                return port
        for key in sorted(asked):
            port = key // 2
            if (
                key % 2 == udp
                and facts.port_first <= port <= facts.port_last
                and key not in given
                and (used is None or key not in used)
            ):
                return port
        return None

    def _asked_for(self) -> frozenset[int]:
        """Keys of the host ports that some job asks for by number."""
        jobs = self._state.jobs
        if self._asked_of is not jobs:
            self._asked_of = jobs
            self._asked = frozenset(
                [
                    port_key(port.host, port.protocol)
                    for job in jobs.values()
                    for group in job.spec.groups.values()
                    for port in group.ports.values()
                    if port.host
                ]
            )
        return self._asked
