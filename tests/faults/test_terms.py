"""Who leads, and in which term, while a minority is away: on five hosts."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.harness import wait_for
from tests.faults.cluster import Agent, FaultCluster, Json
from tests.faults.nemeses import Nemesis
from tests.faults.registers import job

pytestmark = [pytest.mark.e2e, pytest.mark.root]

AWAY_S = 2.0  # many an election timeout: who would stand has stood
JSON = {"Content-Type": "application/json"}


@contextlib.contextmanager
def stopped(_nemesis: Nemesis, agents: list[Agent]) -> Iterator[None]:
    for agent in agents:
        agent.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for agent in agents:
            agent.signal(signal.SIGCONT)


Away = Callable[[Nemesis, list[Agent]], contextlib.AbstractContextManager[None]]
AWAYS: dict[str, Away] = {
    "stopped": stopped,
    "isolated": lambda nemesis, agents: nemesis.isolate(agents),
    "deaf": lambda nemesis, agents: nemesis.cut("deaf", nemesis.into(agents)),
    "mute": lambda nemesis, agents: nemesis.cut("mute", nemesis.out_of(agents)),
}


def term_of(agents: list[Agent]) -> int:
    """The term in which all of them follow one leader."""
    found: set[int] = set()

    def agreed() -> bool:
        statuses = [agent.try_get("/v1/status") for agent in agents]
        good = [status for status in statuses if status and status["quorum"] and status["leader"]]
        found.clear()
        found.update(status["term"] for status in good)
        leaders = {status["leader"]["id"] for status in good}
        return len(good) == len(agents) and len(found) == len(leaders) == 1

    wait_for("one leader, one term", agreed)
    return found.pop()


@pytest.mark.parametrize("how", AWAYS)
def test_a_minority_that_is_away_never_raises_the_term(five: FaultCluster, how: str) -> None:
    nemesis = Nemesis(five, random.Random(how), 0.0)
    leader = five.leader()
    minority = [agent for agent in five.agents if agent is not leader][:2]
    rest = [agent for agent in five.agents if agent not in minority]
    before = term_of(five.agents)
    with AWAYS[how](nemesis, minority):
        time.sleep(AWAY_S)
        assert term_of(rest) == before
        assert leads(leader)
    assert term_of(five.agents) == before
    assert five.leader() is leader


def leads(agent: Agent) -> bool:
    status = agent.try_get("/v1/status")
    return status is not None and status["role"] == "leader"


@pytest.mark.parametrize("how", ["stopped", "isolated"])
def test_a_leader_that_returns_follows_in_the_term_of_the_others(
    five: FaultCluster, how: str
) -> None:
    nemesis = Nemesis(five, random.Random(how), 0.0)
    old = five.leader()
    rest = [agent for agent in five.agents if agent is not old]
    before = term_of(five.agents)
    with AWAYS[how](nemesis, [old]):
        wait_for("another one leads", lambda: any(leads(agent) for agent in rest))
        during = term_of(rest)
        assert during > before
        time.sleep(AWAY_S)
        assert term_of(rest) == during
    assert term_of(five.agents) == during


def test_a_leader_that_is_cut_off_accepts_nothing(five: FaultCluster) -> None:
    """No write that it is sent after the cut is ever acknowledged. Once it has noticed, it says at
    once that nothing was done, and that is true."""
    nemesis = Nemesis(five, random.Random(1), 0.0)
    old = five.leader()
    answers: list[tuple[str, int, Json]] = []

    def write() -> tuple[int, Json]:
        name = f"cut-{len(answers)}"
        with contextlib.closing(old.connection(10)) as connection:
            status, body, _ = connection.ask("POST", "/v1/jobs", job(name, "x"), JSON)
        answers.append((name, status, body))
        return status, body

    assert write()[0] == 201
    with nemesis.isolate([old]):
        cut_at = time.monotonic()

        def has_noticed() -> bool:
            write()
            return not leads(old)

        wait_for("it leads no more", has_noticed)
        noticed_s = time.monotonic() - cut_at
        refused = len(answers)
        for _ in range(2):
            assert write()[0] == 503
        told = old.try_get("/v1/status")
        assert told is not None
        assert not told["quorum"]
        with contextlib.closing(old.connection(10)) as connection:
            status, _, _ = connection.ask("GET", "/v1/jobs/cut-0?consistent=1")
            assert status == 503  # nor does it vouch for what it reads
    print(f"noticed after {noticed_s:.2f} s, with one write of at most a second in it")
    assert {status for _, status, _ in answers[1:]} <= {503, 504}, answers
    term_of(five.agents)
    with contextlib.closing(old.connection(10)) as connection:
        for name, _, _ in answers[refused:]:
            assert connection.ask("GET", f"/v1/jobs/{name}?consistent=1")[0] == 404
