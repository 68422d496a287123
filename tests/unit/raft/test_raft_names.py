"""Host names are looked up without anybody waiting for them."""

from __future__ import annotations

import socket
import threading

import pytest

from cube.adapters.raft import names as names_module
from cube.adapters.raft.library import monotonic
from cube.adapters.raft.names import ANSWER_S_MAX, LOOKUPS_MAX, Found, Names
from tests.raft_support import until

PLACE: Found = (socket.AF_INET, ("10.0.0.1", 7701))


class Server:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()

    def __call__(self, address: str) -> Found:
        self.asked.append(address)
        assert self.answers.wait(20)
        if address.startswith("nowhere"):
            raise socket.gaierror("not known")
        return PLACE


def test_numbers_are_asked_of_nobody() -> None:
    server = Server()
    names = Names(server)
    assert names.find("127.0.0.1:7701") == (socket.AF_INET, ("127.0.0.1", 7701))
    assert names.find("[::1]:7701") == (socket.AF_INET6, ("::1", 7701))
    for nonsense in ("10.0.0.1", "10.0.0.1:", "10.0.0.1:99999", "10.0.0.1:0", ":7701", "a:७"):
        with pytest.raises(OSError, match="not host:port"):
            names.find(nonsense)
    assert server.asked == []


async def test_a_silent_name_server_holds_up_nobody() -> None:
    server = Server()
    names = Names(server)
    for _ in range(3):
        assert names.find("node:7701") is None
    for number in range(2 * LOOKUPS_MAX):
        assert names.find(f"nowhere-{number}:7701") is None
    await until(lambda: len(server.asked) == LOOKUPS_MAX)
    server.answers.set()
    found: list[Found] = []

    def is_found() -> bool:
        if (place := names.find("node:7701")) is not None:
            found.append(place)
        return bool(found)

    await until(is_found)
    assert found == [PLACE]


async def test_answers_that_nobody_comes_back_for_take_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    server.answers.set()
    names = Names(server)
    for number in range(LOOKUPS_MAX):
        names.find(f"gone-{number}:7701")
    await until(lambda: all(names._asking.values()))
    assert names.find("node:7701") is None
    assert "node:7701" not in server.asked
    later = monotonic() + ANSWER_S_MAX + 1
    monkeypatch.setattr(names_module, "monotonic", lambda: later)
    assert names.find("node:7701") is None
    await until(lambda: "node:7701" in server.asked)


async def test_a_name_that_nobody_knows_is_said_once_and_asked_again() -> None:
    server = Server()
    server.answers.set()
    names = Names(server)

    def is_refused() -> bool:
        try:
            assert names.find("nowhere:7701") is None
        except OSError:
            return True
        return False

    await until(is_refused)
    assert names.find("nowhere:7701") is None
    await until(lambda: server.asked == ["nowhere:7701"] * 2)
