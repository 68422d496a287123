"""How a node looks at its own tasks' ports."""

from __future__ import annotations

from typing import Protocol

import msgspec

RESPONSE_BYTES_MAX = 64 * 1024  # read of an answer: a check that streams must not cost memory


class Probed(msgspec.Struct, frozen=True):
    """`message` says what was wrong, or what was answered, in a few words."""

    is_healthy: bool
    message: str = ""


class Prober(Protocol):
    """Each call ends within its timeout and raises nothing: what goes wrong is the answer."""

    async def http(self, address: str, port: int, path: str, timeout_ms: int) -> Probed:
        """GET `path` of exactly this address and port; 2xx and 3xx are healthy. No redirect is
        followed, no proxy asked, at most RESPONSE_BYTES_MAX of the body read."""
        ...

    async def tcp(self, address: str, port: int, timeout_ms: int) -> Probed:
        """Somebody accepts a connection. Nothing is sent."""
        ...
