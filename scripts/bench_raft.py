"""Members of the log as processes on loopback, no agent around them: what benches and tests drive.

scripts/bench raft and scripts/bench etcd measure with them; tests/ kill them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import resource
import ssl
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cube.adapters.raft import PySyncObjLog, RaftSettings  # noqa: E402
from cube.adapters.trust import tls  # noqa: E402
from cube.adapters.trust.authority import issue, make_ca, make_key, make_request  # noqa: E402
from cube.model.errors import CubeError  # noqa: E402
from cube.model.ids import ClusterId, NodeId  # noqa: E402
from cube.model.trust import NodeIdentity, NodeRole  # noqa: E402

SIZE = 3
OPERATION_BYTES = 200
CLUSTER = ClusterId("bench")
REQUEST_S_MAX = 120
LENGTH = struct.Struct("<I")  # before each payload in a snapshot
DUMP_SLICE = 500


# --- a member: one process, commands on stdin, answers on stdout, a JSON object a line


class Replica:
    """Remembers what was applied, so that a test can ask what survived."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def apply(self, index: int, term: int, at_ms: int, data: bytes) -> object:
        self.payloads.append(data)
        return index

    def dump(self) -> Callable[[], Iterator[bytes]]:
        """In slices, as Cube's own: one that holds the interpreter is what would be measured."""
        count = len(self.payloads)
        starts = range(0, count, DUMP_SLICE)
        pack = LENGTH.pack

        def encode() -> Iterator[bytes]:
            for start in starts:
                payloads = self.payloads[start : min(start + DUMP_SLICE, count)]
                yield b"".join(pack(len(payload)) + payload for payload in payloads)

        return encode

    def load(self, data: bytes, index: int) -> None:
        self.payloads, offset = [], 0
        while offset < len(data):
            (length,) = LENGTH.unpack_from(data, offset)
            offset += LENGTH.size
            self.payloads.append(data[offset : offset + length])
            offset += length


class MemberTls(tls.NodeTls):
    """cube.adapters.raft.PeerTls of a cluster in which every node may have every address."""

    def __init__(self, directory: Path, node_id: str) -> None:
        super().__init__(directory, CLUSTER)
        self.node_id = NodeId(node_id)

    def peer_id(self, connection: ssl.SSLObject) -> NodeId:
        return self.peer(connection).node_id

    def is_removed(self, node_id: NodeId) -> bool:
        return False

    def expected_id(self, address: str) -> NodeId | None:
        return None


class Authority:
    def __init__(self) -> None:
        self.key = make_key()
        self.pem = make_ca(CLUSTER, self.key, time.time_ns() // 1_000_000)

    def enrol(self, directory: Path, node_id: str) -> None:
        """`directory` has the node's certificate and keys."""
        directory.mkdir(parents=True)
        key = make_key()
        identity = NodeIdentity(CLUSTER, NodeRole.NODE, NodeId(node_id))
        now_ms = time.time_ns() // 1_000_000
        certificate = issue(self.pem, self.key, make_request(key), identity, [], now_ms)
        (directory / tls.CA).write_text(self.pem)
        (directory / tls.KEY).write_text(key)
        (directory / tls.CERTIFICATE).write_text(certificate)


class Member:
    def __init__(self, options: dict[str, Any]) -> None:
        self.replica = Replica()
        self.log = PySyncObjLog(
            options["address"],
            data_dir=Path(options["data_dir"]),
            replica=self.replica,
            stamp=lambda: time.time_ns() // 1_000_000,
            members=tuple(options["members"]),
            joining=options["joining"],
            cluster=options["cluster"],
            settings=RaftSettings(**options["settings"]),
            tls=MemberTls(Path(options["trust"]), options["node_id"]) if options["trust"] else None,
        )

    async def serve(self) -> None:
        await self.log.start()
        reader = asyncio.StreamReader(limit=8 << 20)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        answer({"id": 0, "ok": True})
        tasks = set()
        while line := await reader.readline():
            task = asyncio.create_task(self.answer(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await self.log.stop()

    async def answer(self, request: dict[str, Any]) -> None:
        try:
            result = await self.do(request)
        except CubeError as error:
            answer({"id": request["id"], "error": type(error).__name__})
        else:
            answer({"id": request["id"], "ok": result})

    async def do(self, request: dict[str, Any]) -> object:
        match request["op"]:
            case "propose":
                data = bytes.fromhex(request["data"])
                return (await self.log.propose(data, request["timeout_ms"])).index
            case "propose_each":
                return await self.propose_each(request["prefix"], request["count"])
            case "add_voter":
                await self.log.add_voter(request["address"], 10_000)
            case "remove_voter":
                await self.log.remove_voter(request["address"], 10_000)
            case "barrier":
                return await self.log.barrier(request["timeout_ms"])
            case "status":
                status = self.log.status()
                return {
                    "role": status.role,
                    "term": status.term,
                    "vote": self.vote(),
                    "fault": status.fault,
                    "leader": status.leader,
                    "ready": status.ready,
                    "applied": status.applied_index,
                    "voters": [voter.address for voter in status.voters],
                }
            case "payloads":
                return [payload.hex() for payload in self.replica.payloads]
            case "compact":
                await self.log.compact()
            case "latency":
                return await self.measure_latency(request["count"])
            case "throughput":
                return await self.measure_throughput(**request["workload"])
            case "serve_puts":
                return await self.serve_puts()
            case "cpu":
                usage = resource.getrusage(resource.RUSAGE_SELF)
                return usage.ru_utime + usage.ru_stime
            case unknown:
                raise AssertionError(unknown)
        return True

    def vote(self) -> str | None:
        node = self.log._node
        return node.journal.getVotedForNodeId() if node is not None else None

    async def propose_each(self, prefix: str, count: int) -> list[str]:
        """Tells each acknowledgement as it comes: the caller may kill us any time."""
        for number in range(count):
            data = f"{prefix}-{number}".encode()
            with contextlib.suppress(CubeError):
                await self.log.propose(data, 2_000)
                answer({"id": -1, "acknowledged": data.hex()})
        return []

    async def serve_puts(self) -> int:
        """The port of an HTTP server that takes what etcd's gateway takes: each put is an entry."""

        async def put(request: web.BaseRequest) -> web.Response:
            body = json.loads(await request.read())
            key, value = base64.b64decode(body["key"]), base64.b64decode(body["value"])
            committed = await self.log.propose(LENGTH.pack(len(key)) + key + value, 20_000)
            return web.json_response({"header": {"revision": str(committed.index)}})

        runner = web.ServerRunner(web.Server(put, access_log=None))
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return port

    async def measure_latency(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            began = time.perf_counter()
            await self.log.propose(bytes(OPERATION_BYTES), 5_000)
            times.append((time.perf_counter() - began) * 1000)
        return times

    async def measure_throughput(self, count: int, window: int, size: int) -> dict[str, int]:
        left, data = iter(range(count)), bytes(size)
        failed = 0

        async def worker() -> None:
            nonlocal failed
            for _ in left:
                try:
                    await self.log.propose(data, 20_000)
                except CubeError:
                    failed += 1
                    await asyncio.sleep(0.05)

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(window)))
        return {"per_s": round((count - failed) / (time.perf_counter() - began)), "failed": failed}


def answer(message: dict[str, Any]) -> None:
    os.write(1, (json.dumps(message) + "\n").encode())


# --- the parent


class Process:
    """A member process as its parent sees it."""

    def __init__(self, number: int, options: dict[str, Any]) -> None:
        self.number = number
        self.options = options
        self.acknowledged: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next_id = 0

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        command = (sys.executable, __file__, "--member", json.dumps(self.options))
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, limit=64 << 20
        )
        started = self._waiting[0] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())
        await asyncio.wait_for(started, 20)

    async def request(self, op: str, **arguments: Any) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        self._next_id += 1
        future = self._waiting[self._next_id] = asyncio.get_running_loop().create_future()
        line = json.dumps({"id": self._next_id, "op": op, **arguments}) + "\n"
        self._process.stdin.write(line.encode())
        return await asyncio.wait_for(future, REQUEST_S_MAX)

    async def kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._ended()

    async def stop(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._ended()

    async def _ended(self) -> None:
        assert self._process is not None
        assert self._reader is not None
        process, self._process = self._process, None
        assert process.stdin is not None
        await asyncio.wait_for(process.wait(), 20)
        await self._reader
        process.stdin.close()
        with contextlib.suppress(OSError):
            await process.stdin.wait_closed()

    async def _read(self) -> None:
        assert self._process is not None
        stdout = self._process.stdout
        assert stdout is not None
        while line := await stdout.readline():
            try:
                message = json.loads(line)
            except ValueError:
                break  # cut by a kill
            if "acknowledged" in message:
                self.acknowledged.append(message["acknowledged"])
                continue
            future = self._waiting.pop(message["id"], None)
            if future is None or future.done():
                continue
            if "error" in message:
                future.set_exception(RuntimeError(message["error"]))
            else:
                future.set_result(message["ok"])
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(RuntimeError("killed"))
        self._waiting.clear()


class Processes:
    """A cluster of member processes."""

    def __init__(self, directory: Path, *, has_tls: bool = False, **settings: Any) -> None:
        self.directory = directory
        self.authority = Authority() if has_tls else None
        self.directory_of = lambda number: directory / str(number)
        self.settings = settings
        self.all: list[Process] = []

    def make(self, members: tuple[str, ...], *, joining: bool) -> Process:
        number = len(self.all)
        trust = self.directory / f"trust-{number}"
        if self.authority is not None:
            self.authority.enrol(trust, f"node-{number}")
        options = {
            "address": f"127.0.0.1:{free_port()}",
            "data_dir": str(self.directory_of(number)),
            "members": members,
            "joining": joining,
            "cluster": str(self.directory),
            "settings": self.settings,
            "trust": str(trust) if self.authority is not None else "",
            "node_id": f"node-{number}",
        }
        self.all.append(Process(number, options))
        return self.all[-1]

    async def found(self, size: int = SIZE) -> None:
        first = self.make((), joining=False)
        await first.start()
        await self.leader()
        for _ in range(size - 1):
            await self.join()

    async def join(self) -> Process:
        leader = await self.leader()
        joiner = self.make((leader.options["address"],), joining=True)
        await joiner.start()
        await leader.request("add_voter", address=joiner.options["address"])
        return joiner

    async def leader(self) -> Process:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for process in self.all:
                if process.is_running:
                    status = await process.request("status")
                    if status["role"] == "leader" and status["ready"]:
                        return process
            await asyncio.sleep(0.01)
        raise AssertionError("no leader within 20 s")

    def running(self) -> list[Process]:
        return [process for process in self.all if process.is_running]

    async def close(self) -> None:
        for process in self.running():
            await process.kill()


@contextlib.asynccontextmanager
async def cluster_of(size: int, **settings: Any) -> AsyncIterator[Processes]:
    with tempfile.TemporaryDirectory(prefix="cube-bench-raft-") as directory:
        processes = Processes(Path(directory), **settings)
        try:
            await processes.found(size)
            yield processes
        finally:
            await processes.close()


@contextlib.asynccontextmanager
async def busy_cores(count: int) -> AsyncIterator[None]:
    """`count` processes that only burn time."""
    burn = (sys.executable, "-c", "while True: pass")
    processes = [await asyncio.create_subprocess_exec(*burn) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            await process.wait()


def free_port() -> int:
    """One that nothing listens on, of the share that this run of the tests has."""
    from tests.ports import (
        free_port as of_this_run,  # here: members start without the checkout's tests
    )

    return of_this_run()


def summary(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "p50_ms": round(statistics.median(ordered), 3),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)], 3),
        "max_ms": round(ordered[-1], 3),
    }


def main() -> None:
    """A member process: the parent starts this file with --member and the options as JSON."""
    logging.basicConfig(level=os.environ.get("CUBE_LOG_LEVEL", "WARNING"))
    assert sys.argv[1] == "--member", "run it as: scripts/bench raft"
    asyncio.run(Member(json.loads(sys.argv[2])).serve())


if __name__ == "__main__":
    main()
