"""What is applied is published: in order, across threads, and remembered for a while."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.codec import encode_command
from cube.model.errors import BadPacket
from cube.model.ids import CommandId, JobId, NodeId
from cube.model.outcome import JobAccepted, Rejected, RejectReason
from cube.services import state_feed
from cube.services.state_feed import StateFeed
from tests.builders import facts, job

NEWEST = 1 << 40  # above the number of any event: all of an entry was seen


class Writer:
    """Applies entries to a feed as a log would, on this thread or another."""

    def __init__(self, feed: StateFeed) -> None:
        self.feed = feed
        self.index = 0

    def apply(self, body: c.Body) -> state_feed.AppliedEntry:
        self.index += 1
        command = c.Command(CommandId(f"c{self.index}"), body)
        return self.feed.apply(self.index, 1, 1000 + self.index, encode_command(command))

    def job(self, name: str) -> state_feed.AppliedEntry:
        return self.apply(c.SubmitJob(job(name), JobId(f"id-{name}")))

    def plan_of_three(self) -> c.ApplyPlan:
        """For tasks of job a on node n1, which two entries have made."""
        self.apply(c.RegisterNode(facts("n1")))
        self.job("a")
        placement = c.GroupPlacement(JobId("id-a"), 1, "g", (0, 1, 2), (0, 0, 0))
        return c.ApplyPlan(1, "s", nodes=(NodeId("id-n1"),), placements=(placement,))


def opened() -> tuple[StateFeed, Writer]:
    feed = StateFeed()
    feed.open(asyncio.get_running_loop())
    return feed, Writer(feed)


async def settled() -> None:
    """Everything handed over so far is published."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def indexes(feed: StateFeed, index: int, number: int = NEWEST) -> list[int] | None:
    found = feed.events_since(index, number)
    return None if found is None else [entry.index for entry in found]


async def test_an_entry_is_applied_and_its_outcome_comes_back() -> None:
    feed, writer = opened()
    applied = writer.job("a")
    assert isinstance(applied.outcome, JobAccepted)
    assert (applied.index, feed.state.index, feed.state.term, feed.state.now_ms) == (1, 1, 1, 1001)


async def test_a_repetition_comes_back_with_the_index_of_the_first() -> None:
    feed, writer = opened()
    data = encode_command(c.Command(CommandId("same"), c.SubmitJob(job("a"), JobId("j"))))
    first = feed.apply(1, 1, 1, data)
    writer.index = 1
    writer.job("b")
    assert feed.apply(3, 1, 1, data) == first
    assert feed.state.index == 3


async def test_waiters_on_the_loop_see_what_another_thread_applies() -> None:
    feed, writer = opened()
    seen: list[int] = []

    async def follow() -> None:
        index = 0
        while index < 300:
            index = (await feed.changed(index)).index
            seen.append(index)

    follower = asyncio.create_task(follow())
    thread = threading.Thread(target=lambda: [writer.job(f"j{n}") for n in range(300)])
    thread.start()
    async with asyncio.timeout(20):
        await follower
    thread.join()
    assert seen == sorted(set(seen))
    await settled()
    assert indexes(feed, 0) == list(range(1, 301))


async def test_a_large_entry_waits_for_who_plans_and_others_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state_feed, "LARGE_PLACEMENTS", 3)
    feed, writer = opened()
    plan = writer.plan_of_three()
    begun = threading.Event()

    def apply() -> None:
        writer.job("b")
        begun.set()
        writer.apply(plan)

    thread = threading.Thread(target=apply)
    with feed.large_entries:
        thread.start()
        assert begun.wait(20)
        thread.join(0.05)  # long enough for the plan, if it did not wait
        assert feed.state.index == 3
    thread.join(20)
    assert len(feed.state.tasks) == 3


async def test_wait_index_ends_at_its_deadline() -> None:
    feed, writer = opened()
    assert await feed.wait_index(0, 1000)
    assert not await feed.wait_index(1, 5)
    waiting = asyncio.create_task(feed.wait_index(2, 20_000))
    writer.job("a")
    await settled()
    assert not waiting.done()
    writer.job("b")
    assert await waiting


async def test_events_are_published_a_turn_after_the_state() -> None:
    feed, writer = opened()
    writer.job("a")
    assert feed.state.index == 1
    assert indexes(feed, 0) == []
    await settled()
    assert indexes(feed, 0) == [1]


async def test_entries_without_events_are_not_remembered() -> None:
    feed, writer = opened()
    writer.apply(c.Noop())
    writer.job("a")
    writer.apply(c.StopJob("nope"))
    await settled()
    assert indexes(feed, 0) == [2]
    assert indexes(feed, 3) == []
    assert [entry.index for entry in feed.events_kept()] == [2]


async def test_where_an_entry_was_left_is_where_it_goes_on() -> None:
    feed, writer = opened()
    writer.apply(writer.plan_of_three())
    await settled()
    (published,) = feed.events_since(2, NEWEST) or []
    assert len(published.events) == 3
    for number in (0, 1):
        assert indexes(feed, 3, number) == [3]
    for number in (2, 3, NEWEST):
        assert indexes(feed, 3, number) == []


async def test_the_future_is_unknown() -> None:
    feed, writer = opened()
    writer.job("a")
    await settled()
    assert indexes(feed, 2) is None


async def test_what_is_forgotten_cannot_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_feed, "EVENTS_KEPT", 3)
    feed, writer = opened()
    for name in "abcde":
        writer.job(name)
    await settled()
    assert indexes(feed, 5) == []
    assert indexes(feed, 2) == [3, 4, 5]
    assert indexes(feed, 1) is None
    # Of the newest forgotten entry all events must have been seen, and there was one.
    assert indexes(feed, 2, 0) == [3, 4, 5]
    assert feed.events_since(2, -1) is None
    assert [entry.index for entry in feed.events_kept()] == [3, 4, 5]


async def test_memory_is_bounded_by_events_not_by_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry may have ten thousand events."""
    monkeypatch.setattr(state_feed, "EVENTS_KEPT", 10)
    feed, writer = opened()
    writer.apply(c.RegisterNode(facts("n1")))
    writer.job("a")
    found = feed.state.job_named("a")
    assert found is not None
    for turn in range(4):
        slots = tuple(range(4 * turn, 4 * turn + 4))
        placement = c.GroupPlacement(found.id, 1, "g", slots, (0,) * 4)
        body = c.ApplyPlan(1, f"s{turn}", nodes=(NodeId("id-n1"),), placements=(placement,))
        writer.apply(body)
    await settled()
    assert indexes(feed, 4) == [5, 6]
    assert indexes(feed, 3) is None
    kept = feed.events_since(4, NEWEST)
    assert kept is not None
    assert sum(len(entry.events) for entry in kept) <= 10


async def test_an_entry_larger_than_the_memory_is_forgotten_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state_feed, "EVENTS_KEPT", 0)
    feed, writer = opened()
    writer.job("a")
    await settled()
    assert indexes(feed, 0) is None
    assert indexes(feed, 1) == []


async def test_a_restored_state_cannot_say_how_it_came_about() -> None:
    feed, writer = opened()
    for name in "abc":
        writer.job(name)
    await settled()
    other, follower = opened()
    follower.job("a")
    other.load(b"".join(feed.dump()()), 3)
    follower.index = 3
    follower.job("d")
    await settled()
    assert other.state.index == 4
    assert indexes(other, 1) is None
    assert indexes(other, 3) == [4]
    # Whoever stopped within entry 3 may have missed the rest of it.
    assert indexes(other, 3, 0) is None


async def test_a_dump_is_of_the_moment_it_was_taken() -> None:
    feed, writer = opened()
    writer.job("a")
    encode = feed.dump()
    writer.job("b")
    other = StateFeed()
    other.load(b"".join(encode()), 1)
    assert other.state.index == 1
    assert other.state.job_named("b") is None


async def test_a_dump_that_says_more_than_its_index_is_refused() -> None:
    feed, writer = opened()
    writer.job("a")
    writer.job("b")
    other = StateFeed()
    with pytest.raises(BadPacket):
        other.load(b"".join(feed.dump()()), 1)
    with pytest.raises(BadPacket):
        other.load(b"garbage", 5)
    assert other.state == ClusterState()


async def test_a_bug_in_apply_keeps_the_old_state_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    feed, writer = opened()
    writer.job("a")
    before = feed.state

    def broken(_state: ClusterState, _entry: c.Entry) -> None:
        raise KeyError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(state_feed, "apply", broken)
        applied = writer.job("b")
    assert isinstance(applied.outcome, Rejected)
    assert applied.outcome.reason is RejectReason.INTERNAL
    assert (feed.state.index, feed.state.jobs) == (2, before.jobs)
    assert "apply_failed" in caplog.text
    assert isinstance(writer.job("c").outcome, JobAccepted)


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
async def test_a_failure_of_this_process_alone_is_not_swallowed(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Other replicas would apply what this one does not."""
    feed, writer = opened()

    def broken(_state: ClusterState, _entry: c.Entry) -> None:
        raise error

    monkeypatch.setattr(state_feed, "apply", broken)
    with pytest.raises(error):
        writer.job("a")
    assert feed.state.index == 0


@pytest.mark.parametrize("mangle", [lambda _: b"", lambda d: b"\x02" + d[1:], lambda d: d[:-1]])
async def test_a_command_that_cannot_be_read_ends_the_process(
    mangle: Callable[[bytes], bytes],
) -> None:
    feed, _ = opened()
    data = encode_command(c.Command(CommandId("k"), c.Noop()))
    with pytest.raises(BadPacket):
        feed.apply(1, 1, 1, mangle(data))
    assert feed.state.index == 0


async def test_a_closed_loop_does_not_stop_the_log() -> None:
    feed = StateFeed()
    loop = asyncio.new_event_loop()
    feed.open(loop)
    loop.close()
    writer = Writer(feed)
    writer.job("a")
    writer.job("b")
    assert feed.state.index == 2


async def test_a_trail_tells_all_that_led_from_one_look_to_the_next() -> None:
    feed, writer = opened()
    writer.job("before")
    with feed.trail() as trail:
        began = feed.state
        assert trail.look() == (began, began, [])
        writer.job("a")
        writer.job("b")
        seen = trail.look()
        assert (seen.before, seen.after) == (began, feed.state)
        assert seen.events is not None
        assert [getattr(event, "job", "") for event in seen.events] == ["a", "b"]
        assert trail.look() == (feed.state, feed.state, [])


async def test_a_trail_with_a_gap_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_feed, "TRAIL_STEPS_MAX", 2)
    feed, writer = opened()
    other, other_writer = opened()
    for name in "abcd":
        other_writer.job(name)
    with feed.trail() as trail:
        for name in "abc":  # one more than is kept
            writer.job(name)
        assert trail.look().events is None
        feed.load(b"".join(other.dump()()), 4)
        seen = trail.look()
        assert (seen.after, seen.events) == (feed.state, None)
        writer.index = 4
        writer.job("e")
        assert trail.look().events is not None
