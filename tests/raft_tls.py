"""Identities for members of the log in tests, from a CA of the test's own."""

from __future__ import annotations

import ssl
from pathlib import Path

from cube.adapters.trust.tls import NodeTls
from cube.model.ids import ClusterId, NodeId
from tests.unit.trust.test_node_tls import Authority

__all__ = ["Authority", "MemberTls", "Roster"]


class Roster:
    """What the members know of each other: in the agent it is the cluster's state."""

    def __init__(self) -> None:
        self.ids: dict[str, NodeId] = {}
        self.removed: set[NodeId] = set()


class MemberTls:
    """PeerTls for one member."""

    def __init__(self, directory: Path, authority: Authority, name: str, roster: Roster) -> None:
        self.node = NodeTls(authority.node(directory, name), ClusterId(authority.cluster))
        self.node_id = NodeId(name)
        self.roster = roster

    @property
    def server(self) -> ssl.SSLContext:
        return self.node.raft_server

    @property
    def client(self) -> ssl.SSLContext:
        return self.node.raft_client

    def peer_id(self, connection: ssl.SSLObject) -> NodeId:
        return self.node.peer(connection).node_id

    def is_removed(self, node_id: NodeId) -> bool:
        return node_id in self.roster.removed

    def expected_id(self, address: str) -> NodeId | None:
        return self.roster.ids.get(address)
