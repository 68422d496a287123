"""Ed25519 keys that are made of an API token's secret: who has the secret signs, and any node that has
the public key from the log can tell, without being able to do it itself."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

SEED_BYTES = 32


def _private(secret: bytes) -> ed25519.Ed25519PrivateKey:
    seed = hashlib.blake2b(secret, digest_size=SEED_BYTES, person=b"cube-ticket").digest()
    return ed25519.Ed25519PrivateKey.from_private_bytes(seed)


def token_key(secret: bytes) -> bytes:
    """The public key, which tells nothing of the secret."""
    return _private(secret).public_key().public_bytes_raw()


class Ed25519Tickets:
    """ports.trust.TicketSigner."""

    def sign(self, secret: bytes, message: bytes) -> bytes:
        return _private(secret).sign(message)

    def is_signed(self, key: bytes, message: bytes, signature: bytes) -> bool:
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True
