"""`cube exec` and its WebSocket against the real API: pipes, terminals, and links that break."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import random
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cube.cli.exits import complain
from cube.cli.root import run
from cube.client import BadAnswer
from cube.client.client import Client
from cube.client.conversation import UNSENT_BYTES_MAX, Conversation, Ended
from cube.client.websocket import BINARY, PING, TEXT, Messages, accepts, frame
from tests.fakes.cluster import job_spec
from tests.fakes.served import Served, served
from tests.unit.api.test_api_streams import eventually

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 30


def cube(api: Served, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "cube", "--addr", api.address, "exec", *arguments]


async def done(
    api: Served, *arguments: str, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(
        subprocess.run, cube(api, *arguments), input=given, capture_output=True,
        timeout=PATIENCE_S, check=False, cwd=ROOT,
    )  # fmt: skip


async def test_the_command_line_passes_on_output_input_and_exit_code() -> None:
    async with served() as api:
        api.world.running(job_spec())
        told = await done(api, "shop.web.0", "--", "say", "hello", "7")
        assert (told.returncode, told.stdout, told.stderr) == (7, b"hello\n", b"")
        given = random.Random(1).randbytes(1_000_000)
        told = await done(api, "shop", "copy", given=given)
        assert (told.returncode, told.stdout == given, told.stderr) == (0, True, b"")
        told = await done(api, "shop.web.0", "--", "/no/such/command")
        assert told.returncode == 127 and b"/no/such/command" in told.stderr
        told = await done(api, "-n", "shop", "copy", given=b"not for it")
        assert (told.returncode, told.stdout) == (0, b"")


async def test_what_is_refused_is_told_like_any_error() -> None:
    async with served() as api:
        api.world.running(job_spec(web={"count": 2}))
        for arguments, code, words in (
            (("shop", "ls"), 5, b"2 running tasks"),
            (("nope.web.0", "ls"), 4, b"no task"),
            (("shop.web.0",), 2, b"what should run?"),
        ):
            told = await done(api, *arguments)
            assert told.returncode == code and words in told.stderr, told
            assert told.stderr.startswith(b"error: ")


async def test_a_link_that_breaks_is_an_error_with_a_sentence() -> None:
    async with served() as api:
        api.world.running(job_spec())
        asked = asyncio.create_task(done(api, "shop", "hang"))
        async with asyncio.timeout(PATIENCE_S):
            await eventually(lambda: bool(api.local_tasks.sessions))
            for task in list(api.shared.lasting):
                task.cancel()  # as at the agent's shutdown
            told = await asked
        assert told.returncode == 7
        assert b"broke off" in told.stderr and b"Traceback" not in told.stderr


def _heed_interrupts() -> None:
    """As on a terminal: who runs the tests in the background ignores ^C, and so would the program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, arguments: list[str]) -> None:
        self.fd, inner = pty.openpty()
        self._inner = inner
        self.before = termios.tcgetattr(inner)
        self.program = subprocess.Popen(
            arguments, stdin=inner, stdout=inner, stderr=inner, cwd=ROOT, start_new_session=True,
            env={**os.environ, "TERM": "xterm"}, preexec_fn=_heed_interrupts,
        )  # fmt: skip
        self.seen = b""

    @property
    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._inner) == self.before

    def until(self, wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not wanted():
            assert time.monotonic() < deadline, self.seen
            if select.select([self.fd], [], [], 0.05)[0]:
                self.seen += os.read(self.fd, 4096)

    def close(self) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self.fd)
        os.close(self._inner)


@contextlib.contextmanager
def terminal(arguments: list[str]) -> Iterator[Terminal]:
    one = Terminal(arguments)
    try:
        yield one
    finally:
        one.close()


async def test_on_a_terminal_keys_and_sizes_go_through_and_it_is_restored() -> None:
    async with served() as api:
        api.world.running(job_spec())

        def walk() -> None:
            with terminal(cube(api, "shop", "copy")) as one:
                one.until(lambda: len(api.local_tasks.sessions) == 1)
                os.write(one.fd, b"\x03\x1a")  # what is typed is the command's, ^C too
                one.until(lambda: b"\x03\x1a" in one.seen)
                assert not one.is_as_before
                api.local_tasks.task_over.set()
                one.until(lambda: one.program.poll() is not None)
                assert one.program.returncode == 137
                assert one.is_as_before

        await asyncio.to_thread(walk)
        order = api.local_tasks.sessions[0][0]
        assert order.tty and order.term == "xterm"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_terminal_is_restored_when_the_program_is_ended(number: signal.Signals) -> None:
    async with served() as api:
        api.world.running(job_spec())

        def walk() -> None:
            with terminal(cube(api, "shop", "size")) as one:
                one.until(lambda: b"24 80" in one.seen)
                termios.tcsetwinsize(one.fd, (33, 77))
                os.kill(one.program.pid, signal.SIGWINCH)
                one.until(lambda: b"33 77" in one.seen)
                os.kill(one.program.pid, number)
                one.until(lambda: one.program.poll() is not None)
                assert one.program.returncode == 128 + number
                assert one.is_as_before

        await asyncio.to_thread(walk)


def plain(kind: int, data: bytes, final: bool = True) -> bytes:
    """A frame as a server sends it."""
    size = len(data)
    head = bytes([(0x80 if final else 0) | kind])
    if size < 126:
        return head + bytes([size]) + data
    if size < 65_536:
        return head + b"\x7e" + size.to_bytes(2, "big") + data
    return head + b"\x7f" + size.to_bytes(8, "big") + data


def test_messages_are_found_however_they_are_cut() -> None:
    sizes = (0, 1, 125, 126, 65_535, 65_536, 100_000)
    sent = [(BINARY, bytes([n]) * size) for n, size in enumerate(sizes)]
    wire = b"".join(plain(*message) for message in sent)
    wire += plain(TEXT, b"ab", final=False) + plain(PING, b"p") + plain(0, b"cd")
    dice = random.Random(2)
    messages, found = Messages(1 << 20), []
    while wire:
        cut = dice.randrange(1, 5_000)
        found += messages.feed(wire[:cut])
        wire = wire[cut:]
    assert found == [*sent, (PING, b"p"), (TEXT, b"abcd")]


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\n",
        b"\x82\x81\x00\x00\x00\x00x",  # masked
        plain(BINARY, b"x" * 2_000),
        plain(BINARY, b"x" * 900, final=False) + plain(0, b"x" * 900),
        plain(TEXT, b"a", final=False) + plain(TEXT, b"b"),
        plain(0, b"a"),
        plain(PING, b"x" * 126),
    ],
)
def test_what_is_no_websocket_is_refused(wire: bytes) -> None:
    with pytest.raises(BadAnswer):
        Messages(1_000).feed(wire)


def test_a_clients_frame_is_masked_and_says_what_it_holds() -> None:
    """The example of RFC 6455, 1.3, for the handshake."""
    assert accepts("dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    made = frame(TEXT, b"Hello")
    mask, masked = made[2:6], made[6:]
    assert made[:2] == b"\x81\x85"
    assert bytes(b ^ mask[n % 4] for n, b in enumerate(masked)) == b"Hello"


class _Head:
    """A connection that is there already, and whose answer has been read."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def close(self) -> None:
        self.sock.close()


def test_who_only_pings_does_not_make_the_client_grow() -> None:
    """An agent that never reads is owed a PONG for each PING; the last one will do."""
    ours, theirs = socket.socketpair()
    head: Any = _Head(ours)
    talk = Conversation(head, head)
    wake, unused = os.pipe()
    pings = plain(PING, b"x" * 125) * 200

    def flood() -> None:
        with theirs:
            for _ in range(200):  # 40,000 of them, 5 MB of PONGs
                theirs.sendall(pings)
            talk.resize(1, 2)
            talk.resize(3, 4)
            theirs.sendall(plain(TEXT, b'{"ended":true,"exit_code":7}'))
            flooded.set()
            done.wait(PATIENCE_S)

    flooded, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=flood)
    thread.start()
    try:
        assert talk.run(None, {1: 1, 2: 2}, wake, lambda: None).exit_code == 7
        assert flooded.is_set()
        assert len(talk._unsent) < UNSENT_BYTES_MAX + 64 * 1024
    finally:
        done.set()
        thread.join()
        talk.close()
        os.close(wake)
        os.close(unused)


@pytest.mark.parametrize("code", [None, 3])
def test_what_the_agent_says_of_the_end_cannot_drive_a_terminal(
    code: int | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Talk:
        def run(self, *_: object) -> Ended:
            return Ended(code, "\x1b[2Jgone\x07" + "x" * 10_000)

        def close(self) -> None: ...

    monkeypatch.setattr(Client, "exec", lambda *_: Talk())
    monkeypatch.setattr("cube.cli.exec._task_of", lambda _, name: name)
    assert run(["exec", "-T", "-n", "shop.web.0", "--", "x"]) == (1 if code is None else code)
    told = capfd.readouterr().err
    assert "?[2Jgone?" in told and "\x1b" not in told and len(told) < 2_000


def test_no_error_drives_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    complain("a\x1b[2J", "b\x07\nc", "d\x9b")
    assert capsys.readouterr().err == "error: a?[2J\n  why: b?\n       c\n  try: d?\n"
