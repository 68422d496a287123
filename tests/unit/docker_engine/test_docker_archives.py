"""Where files of a container are, whose they are, and how the engine's answers are read; no engine."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from cube.adapters.docker_engine.files import LINK, absolute, is_unseen, owner_of, resolved
from cube.adapters.docker_engine.raw import WEATHER, Wire
from cube.model.sessions import ExecOrder, FileOrder, FileOwner


@pytest.mark.parametrize(
    ("path", "directory", "found"),
    [
        ("a", "/srv", "/srv/a"), ("a/", "/srv", "/srv/a/."), (".", "/srv", "/srv/."),
        ("/etc/x", "/srv", "/etc/x"), ("/", "", "/."), ("..", "/srv/x", "/srv/."),
        ("../../../etc", "/srv", "/etc"), ("//etc//x", "/", "/etc/x"), ("a", "", "/a"),
    ],
)  # fmt: skip
def test_a_path_is_below_the_working_directory(path: str, directory: str, found: str) -> None:
    assert absolute(path, directory) == found


def test_what_only_the_container_sees() -> None:
    inspected = {
        "HostConfig": {"Tmpfs": {"/run": ""}},
        "Mounts": [
            {"Type": "tmpfs", "Destination": "/fast/"},
            {"Type": "volume", "Destination": "/data"},
        ],
    }
    hidden = ["/run", "/run/x", "/run/.", "/fast/y", "/proc/1/environ", "/dev/shm/z", "/sys"]
    seen = ["/", "/.", "/runner", "/data/x", "/faster", "/procs"]
    assert [path for path in hidden + seen if is_unseen(path, inspected)] == hidden


@pytest.mark.parametrize(
    ("path", "behind", "found"),
    [
        ("/var/run/x", True, "/run/x"), ("/var/run/x", False, "/run/x"), ("/var/run/.", True, "/run"),
        ("/var/run", False, "/var/run"), ("/var/run", True, "/run"), ("/var/gone/x", True, "/var/gone/x"),
        ("/", True, "/"), ("/var/run/a/b", True, "/run/a/b"), ("/x" * 100, True, None),
    ],
)  # fmt: skip
def test_a_path_is_followed_through_links(path: str, behind: bool, found: str | None) -> None:
    there = {"/var": (1, ""), "/var/run": (LINK | 1, "/run"), "/run": (1, ""), "/run/x": (1, "")}
    assert resolved(path, lambda one: there.get(one, (0, "")), behind=behind) == found


def test_who_owns_what_is_put_into_a_container() -> None:
    texts = {
        "/etc/passwd": "root:x:0:0::/:/bin/sh\napp:x:1000:1001:An App:/:/bin/sh\n:::\nodd\n"
        "far:x:99999999999999:-5::/:/\n",
        "/etc/group": "root:x:0:\nstaff:x:50:\n",
    }
    for user, found in (
        ("", FileOwner()),
        ("app", FileOwner(1000, 1001)),
        ("1000", FileOwner(1000, 1001)),
        ("app:staff", FileOwner(1000, 50)),
        ("1234:60", FileOwner(1234, 60)),
        ("1234", FileOwner(1234, 0)),
        ("nobody-here", FileOwner()),
        ("far", FileOwner()),
        ("odd:odd", FileOwner()),
        ("99999999999999", FileOwner()),
    ):
        assert owner_of(user, lambda name: texts.get(name, "")) == found, user
        assert owner_of(user, lambda _: "") is not None  # an image without either file


def answer(data: bytes) -> list[bytes]:
    """The pieces of an answer's body; raises what is in WEATHER."""

    async def main() -> list[bytes]:
        reader = asyncio.StreamReader(limit=64 * 1024)
        reader.feed_data(data)
        reader.feed_eof()
        wire = Wire(reader, cast("Any", None))
        await wire.read_head()
        return [piece async for piece in wire.body()]

    return asyncio.run(main())


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_an_answer_is_read_to_its_end() -> None:
    assert b"".join(answer(CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nA: b\r\n\r\n")) == b"abcde"
    assert b"".join(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd")) == b"abc"
    assert b"".join(answer(b"HTTP/1.1 200 OK\r\n\r\nabcd")) == b"abcd"
    assert answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") == []


@pytest.mark.parametrize(
    "data",
    [
        b"3\r\nab", b"3\r\nabc", b"3\r\nabc\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"x\r\n", b"\r\n",
        b"0\r\n", b"f" * 100_000,
    ],
)  # fmt: skip
def test_an_answer_that_is_cut_off_or_wrong_is_not_taken_for_whole(data: bytes) -> None:
    with pytest.raises(WEATHER):
        answer(CHUNKED + data)


def test_a_body_that_ends_too_soon_is_not_taken_for_whole() -> None:
    with pytest.raises(WEATHER):
        answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabcd")


def test_orders_for_files_that_nobody_can_carry_out() -> None:
    for path, tty in (("", False), ("a\0b", False), ("x" * 5000, False), ("a", True)):
        order = ExecOrder(argv=("tar",), tty=tty, files=FileOrder(action="get", path=path))
        assert "files" in order.trouble()
