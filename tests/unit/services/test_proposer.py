"""Once, whatever happens on the way; and an honest answer when it cannot be known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cube.model import commands as c
from cube.model.codec import decode_command, encode_command
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import CommandId, JobId
from cube.model.outcome import Done, JobAccepted, Rejected, RejectReason
from cube.ports.log import ENTRY_BYTES_MAX, Committed, LogStatus, Role
from cube.services import proposer as proposer_module
from cube.services.proposer import PROPOSALS_MAX, RETRY_PAUSE_MS, Proposer
from cube.services.state_feed import AppliedEntry, StateFeed
from tests.builders import job
from tests.fake_log import FakeLog, FakeLogCluster
from tests.virtual_time import VirtualClock, run_virtual

TIMEOUT_MS = 5_000
STATUS = LogStatus(Role.VOTER, 2, "a:1", 0, 0, (), True, True)
Answer = Callable[[bytes], Coroutine[Any, Any, Committed]]


async def unavailable(_data: bytes) -> Committed:
    raise Unavailable("no leader is known")


async def unknown(_data: bytes) -> Committed:
    raise OutcomeUnknown("the leader was lost")


async def done(_data: bytes) -> Committed:
    return Committed(7, 1, AppliedEntry(Done(), 7))


async def silence(_data: bytes) -> Committed:
    await asyncio.sleep(3600)
    raise AssertionError


class ScriptedLog:
    """A Log of which only propose() is there; each call gets the next answer, the last for ever."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[int, CommandId, int]] = []  # at ms, command, timeout

    async def propose(self, data: bytes, timeout_ms: int) -> Committed:
        at_ms = VirtualClock().monotonic_ms()
        self.asked.append((at_ms, decode_command(data).id, timeout_ms))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await answer(data)
        except TimeoutError:
            raise OutcomeUnknown("no answer in time") from None


def make(*answers: Answer) -> tuple[Proposer, ScriptedLog]:
    log = ScriptedLog(*answers)
    numbers = iter(range(10_000))
    made = Proposer(log, VirtualClock(), TIMEOUT_MS, lambda: f"id{next(numbers)}")  # type: ignore[arg-type]
    return made, log


def test_what_is_known_at_once_comes_back_at_once() -> None:
    async def main() -> None:
        proposer, log = make(done)
        proposed = await proposer.propose(c.Noop())
        assert (proposed.outcome, proposed.index) == (Done(), 7)
        assert log.asked == [(0, "id0", TIMEOUT_MS)]

    run_virtual(main())


@pytest.mark.parametrize("failure", [unknown, unavailable])
def test_a_retry_has_the_same_id_and_what_is_left_of_the_time(failure: Answer) -> None:
    async def main() -> None:
        proposer, log = make(failure, failure, done)
        await proposer.propose(c.Noop())
        times = [at for at, _, _ in log.asked]
        assert times == [0, RETRY_PAUSE_MS, 2 * RETRY_PAUSE_MS]
        assert {id_ for _, id_, _ in log.asked} == {"id0"}
        assert [left for _, _, left in log.asked] == [TIMEOUT_MS - at for at in times]

    run_virtual(main())


def test_each_command_has_an_id_of_its_own_unless_given_one() -> None:
    async def main() -> None:
        proposer, log = make(done)
        await proposer.propose(c.Noop())
        await proposer.propose(c.Noop())
        await proposer.propose(c.Noop(), command_id=CommandId("mine"))
        assert [id_ for _, id_, _ in log.asked] == ["id0", "id1", "mine"]

    run_virtual(main())


def test_a_new_leader_is_asked_at_once() -> None:
    async def main() -> None:
        proposer, log = make(unavailable, done)
        asyncio.get_running_loop().call_later(0.007, proposer.on_log_status, STATUS)
        await proposer.propose(c.Noop())
        assert [at for at, _, _ in log.asked] == [0, 7]

    run_virtual(main())


def test_a_leader_that_came_during_the_attempt_is_asked_at_once() -> None:
    async def main() -> None:
        async def slow_failure(_data: bytes) -> Committed:
            await asyncio.sleep(0.010)
            raise OutcomeUnknown("the leader was lost")

        proposer, log = make(slow_failure, done)
        asyncio.get_running_loop().call_later(0.005, proposer.on_log_status, STATUS)
        await proposer.propose(c.Noop())
        assert [at for at, _, _ in log.asked] == [0, 10]

    run_virtual(main())


@pytest.mark.parametrize(
    ("answers", "raised"),
    [
        ((unavailable,), Unavailable),
        ((unknown,), OutcomeUnknown),
        ((silence,), OutcomeUnknown),
        # What was unknown once stays so: a later refusal says nothing about the first attempt.
        ((unknown, unavailable), OutcomeUnknown),
        ((unavailable, unknown, unavailable), OutcomeUnknown),
    ],
)
def test_at_the_deadline_it_is_said_what_is_known(
    answers: tuple[Answer, ...], raised: type[Exception]
) -> None:
    async def main() -> None:
        proposer, log = make(*answers)
        with pytest.raises(raised):
            await proposer.propose(c.Noop())
        now_ms = VirtualClock().monotonic_ms()
        assert TIMEOUT_MS - 2 * RETRY_PAUSE_MS <= now_ms <= TIMEOUT_MS
        assert len(log.asked) <= TIMEOUT_MS // RETRY_PAUSE_MS

    run_virtual(main())


def test_the_caller_may_set_the_deadline() -> None:
    async def main() -> None:
        proposer, _ = make(silence)
        with pytest.raises(OutcomeUnknown):
            await proposer.propose(c.Noop(), timeout_ms=300)
        assert VirtualClock().monotonic_ms() == 300

    run_virtual(main())


def test_what_fits_no_entry_is_refused_without_asking() -> None:
    async def main() -> None:
        proposer, log = make(done)
        body = c.StopJob("x" * ENTRY_BYTES_MAX)
        assert len(encode_command(c.Command(CommandId("k"), body))) > ENTRY_BYTES_MAX
        proposed = await proposer.propose(body)
        assert isinstance(proposed.outcome, Rejected)
        assert proposed.outcome.reason is RejectReason.LIMIT
        assert log.asked == []

    run_virtual(main())


def test_no_more_than_so_many_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PROPOSALS_MAX >= 256  # what the API lets in
    monkeypatch.setattr(proposer_module, "PROPOSALS_MAX", 3)

    async def main() -> None:
        proposer, _ = make(silence)
        waiting = [asyncio.create_task(proposer.propose(c.Noop())) for _ in range(3)]
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="3 writes"):
            await proposer.propose(c.Noop())
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        with pytest.raises(OutcomeUnknown):  # there is room again, and silence
            await proposer.propose(c.Noop(), timeout_ms=100)

    run_virtual(main())


def test_a_lost_outcome_happens_once() -> None:
    """Against a log that has committed what its proposer was not told of."""

    async def main() -> None:
        cluster, feed = FakeLogCluster(), StateFeed()
        feed.open(asyncio.get_running_loop())
        log = FakeLog("a:1", cluster, feed)
        await log.start()
        proposer = Proposer(log, VirtualClock(), TIMEOUT_MS, lambda: "same")
        cluster.outcomes_to_lose = 2
        proposed = await proposer.propose(c.SubmitJob(job("web"), JobId("j")))
        assert isinstance(proposed.outcome, JobAccepted)
        assert (proposed.outcome.version, proposed.outcome.created) == (1, True)
        data_entries = [entry for entry in cluster.entries if entry.data is not None]
        assert len(data_entries) == 3
        assert proposed.index == data_entries[0].index

    run_virtual(main())
