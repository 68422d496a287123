"""What can be asked of a node about what it could be rid of."""

from __future__ import annotations

from typing import Protocol

from cube.model.housekeeping import Cleaned, Waste


class Housekeeping(Protocol):
    """Of this node. Never raises: what could not be done is among the `problems`."""

    async def waste(self) -> Waste:
        """What is here, and what of it may go. Nothing is changed."""
        ...

    async def clean(self, actor: str) -> Cleaned:
        """All that waste() says may go is going, whatever room there is; noted in this node's log as
        `actor`'s. Comes back with what went since the last call, after some seconds at the latest:
        while `is_more`, the rest goes on without anybody's asking."""
        ...
