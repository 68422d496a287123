"""Tokens as text, and the names that certificates carry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.model.ids import ClusterId, NodeId
from cube.model.trust import (
    ApiToken,
    JoinToken,
    NodeIdentity,
    NodeKeys,
    NodeRole,
    format_api_token,
    format_join_token,
    key_id,
    node_uri,
    parse_api_token,
    parse_join_token,
    parse_node_uri,
    secret_hash,
    secret_matches,
)

HEX = "0123456789abcdef" * 4


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16))
def test_join_tokens_survive_their_text(fingerprint: bytes, secret: bytes) -> None:
    token = JoinToken(fingerprint.hex(), secret)
    text = format_join_token(token)
    assert parse_join_token(f" {text}\n") == token
    assert secret.hex() not in repr(token)


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=32, max_size=32))
def test_api_tokens_survive_their_text(id_: bytes, secret: bytes) -> None:
    token = ApiToken(id_.hex(), secret)
    assert parse_api_token(format_api_token(token)) == token
    assert secret.hex() not in repr(token)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "begins with CUBE-1-"),
        ("SWMTKN-1-abc", "begins with CUBE-1-"),
        (f"CUBE-2-{HEX}-{HEX[:32]}", "another version"),
        (f"CUBE-1-{HEX}-{HEX[:31]}", "103 characters, not 104"),
        (f"CUBE-1-{HEX}", "characters"),
        (f"CUBE-1-{HEX.upper()}-{HEX[:32]}", "only 0-9, a-f"),
        (f"CUBE-1-{HEX}-{HEX[:31]}é", "only 0-9, a-f"),
        (f"cube_{HEX[:8]}_{HEX}", "API token"),
    ],
)
def test_what_is_wrong_with_a_join_token_is_said_without_it(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as found:
        parse_join_token(text)
    assert HEX[:16] not in str(found.value)


@pytest.mark.parametrize(
    "text", ["", "cube_", f"cube_{HEX[:8]}_{HEX[:63]}", f"CUBE_{HEX[:8]}_{HEX}"]
)
def test_what_is_no_api_token(text: str) -> None:
    with pytest.raises(ValueError, match="an API token is") as found:
        parse_api_token(text)
    assert HEX[:16] not in str(found.value)


@given(st.text(max_size=200))
def test_any_text_is_a_token_or_a_sentence(text: str) -> None:
    for parse in (parse_join_token, parse_api_token, parse_node_uri):
        with pytest.raises(ValueError):
            parse(text)


def test_secrets_match_their_hash_and_nothing_else() -> None:
    assert secret_matches(b"secret", secret_hash(b"secret"))
    assert not secret_matches(b"Secret", secret_hash(b"secret"))
    assert not secret_matches(b"", b"")
    assert not secret_matches(b"secret", b"")


def test_node_names_survive_their_uri() -> None:
    identity = NodeIdentity(ClusterId("c-1"), NodeRole.NODE, NodeId("n-1"))
    assert node_uri(identity) == "cube://c-1/node/n-1"
    assert parse_node_uri(node_uri(identity)) == identity


@pytest.mark.parametrize(
    "text",
    [
        "cube://c/king/n",
        "cube://c/node/",
        "cube://c/node/a/b",
        "http://c/node/n",
        "cube://c/node/é",
    ],
)
def test_other_uris_name_no_node(text: str) -> None:
    with pytest.raises(ValueError):
        parse_node_uri(text)


def test_a_nodes_keys_are_whole_and_do_not_show() -> None:
    keys = NodeKeys(cluster_key=b"c" * 32, gossip_keys=(b"g" * 32,))
    assert "ccc" not in repr(keys)
    assert "ggg" not in repr(keys)
    for wrong in ((), (b"short",), (b"g" * 32,) * 5):
        with pytest.raises(ValueError):
            NodeKeys(cluster_key=b"c" * 32, gossip_keys=wrong)
    with pytest.raises(ValueError):
        NodeKeys(cluster_key=b"", gossip_keys=(b"g" * 32,))
    assert len(key_id(b"g" * 32)) == 8
