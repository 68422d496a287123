"""Any cluster, interrupted at every step, nodes dying and returning between steps: the voters it
has always suffice as long as they did, and it ends at its target when enough nodes live."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cube.scheduler.voters import (
    LIVE_MS,
    AddVoter,
    Decision,
    Member,
    RemoveVoter,
    Seen,
    Step,
    TransferLeadership,
    decide,
    has_quorum,
    may_remove,
    target,
)

GRACE_MS = 10_000
STEPS_MAX = 60  # far more than any change of the voters needs


class World:
    """The truth, and what a leader sees of it: who is down has been silent for some time."""

    def __init__(self, voters_max: int) -> None:
        self.voters_max = voters_max
        self.registered: set[str] = set()
        self.silent_ms: dict[str, int] = {}  # 0: it lives
        self.lags: dict[str, int] = {}
        self.voters: frozenset[str] = frozenset()
        self.leader: str | None = None

    def add(self, address: str) -> None:
        self.registered.add(address)
        self.silent_ms[address] = 0
        self.lags[address] = 0

    def is_up(self, address: str) -> bool:
        return self.silent_ms[address] == 0

    def elect(self) -> None:
        """The leader goes on while it can; else any live voter, by a majority."""
        live = sorted(v for v in self.voters if self.is_up(v))
        if 2 * len(live) <= len(self.voters):
            self.leader = None
        elif self.leader not in live:
            self.leader = live[0]

    @property
    def is_available(self) -> bool:
        return 2 * sum(self.is_up(v) for v in self.voters) > len(self.voters)

    def seen(self) -> Seen:
        assert self.leader is not None
        members = {
            address: Member(
                address=address,
                name=address,
                is_registered=address in self.registered,
                joined_at_ms=int(address),
                silent_ms=self.silent_ms[address],
                lag=self.lags[address] if self.is_up(address) else None,
            )
            for address in self.registered | self.voters
        }
        return Seen(
            leader=self.leader,
            voters=self.voters,
            members=members,
            voters_max=self.voters_max,
            dead_voter_grace_ms=GRACE_MS,
        )

    def decide(self) -> Decision:
        return decide(self.seen())

    def do(self, step: Step) -> None:
        match step:
            case AddVoter(address=address):
                assert address not in self.voters
                assert self.is_up(address)
                assert self.lags[address] == 0
                self.voters |= {address}
            case RemoveVoter(address=address):
                assert address in self.voters
                assert address != self.leader
                self.voters -= {address}
            case TransferLeadership():
                heirs = [v for v in self.voters & self.registered if self.is_up(v)]
                assert heirs
                self.leader = sorted(heirs)[0]

    def run(self) -> list[Step]:
        """Steps until there is nothing to do; each leaves a majority of live voters."""
        done: list[Step] = []
        while True:
            self.elect()
            if self.leader is None:
                return done
            step = self.decide().step
            if step is None:
                return done
            self.do(step)
            done.append(step)
            assert self.is_available, done
            assert len(done) <= STEPS_MAX, done


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Any state at all, reachable or not."""
    world = World(draw(st.sampled_from((1, 3, 5, 7))))
    for number in range(draw(st.integers(1, 9))):
        world.add(str(number))
    nodes = sorted(world.registered)
    world.voters = frozenset(draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=9)))
    for node in nodes:
        world.silent_ms[node] = draw(st.sampled_from((0, 0, 0, 500, LIVE_MS, 5_000, GRACE_MS)))
        world.lags[node] = draw(st.sampled_from((0, 0, 0, 0, 5_000)))
        if draw(st.integers(0, 5)) == 0 and len(world.registered) > 1:
            world.registered.discard(node)
    for voter in world.voters:  # nobody votes before it has the log
        world.lags[voter] = 0
    world.elect()
    return world


@given(worlds())
@settings(max_examples=600, deadline=None)
def test_no_step_costs_the_majority(world: World) -> None:
    if world.is_available:
        world.run()
        assert world.is_available


@given(worlds(), st.data())
@settings(max_examples=400, deadline=None)
def test_it_ends_at_its_target_when_enough_nodes_live(world: World, data: st.DataObject) -> None:
    """Also from the middle of an earlier change: whatever was interrupted is only another start."""
    if not world.is_available:
        return
    for _ in range(data.draw(st.integers(0, 3))):
        world.elect()
        step = world.decide().step if world.leader else None
        if step is not None:
            world.do(step)
    # Time passes: who is silent is dead now, learners that live catch up.
    for node, silent_ms in world.silent_ms.items():
        world.silent_ms[node] = GRACE_MS if silent_ms else 0
        world.lags[node] = 0
    world.run()
    wanted = target(len(world.registered), world.voters_max)
    live = {node for node in world.registered if world.is_up(node)}
    if len(live) >= wanted:
        assert len(world.voters) == wanted
        assert world.voters <= live
        assert wanted == 1 or world.decide().why == ""
    else:
        assert len(world.voters) <= max(wanted, len(live) + 1, 3)


EVENTS = st.tuples(
    st.sampled_from(
        ("kill", "kill", "return", "wait", "step", "step", "step", "join", "rm", "depose")
    ),
    st.integers(0, 8),
)


@given(st.sampled_from((1, 3, 5, 7)), st.lists(EVENTS, max_size=60))
@settings(max_examples=500, deadline=None)
def test_a_life_of_joins_deaths_returns_and_removals(
    voters_max: int, events: list[tuple[str, int]]
) -> None:
    """As long as deaths leave a majority of the voters, it never stops; no step is a death."""
    world = World(voters_max)
    world.add("0")
    world.voters = frozenset({"0"})
    for what, number in events:
        node = str(number)
        world.elect()
        assert world.leader is not None
        match what:
            case "join" if node not in world.silent_ms:
                world.add(node)
            case "kill" if node in world.silent_ms:
                world.silent_ms[node] = 1
                if not world.is_available:
                    world.silent_ms[node] = 0  # not survivable by any rule
            case "return" if node in world.silent_ms:
                world.silent_ms[node] = 0
            case "rm" if node in world.registered and not world.is_up(node):
                if may_remove(world.seen(), node) is None:
                    world.voters -= {node}
                    world.registered.discard(node)
            case "wait":
                for name, silent_ms in world.silent_ms.items():
                    world.silent_ms[name] = silent_ms + 6_000 if silent_ms else 0
            case "depose":
                live = [v for v in sorted(world.voters) if world.is_up(v)]
                world.leader = live[number % len(live)]
            case "step":
                step = world.decide().step
                if step is not None:
                    world.do(step)
            case _:
                pass
        assert world.is_available
        assert len(world.voters) <= voters_max + 1
    for node in world.silent_ms:
        world.silent_ms[node] = 0
    world.run()
    assert len(world.voters) == target(len(world.registered), voters_max)
    assert world.voters <= world.registered


@pytest.mark.parametrize(
    ("registered", "voters_max", "wanted"),
    [(0, 5, 1), (1, 5, 1), (2, 5, 1), (3, 5, 3), (4, 5, 3), (5, 5, 5), (6, 5, 5), (9, 5, 5),
     (6, 7, 5), (7, 7, 7), (9, 3, 3), (9, 1, 1)],
)  # fmt: skip
def test_the_target(registered: int, voters_max: int, wanted: int) -> None:
    assert target(registered, voters_max) == wanted


def test_has_quorum_counts_live_voters() -> None:
    world = World(5)
    for node in "012":
        world.add(node)
    world.voters = frozenset("012")
    world.elect()
    assert has_quorum(world.seen(), world.voters)
    seen = world.seen()
    silent = {a: msgspec.structs.replace(m, lag=None) for a, m in seen.members.items()}
    assert not has_quorum(msgspec.structs.replace(seen, members=silent), world.voters)
