"""Secrets that travel through the log: sealed with the cluster key, which never does."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cube.model.errors import BadPacket

ENVELOPE_VERSION = b"\x01"
NONCE_BYTES = 12


def seal_envelope(cluster_key: bytes, purpose: str, secret: bytes) -> bytes:
    """Only open_envelope() with the same key and purpose gets the secret back."""
    nonce = os.urandom(NONCE_BYTES)
    sealed = AESGCM(cluster_key).encrypt(nonce, secret, ENVELOPE_VERSION + purpose.encode())
    return ENVELOPE_VERSION + nonce + sealed


def open_envelope(cluster_key: bytes, purpose: str, envelope: bytes) -> bytes:
    """The secret. Raises BadPacket for anything that this key did not seal for this purpose."""
    if envelope[:1] != ENVELOPE_VERSION or len(envelope) < 1 + NONCE_BYTES + 16:
        raise BadPacket("no envelope")
    nonce, sealed = envelope[1 : 1 + NONCE_BYTES], envelope[1 + NONCE_BYTES :]
    try:
        return AESGCM(cluster_key).decrypt(nonce, sealed, ENVELOPE_VERSION + purpose.encode())
    except InvalidTag as error:
        raise BadPacket("not sealed with this cluster's key for this purpose") from error
