"""Which packets were here before: a window per sender, and a bound that outlives a restart.

A sender numbers its packets; the epoch counts its own starts. Of one epoch, each number is taken
once; of older epochs, none. `bounds()` is what the shell keeps on disk: it promises never to take
again what is at or below it. It lies RESERVE ahead of what was taken, so that it is written seldom;
after a restart the numbers in between are refused, fresh or not. A sender that hears of its peer's
new epoch therefore jumps RESERVE ahead (see Numbering), and is understood at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from cube.model.errors import BadPacket

WINDOW = 1_024  # packets of one sender that may overtake each other
RESERVE = 4_096  # at three packets a second a bound lasts twenty minutes
SENDERS_MAX = 4_096  # as cube.gossip.packets.MEMBERS_MAX; the longest silent one is forgotten
NUMBER_MAX = (1 << 64) - 1
_ALL = (1 << WINDOW) - 1

Bound = tuple[int, int]  # epoch, highest number that may have been taken in it


class StalePacket(BadPacket):
    """Genuine, but maybe not fresh: its sender should hear from us, and will be understood then."""


class _Window:
    """`seen`: bit i says that `top - i` was taken."""

    __slots__ = ("bound", "epoch", "seen", "top")

    def __init__(self, epoch: int, top: int, seen: int, bound: int) -> None:
        self.epoch = epoch
        self.top = top
        self.seen = seen
        self.bound = bound

    def take(self, number: int) -> None:
        """Raises StalePacket for what was taken, or may have been."""
        ahead = number - self.top
        if ahead > 0:
            self.seen = ((self.seen << ahead) & _ALL) | 1 if ahead < WINDOW else 1
            self.top = number
            return
        bit = 1 << -ahead if -ahead < WINDOW else 0
        if not bit or self.seen & bit:
            raise StalePacket("a packet that was here before")
        self.seen |= bit


class Replay:
    """Memory: at most SENDERS_MAX windows of some 300 bytes."""

    def __init__(self, bounds: Mapping[str, Bound]) -> None:
        """`bounds`: what the last run kept."""
        self._windows: OrderedDict[str, _Window] = OrderedDict(
            (sender, _Window(epoch, number, _ALL, number))
            for sender, (epoch, number) in list(bounds.items())[:SENDERS_MAX]
        )

    def take(self, sender: str, epoch: int, number: int) -> bool:
        """The packet is taken, never again. True when the sender has begun a new epoch. Raises
        StalePacket. Ask must_save next."""
        window = self._windows.get(sender)
        if window is None or epoch > window.epoch:
            if window is None and len(self._windows) >= SENDERS_MAX:
                self._windows.popitem(last=False)
            # A bound below the number: not kept yet.
            self._windows[sender] = _Window(epoch, number, 1, -1)
            self._windows.move_to_end(sender)
            return True
        if epoch < window.epoch:
            raise StalePacket("a packet from before its sender's last start")
        window.take(number)
        self._windows.move_to_end(sender)
        return False

    def must_save(self, sender: str) -> bool:
        """What was just taken is above what the disk knows."""
        window = self._windows[sender]
        return window.top > window.bound

    def bounds(self) -> dict[str, Bound]:
        """To be kept before the packet is acted on: the next bounds, which hold from now on."""
        for window in self._windows.values():
            window.bound = min(window.top + RESERVE, NUMBER_MAX)
        return {sender: (w.epoch, w.bound) for sender, w in self._windows.items()}

    def __len__(self) -> int:
        return len(self._windows)


class Numbering:
    """The numbers of this node's own packets, in this epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self._next = 0

    def next(self) -> int:
        self._next += 1
        return self._next

    def jump(self) -> None:
        """Beyond what a peer that has just started may have kept as its bound for us."""
        self._next += RESERVE
