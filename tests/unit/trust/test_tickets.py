"""Keys that are made of tokens' secrets."""

from __future__ import annotations

import msgspec

from cube.adapters.trust.tickets import Ed25519Tickets, token_key
from cube.model.cluster import Task
from cube.model.commands import CreateToken
from cube.model.trust import TOKEN_KEY_BYTES, TokenRecord, TokenRole

SECRET = b"s" * 32


def test_a_key_is_the_same_for_ever() -> None:
    """The log keeps it: another way to make it would shut out every token that there is."""
    assert len(token_key(SECRET)) == TOKEN_KEY_BYTES
    assert (
        token_key(SECRET).hex()
        == "2d15db62ea832deeffd1d7780cc9b9e0cb30e8c4cfa6dc1a7b9c91624b6c386a"
    )
    assert SECRET not in token_key(SECRET)


def test_only_the_secret_signs_and_only_what_was_signed_is_signed() -> None:
    signer = Ed25519Tickets()
    signature = signer.sign(SECRET, b"this")
    key = token_key(SECRET)
    assert signer.is_signed(key, b"this", signature)
    assert not signer.is_signed(key, b"that", signature)
    assert not signer.is_signed(key, b"this", signer.sign(b"x" * 32, b"this"))
    for bad_key, bad in ((b"", signature), (b"short", signature), (key, b""), (key, b"x" * 64)):
        assert not signer.is_signed(bad_key, b"this", bad)


def test_what_older_versions_wrote_is_read() -> None:
    def without(value: object, field: str) -> bytes:
        tree = msgspec.to_builtins(value)
        del tree[field]
        return msgspec.json.encode(tree)

    made = CreateToken("00000000", b"h" * 32, TokenRole.VIEWER)
    assert msgspec.json.decode(without(made, "key"), type=CreateToken) == made
    record = TokenRecord(id="00000000", hash=b"h" * 32, role=TokenRole.VIEWER)
    assert msgspec.json.decode(without(record, "key"), type=TokenRecord) == record
    fields = {
        "id": "t",
        "job_id": "j",
        "job": "j",
        "group": "g",
        "slot": 0,
        "version": 1,
        "node_id": "n",
    }
    task = msgspec.convert(fields, Task)
    assert msgspec.json.decode(without(task, "execs"), type=Task) == task
