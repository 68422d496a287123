"""host:port, joined and split."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cube.model.addresses import join_address, split_address


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("10.0.0.1", 7700, "10.0.0.1:7700"),
        ("node-1.example", 1, "node-1.example:1"),
        ("::1", 65535, "[::1]:65535"),
        ("fe80::1%eth0", 80, "[fe80::1%eth0]:80"),
    ],
)
def test_there_and_back(host: str, port: int, address: str) -> None:
    assert join_address(host, port) == address
    assert split_address(address) == (host, port)


def test_brackets_are_not_put_twice() -> None:
    assert join_address("[::1]", 80) == "[::1]:80"


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", ":80", "host:0", "host:65536", "host:-1", "host:+1", "host: 1",
     "host:1_0", "host:٣", "::1:80", "[::1]", "[]:80", "[host]:80", "[[::1]]:80", "host:80:81",
     "host:999999999999"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="port"):
        split_address(text)


@given(st.text(max_size=20))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        host, port = split_address(text)
    except ValueError:
        return
    assert split_address(join_address(host, port)) == (host, port)
