"""Certificates are renewed at half their life, and failures are tried again long before the end."""

from __future__ import annotations

import asyncio

import pytest

from cube.model.errors import BadPacket, Unavailable
from cube.model.ids import ClusterId, NodeId
from cube.model.trust import BACKDATE_MS, NODE_CERTIFICATE_MS, NodeCertificate, NodeRole
from cube.services.certificates import Renewal
from tests.virtual_time import VirtualClock, run_virtual

DAY_S = 86_400


class Node:
    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.renewed_ms: list[int] = []
        self.failures: list[Exception] = []
        self.tries = 0
        self.certificate = self.issued()

    def issued(self) -> NodeCertificate:
        now_ms = self.clock.now_ms()
        return NodeCertificate(
            cluster_id=ClusterId("c"),
            node_id=NodeId("n"),
            role=NodeRole.NODE,
            serial=1,
            fingerprint="",
            not_before_ms=now_ms - BACKDATE_MS,
            not_after_ms=now_ms + NODE_CERTIFICATE_MS,
        )

    async def renew(self) -> None:
        self.tries += 1
        if self.failures:
            raise self.failures.pop()
        self.renewed_ms.append(self.clock.now_ms())
        self.certificate = self.issued()


async def lives(node: Node, days: float) -> None:
    task = asyncio.create_task(Renewal(node.clock, lambda: node.certificate, node.renew).run())
    await asyncio.sleep(days * DAY_S)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_certificate_is_renewed_at_half_its_life() -> None:
    async def main() -> None:
        node = Node(VirtualClock())
        born_ms = node.clock.now_ms()
        await lives(node, 44.9)
        assert node.renewed_ms == []
        await lives(node, 0.2)
        assert len(node.renewed_ms) == 1
        assert abs(node.renewed_ms[0] - born_ms - 45 * DAY_S * 1000) < 60_000 * 10
        await lives(node, 46)
        assert len(node.renewed_ms) == 2

    run_virtual(main())


def test_a_cluster_that_cannot_sign_is_asked_again() -> None:
    async def main() -> None:
        node = Node(VirtualClock())
        node.failures = [Unavailable("no quorum"), BadPacket("nonsense"), Unavailable("no")]
        await lives(node, 46)
        assert (node.tries, len(node.renewed_ms)) == (4, 1)

    run_virtual(main())


def test_a_certificate_that_is_old_at_once_is_no_circle() -> None:
    async def main() -> None:
        node = Node(VirtualClock())

        async def nothing_new() -> None:
            node.tries += 1

        node.certificate = node.issued()
        task = asyncio.create_task(
            Renewal(node.clock, lambda: node.certificate, nothing_new).run()
        )  # fmt: skip
        await asyncio.sleep(46 * DAY_S)
        assert node.tries <= DAY_S / 60 + 1
        task.cancel()
        await asyncio.wait([task])

    run_virtual(main())
