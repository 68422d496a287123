"""The tools do what the rounds believe they do: a fault that never happened proves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import clocks
from tests.faults.networks import Hosts, why_no_hosts

pytestmark = pytest.mark.root

PORT = 7_000
SENT = 200
_ECHO = f"""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", {PORT}))
print("ready", flush=True)
while True:
    data, sender = s.recvfrom(100)
    s.sendto(data, sender)
"""
# Prints how many of the datagrams that it sends come back.
_SEND = f"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.25)
heard = 0
for number in range({SENT}):
    s.sendto(b"%d" % number, (sys.argv[1], {PORT}))
    if number % 20 == 19 or number == {SENT} - 1:
        try:
            while heard <= number:
                s.recv(100)
                heard += 1
        except TimeoutError:
            pass
        if number == 19 and not heard:
            break
print(heard)
"""


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    reason = why_no_hosts()
    if reason:
        pytest.skip(reason)
    with contextlib.closing(Hosts(3)) as made:
        yield made


@contextlib.contextmanager
def echoing(hosts: Hosts, number: int) -> Iterator[None]:
    command = hosts.wrap(number, [sys.executable, "-c", _ECHO])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def returned(hosts: Hosts, source: int, target: int) -> int:
    command = hosts.wrap(source, [sys.executable, "-c", _SEND, hosts.address(target)])
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


def test_a_cut_is_one_way_between_two_and_heals(hosts: Hosts) -> None:
    """An echo needs both ways, so the ways are told apart by who still hears the third."""
    with echoing(hosts, 1):
        assert returned(hosts, 2, 1) == SENT
        hosts.cut(2, 1)
        assert returned(hosts, 2, 1) == 0
        assert returned(hosts, 3, 1) == SENT
        hosts.heal()
        assert returned(hosts, 2, 1) == SENT
        hosts.cut(1, 2)
        assert returned(hosts, 2, 1) == 0
        hosts.heal()
    with echoing(hosts, 2):
        hosts.cut(1, 3)
        assert returned(hosts, 1, 2) == SENT


def test_loss_takes_some_and_not_all(hosts: Hosts) -> None:
    with echoing(hosts, 1):
        hosts.lose(30)
        assert 0.3 * SENT < returned(hosts, 2, 1) < 0.7 * SENT  # 0.49, both ways


def test_clients_reach_every_host_and_no_cut_touches_them(hosts: Hosts) -> None:
    server = "import socket,sys;s=socket.create_server((sys.argv[1],7));print(flush=1);s.accept()"
    command = hosts.wrap(2, [sys.executable, "-c", server, hosts.address(2)])
    hosts.cut(1, 2)
    hosts.lose(99)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        hosts.dial(hosts.address(2), 7, 5).close()
    # This thread is where it was.
    with socket.create_server(("127.0.0.1", 0)) as own:
        socket.create_connection(own.getsockname(), 5).close()


def test_nothing_is_left_of_hosts(hosts: Hosts) -> None:
    before = set(os.listdir("/run/netns"))
    made = Hosts(2)
    named = set(os.listdir("/run/netns")) - before
    made.close()
    assert len(named) == 4
    assert not named & set(os.listdir("/run/netns"))


def test_a_clock_is_wrong_and_time_goes_on(tmp_path: Path) -> None:
    reason = clocks.why_no_clocks()
    if reason:
        pytest.skip(reason)
    clocks.build(tmp_path)
    clock = clocks.Clock(tmp_path, "x")
    program = """
import datetime, json, time
while input():
    now = datetime.datetime.now(datetime.UTC).timestamp()
    print(json.dumps([time.time(), now, time.monotonic()]), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | clock.environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip

        def ask() -> tuple[float, float, float]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"now\n")
            process.stdin.flush()
            wall, today, steady = json.loads(process.stdout.readline())
            return wall, today, steady

        before = ask()
        for error_ms in (3_600_000, -3_600_500, 999, -1):
            clock.step(error_ms)
            after = ask()
            passed = after[2] - before[2]
            assert passed >= 0
            for kind in (0, 1):
                assert abs(after[kind] - before[kind] - error_ms / 1_000 - passed) < 0.1
        process.kill()
