"""Tickets: what a node shows when it passes on what a user asked. The user's token stays at the node
that was asked; a ticket is signed with it, and good for this one request to this one node only.

A node that was broken into gets tickets that only it would take, and can sign only for those who have
shown it their tokens.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from cube.model.ids import NodeId
from cube.ports.trust import TicketSigner

TICKET = "X-Cube-Ticket"  # the header
TICKET_CHARS_MAX = 4_096  # a path of the longest names is a third of it
# How far apart the clocks of two nodes may be, and no shorter: only the node that made a ticket can
# use it, and only with the node it is for, so that nobody gains by keeping one.
TICKET_MS = 300_000
_PURPOSE = b"cube-ticket-1\0"  # what is signed with the same key for something else is no ticket


class Ticket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Node `by` asks node `to` this for whoever has the token with the id `token`, and asked from
    `remote`."""

    token: str
    by: NodeId
    to: NodeId
    method: str
    path: str
    made_at_ms: int
    remote: str = ""


_TICKET = msgspec.json.Decoder(Ticket)


def write_ticket(signer: TicketSigner, secret: bytes, ticket: Ticket) -> str:
    """Of the header. `secret` is the token's."""
    told = msgspec.json.encode(ticket)
    parts = (told, signer.sign(secret, _PURPOSE + told))
    return ".".join(base64.urlsafe_b64encode(part).decode() for part in parts)


class ShownTicket(msgspec.Struct, frozen=True):
    """A ticket as it came: nothing of it is true before is_signed()."""

    ticket: Ticket
    told: bytes
    signature: bytes

    def is_signed(self, signer: TicketSigner, key: bytes) -> bool:
        return signer.is_signed(key, _PURPOSE + self.told, self.signature)


def read_ticket(text: str) -> ShownTicket:
    """Raises ValueError with a sentence."""
    if len(text) > TICKET_CHARS_MAX:
        raise ValueError("the ticket is too long")
    try:
        told, signature = (
            base64.b64decode(part, altchars=b"-_", validate=True) for part in text.split(".")
        )
        return ShownTicket(_TICKET.decode(told), told, signature)
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError):
        raise ValueError("this is no ticket") from None
