"""The node's lease file: when the last acknowledged heartbeat was sent. The agent writes it; the
supervisors of tasks that need a lease read it, so that they end also when the agent is dead, and so does
the next agent. Written over in place, at one length: that needs no room on a full disk.

Stdlib only: supervisors import it (see supervisor.py).
"""

from __future__ import annotations

import os

from cube.adapters.process.host import boot_id, read_text
from cube.adapters.process.wire import Order, first, write_file

FILE = "lease"  # below the data directory
_DIGITS = 20  # of milliseconds since boot
# An agent that lives stops the task itself, at the lease's end. After this long, or half of the
# stop_timeout, it is taken for dead: a command that takes a second signal ill gets none too soon.
AGENT_FIRST_MS = 1000
KILL_AGAIN_MS = 50  # until it has ended


def write_lease(path: str, sent_ms: int) -> None:
    """Raises OSError."""
    write_file(path, f"{boot_id()} {sent_ms:0{_DIGITS}d}\n".encode(), os.O_CREAT)


def read_lease(path: str) -> int | None:
    """On this host's monotonic clock. None: there is none of this boot, or it cannot be read."""
    boot, _, sent = read_text(path).partition("\n")[0].partition(" ")
    if boot != boot_id() or len(sent) != _DIGITS or not sent.isdigit():
        return None
    return int(sent)


class LeaseWatch:
    """When a supervisor ends its task for want of a lease. Once begun, that is not taken back."""

    def __init__(self, order: Order) -> None:
        self._file = os.fsdecode(order["lease_file"][0])
        self._from_ms = int(first(order, "leased_from_ms"))
        self._lost_after_ms = int(first(order, "lost_after_ms"))
        self._stop_timeout_ms = int(first(order, "stop_timeout_ms"))
        self._is_stopping = False

    @property
    def _end_ms(self) -> int:
        return self._from_ms + self._lost_after_ms

    def due_ms(self, now_ms: int) -> int:
        """How long from now until the next look()."""
        wait_ms = self._stop_timeout_ms
        if not self._is_stopping:
            wait_ms = min(AGENT_FIRST_MS, wait_ms // 2)
        left_ms = self._end_ms + wait_ms - now_ms
        return max(left_ms, KILL_AGAIN_MS if self._is_stopping else 0)

    def look(self, now_ms: int) -> str:
        """`stop` (once) or `kill` when it is time for that, else nothing."""
        if self._is_stopping:
            return "kill" if now_ms >= self._end_ms + self._stop_timeout_ms else ""
        if self.due_ms(now_ms) > 0:
            return ""
        self._from_ms = max(self._from_ms, read_lease(self._file) or 0)
        if self.due_ms(now_ms) > 0:
            return ""
        self._is_stopping = True
        return "stop"
