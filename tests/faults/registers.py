"""Jobs as registers: what clients did to them through the API, and what they were told.

A job with a count of 0 runs nothing; its `meta.value` is the register's value, its version the
register's. Writes carry an Idempotency-Key and are sometimes tried again with it, at another node;
some hold only for a version (If-Match). Reads ask with ?consistent=1. Between them clients read
locally, at least as new as they have seen (?min_index=): such a read must not turn back.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.cluster import Agent, Connection, FaultCluster, Json
from tests.faults.lincheck import Action, Operation, Read, Refused, Register, Unknown, Write

CLIENTS = 8
ATTEMPT_S = 2.0  # then another node is asked
AGAIN = 0.1  # so many acknowledged writes are sent once more, with the same key
PAUSE_S_MAX = 0.04  # between a client's operations: the processor is the agents'
# What may be answered while something is wrong.
_NOT_DONE, _UNKNOWN = 503, 504


def job(key: str, value: str, padding: int = 0) -> bytes:
    group = {
        "env": {"PADDING": "x" * padding},
        "count": 0,
        "driver": "process",
        "command": ["true"],
        "resources": {"cpu": 0.01, "memory": "4MiB"},
    }
    return json.dumps(
        {"name": key, "type": "service", "meta": {"value": value}, "groups": {"g": group}}
    ).encode()


def register(status: int, body: Json) -> Register:
    """What a GET of a job says."""
    if status == 404:
        return Register()
    return Register(body["version"], body["spec"]["meta"]["value"])


class NotDone(Exception):
    """It certainly did not happen."""


class Lost(Exception):
    """It may have happened, or may yet."""


class Unexpected(Exception):
    """An answer that no fault explains."""


@dataclass(eq=False)
class Client(threading.Thread):
    """One of several. With `pinned` it asks that agent only, whatever becomes of it: an agent that
    is cut off must not tell it anything wrong."""

    number: int
    agents: Callable[[], list[Agent]]
    keys: list[str]
    seed: int
    pinned: Agent | None = None
    history: list[Operation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(name=f"client-{self.number}", daemon=True)
        self._dice = random.Random(f"{self.seed}/{self.number}")
        self._values = (f"{self.number}.{count}" for count in itertools.count())
        self._over = threading.Event()
        self._at = self.pinned or self._dice.choice(self.agents())
        self._kept: Connection | None = None
        self._seen: dict[str, int] = {}  # key → the highest version this client knows of
        self._index = 0  # the newest state this client has been told

    def finish(self) -> None:
        self._over.set()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                key = self._dice.choice(self.keys)
                draw = self._dice.random()
                # One that stays with a node reads more: a write there may wait for long.
                if draw < (0.5 if self.pinned else 0.35):
                    self._read(key)
                elif draw < (0.6 if self.pinned else 0.5):
                    self._read_again(key)
                elif draw < (0.8 if self.pinned else 0.75):
                    self._write(key, None)
                else:
                    self._write(key, self._seen.get(key, 0))
                self._over.wait(self._dice.uniform(0, PAUSE_S_MAX))
        except Exception as error:  # noqa: BLE001 - told by the thread that joins this one
            self.wrong.append(f"client {self.number}: {error!r}")
        finally:
            self._hang_up()

    # Operations

    def _read(self, key: str) -> None:
        call = time.monotonic()
        try:
            status, body = self._ask("GET", f"/v1/jobs/{key}?consistent=1", None, {})
        except (NotDone, Lost):
            self.counts["unread"] += 1
            return
        found = register(status, body)
        self._note(key, Read(found), call)
        self._seen[key] = found.version

    def _read_again(self, key: str) -> None:
        """Locally: never older than what this client has seen, of any node."""
        known = self._seen.get(key, 0)
        path = f"/v1/jobs/{key}?min_index={self._index}"
        try:
            status, body = self._ask("GET", path, None, {})
        except (NotDone, Lost):
            return
        self.counts["session"] += 1
        found = register(status, body)
        if found.version < known:
            self.wrong.append(
                f"client {self.number} at {self._at.name}: {path} answered {found}, version {known} "
                "had been seen"
            )
        self._seen[key] = max(known, found.version)

    def _write(self, key: str, expected: int | None) -> None:
        value = next(self._values)
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": f"{self.seed}-{key}-{value}",
        }
        if expected == 0:
            headers["If-None-Match"] = "*"
        elif expected is not None:
            headers["If-Match"] = f'"{expected}"'
        call = time.monotonic()
        tries = 1 if self.pinned else self._dice.choice([1, 4])
        action: Action = Unknown(value, expected)
        is_lost = False
        for _ in range(tries):
            try:
                status, body = self._ask("POST", "/v1/jobs", job(key, value), headers)
            except NotDone:
                continue
            except Lost:
                is_lost = True
                continue
            if status == 412:
                assert expected is not None
                action = Refused(expected)
            else:
                action = Write(value, body["version"], expected)
                self._seen[key] = body["version"]
            break
        else:
            if not is_lost:
                self.counts["not done"] += 1
                return
        self._note(key, action, call)
        if isinstance(action, Write) and self._dice.random() < AGAIN:
            self._write_again(key, headers, action)

    def _write_again(self, key: str, headers: Json, done: Write) -> None:
        """Asked once more with its key, it does not happen again, and is answered the same."""
        try:
            status, body = self._ask("POST", "/v1/jobs", job(key, done.value), headers)
        except (NotDone, Lost):
            return
        self.counts["again"] += 1
        if status == 412 or body["version"] != done.version:
            self.wrong.append(
                f"client {self.number} at {self._at.name}: {done} was answered {status} {body} when "
                "asked again with its key"
            )

    def _note(self, key: str, action: Action, call: float) -> None:
        self.history.append(Operation(self.number, key, action, call, time.monotonic()))
        self.counts[type(action).__name__.lower()] += 1

    # One request

    def _ask(self, method: str, path: str, body: bytes | None, headers: Json) -> tuple[int, Json]:
        """Raises NotDone, Lost (and then asks another node next time), Unexpected."""
        connection, self._kept = self._kept, None
        try:
            if connection is None:
                connection = self._at.connection(ATTEMPT_S)
                connection.connect()
        except OSError as error:
            self._move()
            raise NotDone(str(error)) from None
        try:
            status, answer, sent = connection.ask(method, path, body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            self._move()
            raise Lost(str(error)) from None
        self._kept = connection
        if status in (_NOT_DONE, _UNKNOWN):
            self._move()
            raise (NotDone if status == _NOT_DONE else Lost)(answer.get("detail", ""))
        allowed = (200, 404) if method == "GET" else (200, 201, 412)
        if status not in allowed:
            raise Unexpected(f"{method} {path} at {self._at.name}: {status} {answer}")
        self._index = max(self._index, int(sent["X-Cube-Index"]))
        return status, answer

    def _move(self) -> None:
        self._hang_up()
        agents = self.agents()
        if self.pinned is None and agents:
            self._at = self._dice.choice(agents)
        self._over.wait(0.05)  # who is refused at once must not ask a thousand times a second

    def _hang_up(self) -> None:
        connection, self._kept = self._kept, None
        if connection is not None:
            connection.close()


class Workload:
    """CLIENTS clients at work on `keys` between start() and stop(). Half of them go to whichever node
    answers, the others each stay with one; when the members change, all go to those that run."""

    def __init__(
        self, cluster: FaultCluster, keys: list[str], seed: int, *, members_change: bool = False
    ) -> None:
        agents = list(cluster.agents)
        choose = cluster.running if members_change else lambda: agents
        self._clients = []
        for number in range(CLIENTS):
            is_pinned = number % 2 and not members_change
            pinned = agents[number // 2 % len(agents)] if is_pinned else None
            self._clients.append(Client(number, choose, keys, seed, pinned))

    def start(self) -> None:
        for client in self._clients:
            client.start()

    def stop(self) -> None:
        for client in self._clients:
            client.finish()
        for client in self._clients:
            client.join()

    @property
    def history(self) -> list[Operation]:
        return [operation for client in self._clients for operation in list(client.history)]

    @property
    def counts(self) -> Counter[str]:
        return sum((client.counts for client in self._clients), Counter())

    @property
    def wrong(self) -> list[str]:
        return [what for client in self._clients for what in client.wrong]

    def acknowledged(self) -> int:
        return self.counts["write"]
