"""Ports for what a test starts: one place, so that nothing that runs at the same time gets the same.

They are below the range that the kernel hands out to outgoing connections, and below what tasks get.
Parts of the suite that run side by side (parts.py) each have a share of their own.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Iterator

FIRST, LAST = 10_240, 19_999
_KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
_lock = threading.Lock()


def share(told: str) -> range:
    """`FIRST-LAST`, or all there are when nothing is told."""
    first, _, last = told.partition("-") if told else (str(FIRST), "", str(LAST))
    return range(int(first), int(last) + 1)


def _in_turn(ports: range) -> Iterator[int]:
    """Each again only after all others: who was given one may take a while to listen there. From
    somewhere on, because other test runs on the machine have no share but the same."""
    start = secrets.randbelow(len(ports))
    while True:
        for offset in range(len(ports)):
            yield ports[(start + offset) % len(ports)]


_ports = _in_turn(share(os.environ.get("CUBE_TEST_PORTS", "")))


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports of that address that were free just now, for TCP and UDP; never given before, as long as
    there are such."""
    found: list[int] = []
    with _lock:
        for _ in range(LAST - FIRST):
            port = next(_ports)
            if _is_free(host, port):
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no free port")


def free_port() -> int:
    return free_ports(1)[0]


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind in _KINDS:
        with socket.socket(family, kind) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
