"""Where the agents of a test run: on loopback, or each on a host of its own.

A host is a network namespace with one interface; all are on a bridge that itself lives in a
namespace, with one more for the clients. The machine's own namespace is not touched. What is cut or
lost is dropped by the receiver's nftables, as a broken network would: nobody is told.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tests.ports import free_ports

_CLONE_NEWNET = 0x40000000
_NAMESPACES = Path("/run/netns")
_PREFIX = "cubefault"
_CLIENTS = "10.99.0.250"
_CHAIN = "add table inet cube; add chain inet cube in { type filter hook input priority 0; }"


class Network(Protocol):
    """`number` counts hosts from 1."""

    is_loopback: bool

    def address(self, number: int) -> str: ...

    def ports(self) -> tuple[int, int, int]:
        """For HTTP, Raft and gossip of one more agent."""
        ...

    def wrap(self, number: int, command: list[str]) -> list[str]:
        """The command as it runs on that host; its process is the command's."""
        ...

    def dial(self, address: str, port: int, timeout_s: float) -> socket.socket:
        """A connection of a client. Raises OSError."""
        ...

    def close(self) -> None: ...


class Loopback:
    is_loopback = True

    def address(self, number: int) -> str:
        return "127.0.0.1"

    def ports(self) -> tuple[int, int, int]:
        http, raft, gossip = free_ports(3)
        return http, raft, gossip

    def wrap(self, number: int, command: list[str]) -> list[str]:
        return command

    def dial(self, address: str, port: int, timeout_s: float) -> socket.socket:
        return socket.create_connection((address, port), timeout_s)

    def close(self) -> None:
        pass


class Hosts:
    """`count` hosts that reach each other; close() leaves nothing of them behind."""

    is_loopback = False
    _made = 0
    _lock = threading.Lock()

    def __init__(self, count: int) -> None:
        _sweep()
        with Hosts._lock:
            Hosts._made += 1
            self._name = f"{_PREFIX}-{os.getpid()}-{Hosts._made}"
        self.count = count
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        switch = self._namespace("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        self._plug(self._namespace("clients"), _CLIENTS, "clients")
        for number in range(1, self.count + 1):
            self._plug(self._namespace(number), self.address(number), f"port{number}")
            self._nft(number, _CHAIN)

    def _plug(self, namespace: str, address: str, port: str) -> None:
        switch = self._namespace("switch")
        _ip("netns", "add", namespace)
        _ip("link", "add", port, "netns", switch, "type", "veth", "peer", "name", "eth0",
            "netns", namespace)  # fmt: skip
        _ip("-n", switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "link", "set", "eth0", "up")

    def _namespace(self, which: int | str) -> str:
        return f"{self._name}-{which}"

    def close(self) -> None:
        for path in _NAMESPACES.glob(f"{self._name}-*"):
            subprocess.run(["ip", "netns", "del", path.name], check=False, capture_output=True)

    def address(self, number: int) -> str:
        return f"10.99.0.{number}"

    def ports(self) -> tuple[int, int, int]:
        return 7700, 7701, 7702

    def wrap(self, number: int, command: list[str]) -> list[str]:
        # Not `ip netns exec`: that makes a mount namespace, which would hold on to every disk.
        return ["nsenter", f"--net={_NAMESPACES / self._namespace(number)}", "--", *command]

    def dial(self, address: str, port: int, timeout_s: float) -> socket.socket:
        with _inside(self._namespace("clients")):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.settimeout(timeout_s)
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    def witness(self) -> tuple[socket.socket, str]:
        """A datagram socket where every host reaches it, whatever is cut between them; and where."""
        with _inside(self._namespace("clients")):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((_CLIENTS, 0))
        return made, f"{_CLIENTS}:{made.getsockname()[1]}"

    # What is wrong with the network; all of it until heal()

    def cut(self, source: int, target: int) -> None:
        """What `source` sends does not reach `target`. The other way is as it was."""
        self._nft(target, f"add rule inet cube in ip saddr {self.address(source)} drop")

    def lose(self, percent: int) -> None:
        """Of what hosts send each other so much is lost, at random. Clients are spared."""
        peers = ", ".join(self.address(number) for number in range(1, self.count + 1))
        rule = f"ip saddr {{ {peers} }} numgen random mod 100 < {percent} drop"
        for number in range(1, self.count + 1):
            self._nft(number, f"add rule inet cube in {rule}")

    def heal(self) -> None:
        for number in range(1, self.count + 1):
            self._nft(number, "flush chain inet cube in")

    def _nft(self, number: int, command: str) -> None:
        _run(*self.wrap(number, ["nft", command]))


def why_no_hosts() -> str:
    """Why this machine cannot do it; empty when it can."""
    if os.geteuid() != 0:
        return "needs root, to make hosts of network namespaces"
    for command in ("ip", "nft", "nsenter"):
        if shutil.which(command) is None:
            return f"needs {command}"
    try:
        Hosts(1).close()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces do not work here: {error}"
    return ""


def _sweep() -> None:
    """What a killed test left is gone."""
    for path in _NAMESPACES.glob(f"{_PREFIX}-*"):
        pid = path.name.split("-")[1]
        if not Path("/proc", pid).exists():
            subprocess.run(["ip", "netns", "del", path.name], check=False, capture_output=True)


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread's sockets are made there; other threads are where they were."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")

    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        other = os.open(_NAMESPACES / namespace, os.O_RDONLY)
        try:
            enter(other)
            try:
                yield
            finally:
                enter(own)
        finally:
            os.close(other)
    finally:
        os.close(own)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
