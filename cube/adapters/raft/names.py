"""Where members are, by name, without waiting for it: asking for a name can take many seconds, and a
Raft thread that waits for a name server misses its heartbeats."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable

from cube.adapters.raft.library import monotonic
from cube.adapters.raft.sockets import Place, resolve, split_address

# At once; the others wait. A name server that is silent holds each for a while.
LOOKUPS_MAX = 8
# Whoever asked and has not come back for the answer by then does not want it any more.
ANSWER_S_MAX = 5.0

Found = tuple[socket.AddressFamily, Place]


class Names:
    """Belongs to the Raft thread. Addresses that are numbers are found at once; names are asked for
    anew each time, on a thread of their own, as they may move."""

    def __init__(self, ask: Callable[[str], Found] = resolve) -> None:
        self._ask = ask
        # Each is empty until it is answered: (when, what).
        self._asking: dict[str, list[tuple[float, Found | OSError]]] = {}

    def find(self, address: str) -> Found | None:
        """Where host:port is; None while that is being asked, or has to wait: ask again soon.
        Raises OSError."""
        host, port = split_address(address)
        try:
            version = ipaddress.ip_address(host).version
        except ValueError:
            return self._find_name(address)
        return socket.AF_INET if version == 4 else socket.AF_INET6, (host, port)

    def _find_name(self, address: str) -> Found | None:
        answers = self._asking.get(address)
        if answers is None:
            self._forget_unwanted()
            if len(self._asking) < LOOKUPS_MAX:
                answers = self._asking[address] = []
                arguments = (address, answers)
                threading.Thread(target=self._look_up, args=arguments, daemon=True).start()
            return None
        if not answers:
            return None
        del self._asking[address]
        _, answer = answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _forget_unwanted(self) -> None:
        now = monotonic()
        for address, answers in list(self._asking.items()):
            if answers and now - answers[0][0] > ANSWER_S_MAX:
                del self._asking[address]

    def _look_up(self, address: str, answers: list[tuple[float, Found | OSError]]) -> None:
        """On the thread of its own."""
        try:
            answer: Found | OSError = self._ask(address)
        except OSError as error:
            answer = error
        answers.append((monotonic(), answer))
