"""kill -9 of member processes: what was acknowledged is there afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.raft.members import Processes
from tests.raft_support import until


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Any]:
    made = Processes(tmp_path, has_tls=True, snapshot_every=40, snapshot_tail=3)
    yield made
    await made.close()


async def acknowledge(processes: Any, prefix: str, count_min: int) -> list[asyncio.Future[Any]]:
    """Every member proposes on; returns once each has `count_min` more acknowledgements."""
    before = {process: len(process.acknowledged) for process in processes.running()}
    work = [
        asyncio.ensure_future(
            process.request("propose_each", prefix=f"{prefix}-{process.number}", count=100_000)
        )
        for process in processes.running()
    ]
    await until(lambda: all(len(p.acknowledged) >= n + count_min for p, n in before.items()), 30)
    return work


async def expect_everything(processes: Any) -> None:
    acknowledged = {data for process in processes.all for data in process.acknowledged}
    await processes.leader()
    for process in processes.running():
        await process.request("barrier", timeout_ms=15_000)
    logs = [await process.request("payloads") for process in processes.running()]
    for log in logs:
        missing = acknowledged - set(log)
        assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged entries are gone"
        assert len(set(log)) == len(log), "an entry was applied twice"
        assert log == logs[0]


async def test_all_killed_at_once_keep_every_acknowledged_entry(processes: Any) -> None:
    await processes.found(3)
    for round_number in range(3):
        work = await acknowledge(processes, f"round{round_number}", 60)
        await asyncio.gather(*(process.kill() for process in processes.running()))
        await asyncio.gather(*work, return_exceptions=True)
        for process in processes.all:
            await process.start()
        await expect_everything(processes)
        statuses = [await process.request("status") for process in processes.all]
        assert {len(status["voters"]) for status in statuses} == {3}


async def test_one_killed_again_and_again_never_diverges(processes: Any) -> None:
    await processes.found(3)
    work = await acknowledge(processes, "start", 10)
    for round_number in range(4):
        victim = processes.all[round_number % 3]
        await victim.kill()
        work += await acknowledge(processes, f"without-{round_number}", 30)
        await victim.start()
    await asyncio.gather(*(process.kill() for process in processes.running()))
    await asyncio.gather(*work, return_exceptions=True)
    for process in processes.all:
        await process.start()
    await expect_everything(processes)


async def test_a_removed_member_that_starts_again_disturbs_nobody(processes: Any) -> None:
    await processes.found(3)
    leader = await processes.leader()
    removed = next(process for process in processes.all if process is not leader)
    await removed.kill()
    await leader.request("remove_voter", address=removed.options["address"])
    before = await leader.request("status")
    await removed.start()
    for number in range(20):
        await leader.request("propose", data=f"{number}".encode().hex(), timeout_ms=5_000)
        await asyncio.sleep(0.1)  # over more than one election timeout of the removed member
    after = await leader.request("status")
    assert (after["role"], after["term"]) == ("leader", before["term"])
    assert (await removed.request("status"))["role"] != "leader"
    assert len(after["voters"]) == 2


async def test_a_fresh_joiner_killed_before_its_addition_still_joins(processes: Any) -> None:
    await processes.found(1)
    leader = await processes.leader()
    await leader.request("propose", data="00", timeout_ms=5_000)
    joiner = processes.make((leader.options["address"],), joining=True)
    await joiner.start()
    await joiner.kill()
    joiner.options["joining"] = False  # what it was told first counts
    await joiner.start()
    await leader.kill()
    await asyncio.sleep(1.5)  # longer than the election timeout
    assert (await joiner.request("status"))["role"] == "learner"
    await leader.start()
    await processes.leader()
    await leader.request("add_voter", address=joiner.options["address"])
    await expect_everything(processes)
