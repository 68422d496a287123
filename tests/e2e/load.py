"""Clients of one service, who look up where it answers and ask there, all the time."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

from tests.e2e.harness import TestCluster

CLIENTS = 4
LOOKUP_S = 0.2  # an answer to a lookup is used for so long
PAUSE_S = 0.03  # of each client between two requests: the machine has other things to do
TIMEOUT_S = 5.0


class Load:
    """While it is entered. `requests`, `failures`: of the service, all answers but 200 are failures.
    `lowest`: the fewest endpoints that a lookup found. Each client goes through all endpoints, and
    looks up at any node, never an older state than it has seen (`min_index`), as `cube` does."""

    def __init__(self, cluster: TestCluster, service: str, path: str = "/") -> None:
        self.requests = 0
        self.failures: list[str] = []
        self.lowest = 0
        self.by_endpoint: Counter[str] = Counter()
        self._cluster = cluster
        self._service = service
        self._path = path
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(CLIENTS)
        ]

    def __enter__(self) -> Load:
        self.lowest = len(self._look_up(0, 0)[0])
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def check(self, lowest: int) -> None:
        """No request has failed, and never were fewer endpoints known than `lowest`."""
        assert self.failures == [], f"{len(self.failures)} of {self.requests}: {self.failures[:5]}"
        assert self.requests > 0, "nobody asked"
        assert self.lowest >= lowest, f"only {self.lowest} endpoints were there"

    def _run(self, number: int) -> None:
        index, endpoints, looked_up_at = 0, [""], -LOOKUP_S
        for turn in itertools.count(number):
            if self._over.wait(PAUSE_S):
                return
            if time.monotonic() - looked_up_at >= LOOKUP_S:
                looked_up_at = time.monotonic()
                endpoints, index = self._look_up(turn, index)
                with self._lock:
                    self.lowest = min(self.lowest, len(endpoints))
            if endpoints:
                self._ask(endpoints[turn % len(endpoints)])

    def _look_up(self, turn: int, index: int) -> tuple[list[str], int]:
        """Addresses, and the index at which they were true. Nodes that do not answer are passed by."""
        while True:
            nodes = self._cluster.running()
            node = nodes[turn % len(nodes)]
            turn += 1
            url = f"http://{node.address}/v1/services/{self._service}?min_index={index}"
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                    found = [endpoint["address"] for endpoint in json.load(answer)["endpoints"]]
                    return found, int(answer.headers["X-Cube-Index"])
            except (OSError, http.client.HTTPException) as error:
                if self._over.wait(0.02):
                    return [], index
                if isinstance(error, urllib.error.HTTPError) and error.code not in (503, 504):
                    raise

    def _ask(self, address: str) -> None:
        began = time.monotonic()
        try:
            with urllib.request.urlopen(
                f"http://{address}{self._path}", timeout=TIMEOUT_S
            ) as answer:
                answer.read()
            failure = ""
        except (OSError, http.client.HTTPException) as error:
            failure = f"{address} after {time.monotonic() - began:.2f} s: {error!r}"
        with self._lock:
            self.requests += 1
            self.by_endpoint[address] += 1
            if failure:
                self.failures.append(failure)
