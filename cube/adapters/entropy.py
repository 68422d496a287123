"""The only source of randomness that ends up in the state."""

from __future__ import annotations

import random
import secrets
import uuid


def new_id() -> str:
    """A random UUID as text: nodes, clusters."""
    return str(uuid.uuid4())


def short_id() -> str:
    """16 random hex digits: jobs, commands, plan seeds."""
    return secrets.token_hex(8)


def dice() -> random.Random:
    """A generator of its own for timing and choice of peers; seeded by the system."""
    return random.Random(secrets.randbits(64))


def secret(length: int) -> bytes:
    """Random bytes that nobody can guess: keys, tokens."""
    return secrets.token_bytes(length)
