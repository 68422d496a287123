"""Whoever reaches the Raft port and means harm: bytes of every kind, from strangers and, as far as a
member without the right to speak goes, from members."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import random
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cube.adapters.raft import wire
from cube.adapters.raft.commands import NO_OP, encode_members, stamped, unstamped
from cube.adapters.trust.tls import NodeTls, ca_only_context
from cube.model.ids import ClusterId
from tests.raft_tls import Authority

AT_ONCE = 40
# More than a member keeps of strangers, so that some have to make way.
HALF_OPEN_AT_ONCE = 300
CONNECT_S_MAX = 20.0
# An attacker gives a connection up after this long, if the member has not.
WAIT_S = 0.3
NUMBER = 1 << 61
FRAMES_OF_A_MEMBER = 30

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Attack:
    """Connections to the members at `addresses`, of every kind in turn, from one seed."""

    def __init__(
        self, addresses: list[str], cluster: str, directory: Path, authority: Authority | None
    ) -> None:
        self.addresses = addresses
        self.cluster = cluster
        self.random = random.Random(7)
        self.made = dict.fromkeys(self.kinds, 0)
        self.turned_away = 0  # in the handshake, as the attacker sees it
        self._half_open: list[asyncio.StreamWriter] = []
        stranger = Authority()
        files = stranger.node(directory / "stranger", "node-1")
        self.stranger = NodeTls(files, ClusterId(stranger.cluster)).client
        self.stranger.verify_mode = ssl.CERT_NONE
        self.nobody = ca_only_context(stranger.pem)
        self.nobody.verify_mode = ssl.CERT_NONE
        self.member: ssl.SSLContext | None = None
        self.recorded = self.hello("127.0.0.1:9", cluster="another") + self.takeover()
        if authority is not None:
            node = authority.node(directory / "member", "node-9")
            tls = NodeTls(node, ClusterId(authority.cluster))
            self.member = tls.client
            self.recorded = record(tls, self.hello("127.0.0.1:9") + self.takeover())

    # --- what it says

    def hello(self, sender: str, receiver: str = "", cluster: str = "") -> bytes:
        message = {
            "type": "hello",
            "sender": sender,
            "receiver": receiver or self.addresses[0],
            "cluster": cluster or self.cluster,
        }
        if self.member is not None:
            message["node"] = "node-9"
        return wire.encode(message)

    def takeover(self) -> bytes:
        """A leader of another term, its log and its voters."""
        entry = [encode_members(frozenset({"127.0.0.1:9"})), 2, 99]
        return wire.encode(
            {
                "type": "append_entries",
                "term": 99,
                "commit_index": 2,
                "prevLogIdx": 1,
                "prevLogTerm": 0,
                "entries": [entry],
            }
        )

    def legal_frame(self) -> bytes:
        """What a member could say, and this one may not."""
        pick = self.random.choice
        number = pick([0, 1, 2, 99, NUMBER])
        messages: list[dict[str, Any]] = [
            {"type": "request_vote", "term": number, "last_log_index": NUMBER,
             "last_log_term": NUMBER, "transfer": True},
            {"type": "pre_vote", "term": number, "last_log_index": NUMBER,
             "last_log_term": NUMBER},
            {"type": "response_vote", "term": number},
            {"type": "pre_vote_ok", "term": number},
            {"type": "term_hint", "term": number},
            {"type": "timeout_now", "term": number},
            {"type": "next_node_idx", "term": number, "next_node_idx": NUMBER,
             "reset": pick([True, False]), "success": pick([True, False])},
            {"type": "append_entries", "term": number, "commit_index": NUMBER,
             "prevLogIdx": number, "prevLogTerm": 0,
             "entries": [[stamped(unstamped(b"evil"), 0), number + 1, number]]},
            {"type": "append_entries", "term": number, "commit_index": number,
             "serialized": [bytes(1000), 0, pick([True, False])]},
            {"type": "apply_command", "command": NO_OP, "request_id": number},
            {"type": "apply_command", "command": encode_members(frozenset({"x:1"}))},
            {"type": "apply_command_response", "request_id": number, "error": 4},
        ]  # fmt: skip
        return wire.encode(pick(messages))

    # --- how it comes

    @property
    def kinds(self) -> dict[str, Callable[[str], Any]]:
        return {
            "random": self._random,
            "truncated": self._truncated,
            "oversized": self._oversized,
            "pickle": self._pickle,
            "replay": self._replay,
            "frames of a stranger": self._stranger,
            "frames of a member": self._member,
            "junk of a member": self._member_junk,
            "TLS garbage": self._tls_garbage,
            "half-open": self._half_opened,
            "no certificate": self._no_certificate,
        }

    async def run(self, count: int) -> None:
        """`count` connections have been made and are over."""
        kinds = list(self.kinds.items())
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            name, attack = kinds[number % len(kinds)]
            async with gate:
                await attack(self.random.choice(self.addresses))
                self.made[name] += 1

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    group.create_task(one(number))
        finally:
            for writer in self._half_open:
                writer.transport.abort()
            self._half_open.clear()

    async def _random(self, address: str) -> None:
        await self._say(address, self.random.randbytes(self.random.randint(1, 4096)))

    async def _truncated(self, address: str) -> None:
        whole = self.hello("127.0.0.1:9", address) + self.takeover()
        cut = whole[: self.random.randint(1, len(whole) - 1)]
        await self._say(address, cut, context=self.random.choice([None, self.member]))

    async def _oversized(self, address: str) -> None:
        length = self.random.choice([wire.HELLO_BYTES_MAX + 1, 57 << 20, (1 << 32) - 1])
        said = struct.pack(">I", length) + bytes(2000)
        await self._say(address, said, context=self.random.choice([None, self.member]))

    async def _pickle(self, address: str) -> None:
        pickled = pickle.dumps({"type": "status", "term": 99})
        await self._say(address, struct.pack(">I", len(pickled)) + pickled, context=self.member)

    async def _replay(self, address: str) -> None:
        await self._say(address, self.recorded)

    async def _stranger(self, address: str) -> None:
        """With TLS under another CA, without it of another cluster."""
        context = self.stranger if self.member is not None else None
        hello = self.hello("127.0.0.1:9", address, "another")
        await self._say(address, hello + self.takeover() + self.legal_frame(), context=context)

    async def _member(self, address: str) -> None:
        """Let in as a guest, it says what a leader or a voter would."""
        sender = f"127.0.0.1:{self.random.randint(1, 9)}"
        frames = [self.legal_frame() for _ in range(FRAMES_OF_A_MEMBER)]
        said = self.hello(sender, address) + self.takeover() + b"".join(frames)
        await self._say(address, said, context=self.member)

    async def _member_junk(self, address: str) -> None:
        sender = f"127.0.0.1:{self.random.randint(1, 9)}"
        junk = self.random.randbytes(self.random.randint(1, 500))
        said = self.hello(sender, address) + struct.pack(">I", len(junk)) + junk
        await self._say(address, said, context=self.member)

    async def _tls_garbage(self, address: str) -> None:
        length = self.random.randint(1, 2000)
        head = struct.pack(">BHH", self.random.choice([20, 21, 22, 23]), 0x0301, length)
        said = (
            head + self.random.choice([b"\x01", b"\x02", b"\x0b"]) + self.random.randbytes(length)
        )
        await self._say(address, said)

    async def _half_opened(self, address: str) -> None:
        """Silent, or silent in the middle of a handshake, until there are many of them."""
        connection = await self._connect(address, None)
        if connection is None:
            return
        _, writer = connection
        if self.random.random() < 0.5:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = self.stranger.wrap_bio(incoming, outgoing)
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            writer.write(outgoing.read())
        self._half_open.append(writer)
        if len(self._half_open) > HALF_OPEN_AT_ONCE:
            oldest = self._half_open.pop(0)
            oldest.transport.abort()

    async def _no_certificate(self, address: str) -> None:
        await self._say(address, self.hello("127.0.0.1:9", address), context=self.nobody)

    # --- the sockets

    async def _connect(self, address: str, context: ssl.SSLContext | None) -> Connection | None:
        host, port = address.rsplit(":", 1)
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                return await asyncio.open_connection(host, int(port), ssl=context)
        except (OSError, TimeoutError):
            self.turned_away += 1
            return None

    async def _say(
        self, address: str, said: bytes, *, context: ssl.SSLContext | None = None
    ) -> None:
        connection = await self._connect(address, context)
        if connection is None:
            return
        reader, writer = connection
        try:
            writer.write(said)
            async with asyncio.timeout(WAIT_S):
                await writer.drain()
                await reader.read()
        except (OSError, TimeoutError):
            pass
        finally:
            writer.transport.abort()


def record(tls: NodeTls, said: bytes) -> bytes:
    """All that a member's client puts on the wire in a connection in which it says `said`."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.client.wrap_bio(to_client, to_server)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = tls.server.wrap_bio(incoming, outgoing, server_side=True)
    recorded = b""
    for _ in range(4):
        for end in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            data = to_server.read()
            recorded += data
            incoming.write(data)
            to_client.write(outgoing.read())
    client.write(said)
    return recorded + to_server.read()
