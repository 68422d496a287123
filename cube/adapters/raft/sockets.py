"""Sockets between members: where they go, and how soon the kernel gives one up."""

from __future__ import annotations

import ipaddress
import socket

# The kernel gives a connection up when what was sent is not acknowledged for this long.
UNACKNOWLEDGED_MS_MAX = 3_000

Place = tuple[str, int]


def tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS_MAX)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def split_address(address: str) -> Place:
    """Host and port of "host:port". Raises OSError; asks nobody."""
    host, _, port_text = address.rpartition(":")
    if not host or not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
        raise OSError(f"{address!r} is not host:port")
    if not 0 < int(port_text) < 65536:
        raise OSError(f"{address!r} is not host:port")
    return host.strip("[]"), int(port_text)


def resolve(address: str) -> tuple[socket.AddressFamily, Place]:
    """Where host:port is. Raises OSError."""
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(f"{address!r} is not host:port") from None
    family, _, _, _, place = found[0]
    return family, (str(place[0]), int(place[1]))


def is_loopback(place: Place) -> bool:
    return ipaddress.ip_address(place[0].partition("%")[0]).is_loopback


def is_everywhere(address: str) -> bool:
    """Good to listen at, but nobody can dial it: 0.0.0.0, ::."""
    try:
        return ipaddress.ip_address(split_address(address)[0]).is_unspecified
    except (OSError, ValueError):
        return False
