"""Whether a port of this host can be had. The worker asks before it starts a task there."""

from __future__ import annotations

import errno
import socket

from cube.model.spec import Protocol

TAKEN = (errno.EADDRINUSE, errno.EACCES)  # EACCES: below 1024, and not for us


def port_free(host: str, port: int, protocol: Protocol) -> bool:
    """A task could bind it now. Of an address that is not this host's own (it is behind a
    translation), all addresses are asked. A test, not a reservation: the next moment may differ."""
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    wildcard = "::" if family == socket.AF_INET6 else "0.0.0.0"
    for address in (host, wildcard):
        try:
            _bind(family, kind, address, port)
        except OSError as error:
            if error.errno in TAKEN:
                return False
            if address == wildcard or error.errno != errno.EADDRNOTAVAIL:
                raise
        else:
            return True
    return True


def _bind(family: int, kind: int, address: str, port: int) -> None:
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            # Connections of the last owner that linger are no obstacle; a listener still is.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        if kind == socket.SOCK_STREAM:
            probe.listen(1)  # two may bind with SO_REUSEADDR, only one may listen
