"""Is a history of a register linearizable? Wing and Gong's search, with Lowe's memory of what was
tried already.

A register is a job of the API: a value and a version that counts its changes; version 0 is a job
that does not exist. Each key is checked for itself, which is enough: a history is linearizable when
the part of every key is.

An operation without a return has an unknown outcome: it may have taken effect at any time since its
call, or never. One that certainly did nothing does not belong into a history.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

STEPS_MAX = 2_000_000  # of the search, for one key: some seconds; what is harder is undecided
SHOWN_MAX = 12  # operations around a violation that are told


@dataclass(frozen=True)
class Register:
    version: int = 0
    value: str = ""


@dataclass(frozen=True)
class Read:
    """It answered this."""

    seen: Register

    def after(self, now: Register) -> Register | None:
        """The register afterwards, or None: it cannot have answered so."""
        return now if now == self.seen else None


@dataclass(frozen=True)
class Write:
    """It was acknowledged as this version. `expected`: it was to happen at that version only."""

    value: str
    version: int
    expected: int | None = None

    def after(self, now: Register) -> Register | None:
        fits = self.expected in (None, now.version) and self.version == now.version + 1
        return Register(self.version, self.value) if fits else None


@dataclass(frozen=True)
class Refused:
    """A write at `expected` that was answered: not at that version."""

    expected: int

    def after(self, now: Register) -> Register | None:
        return now if now.version != self.expected else None


@dataclass(frozen=True)
class Unknown:
    """A write of which nobody knows whether it happened."""

    value: str
    expected: int | None = None

    def after(self, now: Register) -> Register | None:
        if self.expected not in (None, now.version):
            return now
        return Register(now.version + 1, self.value)


Action = Read | Write | Refused | Unknown


@dataclass(frozen=True)
class Operation:
    """`client` did `action` to `key` between `call` and `end`, on one clock."""

    client: int
    key: str
    action: Action
    call: float
    end: float

    def __str__(self) -> str:
        return f"[{self.call:.4f} {self.end:.4f}] client {self.client} {self.action}"


class Verdict(enum.Enum):
    GOOD = "linearizable"
    BAD = "not linearizable"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Finding:
    """`why` tells of a violation: the operation that no order explains, and those around it."""

    key: str
    verdict: Verdict
    steps: int = 0
    why: str = ""


@dataclass(eq=False)
class _Event:
    """The call or the return of an operation, in a list of those not yet placed in the order."""

    number: int  # of the operation
    is_call: bool
    before: _Event
    after: _Event
    partner: _Event  # a call's return, and the other way round

    @staticmethod
    def new(number: int, *, is_call: bool) -> _Event:
        event = object.__new__(_Event)
        event.number, event.is_call = number, is_call
        event.before = event.after = event.partner = event
        return event

    def take_out(self) -> None:
        self.before.after, self.after.before = self.after, self.before

    def put_back(self) -> None:
        self.before.after = self.after.before = self


def check(history: Iterable[Operation], steps_max: int = STEPS_MAX) -> list[Finding]:
    """One finding for each key, in order of key."""
    by_key: dict[str, list[Operation]] = {}
    for operation in history:
        by_key.setdefault(operation.key, []).append(operation)
    return [check_key(key, by_key[key], steps_max) for key in sorted(by_key)]


def check_key(key: str, operations: list[Operation], steps_max: int = STEPS_MAX) -> Finding:
    """Whether some order explains all answers: each operation between its call and its return, each
    answer what a register would have said. The register does not exist at first."""
    facts = _Facts(operations)
    if facts.contradiction:
        return Finding(key, Verdict.BAD, 0, facts.contradiction)
    search = _Search(operations, facts)
    try:
        is_good = search.run(steps_max)
    except TimeoutError:
        return Finding(key, Verdict.UNDECIDED, search.steps)
    why = "" if is_good else _tell(operations, search.stuck)
    return Finding(key, Verdict.GOOD if is_good else Verdict.BAD, search.steps, why)


class _Search:
    """An order that grows from the front, one operation at a time, and shrinks where it leads
    nowhere. `stuck`: the operation at which the longest one ended."""

    def __init__(self, operations: list[Operation], facts: _Facts) -> None:
        self.steps = 0
        self.stuck = -1
        self._operations = operations
        self._facts = facts
        self._head = _events(operations)
        self._missing = sum(not isinstance(one.action, Unknown) for one in operations)
        self._fewest = self._missing + 1
        self._now = Register()
        self._placed = 0  # a bit for each operation
        self._path: list[tuple[_Event, Register]] = []
        self._tried: set[tuple[int, int]] = set()

    def run(self, steps_max: int) -> bool:
        """Raises TimeoutError beyond `steps_max`."""
        event = self._settle()
        while self._missing:
            self.steps += 1
            if self.steps > steps_max:
                raise TimeoutError
            if event.is_call:
                then = self._after(event)
                if then is not None and self._is_new(event, then):
                    self._place(event, then)
                    event = self._settle()
                else:
                    event = event.after
                continue
            # The return of an operation that has found no place before it: not this way.
            if self._missing < self._fewest:
                self._fewest, self.stuck = self._missing, event.number
            choice = self._back()
            if choice is None:
                return False
            event = choice.after
        return True

    def _settle(self) -> _Event:
        """What could come next and changes nothing has come: placed later it would help nobody.
        Returns where to go on."""
        event = self._head.after
        while event.is_call:
            self.steps += 1
            if self._after(event) == self._now:
                self._place(event, self._now)
            event = event.after
        return self._head.after

    def _after(self, event: _Event) -> Register | None:
        """The register when this is placed next; None when it does not fit."""
        action = self._operations[event.number].action
        then = action.after(self._now)
        if isinstance(action, Unknown) and not self._facts.allow(self._now, then):
            return None
        return then

    def _is_new(self, event: _Event, then: Register) -> bool:
        config = ((self._placed | 1 << event.number) & ~self._facts.alike, then.version)
        is_new = config not in self._tried
        self._tried.add(config)
        return is_new

    def _place(self, event: _Event, then: Register) -> None:
        self._path.append((event, self._now))
        self._now = then
        self._placed |= 1 << event.number
        self._missing -= not isinstance(self._operations[event.number].action, Unknown)
        event.take_out()
        event.partner.take_out()

    def _back(self) -> _Event | None:
        """The last operation that changed something is not placed, nor any after it."""
        while self._path:
            event, before = self._path.pop()
            is_choice, self._now = self._now != before, before
            self._placed &= ~(1 << event.number)
            self._missing += not isinstance(self._operations[event.number].action, Unknown)
            event.partner.put_back()
            event.put_back()
            if is_choice:
                return event
        return None


class _Facts:
    """What the answers say outright. Every version is made by one write and has one value: this is
    what keeps the search short where many outcomes are unknown."""

    def __init__(self, operations: list[Operation]) -> None:
        self.contradiction = ""
        self._made_by: dict[int, Operation] = {}
        self._told_by: dict[int, tuple[str, Operation]] = (
            {0: ("", operations[0])} if operations else {}
        )
        for operation in operations:
            action = operation.action
            if isinstance(action, Write):
                other = self._made_by.setdefault(action.version, operation)
                if other is not operation:
                    self._contradict("two writes made one version", other, operation)
                self._tell(action.version, action.value, operation)
            elif isinstance(action, Read):
                self._tell(action.seen.version, action.seen.value, operation)
        values = {value for value, _ in self._told_by.values()}
        # Bits of the unknown writes that are all the same to everybody: any version, a value that
        # nobody saw. Once called they stay possible, so it only matters how many have happened.
        self.alike = sum(
            1 << number
            for number, operation in enumerate(operations)
            if isinstance(operation.action, Unknown)
            and operation.action.expected is None
            and operation.action.value not in values
        )

    def _tell(self, version: int, value: str, operation: Operation) -> None:
        told, other = self._told_by.setdefault(version, (value, operation))
        if told != value:
            self._contradict("one version had two values", other, operation)

    def _contradict(self, what: str, one: Operation, other: Operation) -> None:
        self.contradiction = (
            self.contradiction or f"no order explains that {what}:\n  {one}\n  {other}"
        )

    def allow(self, now: Register, then: Register | None) -> bool:
        """A write of unknown outcome may have made `then` of `now`. One that changes nothing need
        not be placed at all."""
        if then is None or then == now or then.version in self._made_by:
            return False
        told = self._told_by.get(then.version)
        return told is None or told[0] == then.value


def _events(operations: list[Operation]) -> _Event:
    """The head of the list of calls and returns in order of time. At the same moment calls come
    first: then the two may have been in either order."""
    timed: list[tuple[float, int, _Event]] = []
    for number, operation in enumerate(operations):
        call, end = _Event.new(number, is_call=True), _Event.new(number, is_call=False)
        call.partner, end.partner = end, call
        is_unknown = isinstance(operation.action, Unknown)
        timed.append((operation.call, 0, call))
        timed.append((float("inf") if is_unknown else operation.end, 1, end))
    timed.sort(key=lambda item: item[:2])
    head = last = _Event.new(-1, is_call=False)
    for _, _, event in timed:
        last.after, event.before = event, last
        last = event
    last.after, head.before = head, last
    return head


def _tell(operations: list[Operation], stuck: int) -> str:
    one = operations[stuck]
    near = sorted(operations, key=lambda op: abs(op.end - one.end))[:SHOWN_MAX]
    lines = [f"no order explains {one}; around it:"]
    lines += [f"  {operation}" for operation in sorted(near, key=lambda op: op.call)]
    return "\n".join(lines)
