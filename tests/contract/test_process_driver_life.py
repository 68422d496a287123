"""The process driver's own promises: identity, crashes of every party, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from cube.adapters.process import attempts
from cube.adapters.process.host import start_time, stat_of
from cube.adapters.process.lease import FILE as LEASE_FILE
from cube.adapters.process.orders import beside_order
from cube.adapters.process.processes import is_process
from cube.adapters.process.records import Claim, Exit, Run, read_record
from cube.adapters.process.spawning import PACKAGE_ROOT
from cube.adapters.process.wire import pack, unpack
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.launch import Launch, LaunchLease, RunState
from tests.contract.driver_cases import NEVER_MS, ended, new_task_id, read, text, until
from tests.contract.process_rig import ProcessRig, pids_of, process_rig, settings_for

DAEMON = (
    "import os, time\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid()\n"
    "if os.fork(): os._exit(0)\n"
    "os.closerange(0, 3)\n"
    "time.sleep(1000)\n"
)


@pytest.fixture(params=["groups", "no groups", "version 2"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ProcessRig]:
    settings = settings_for(request.param, tmp_path)
    async with process_rig(tmp_path / "tasks", settings) as rig:
        if request.param != "no groups" and rig.process_driver.cgroup_version == "none":
            pytest.skip("no writable cgroups here")
        yield rig


@pytest.fixture
async def plain_rig(tmp_path: Path) -> AsyncIterator[ProcessRig]:
    async with process_rig(tmp_path / "tasks") as rig:
        yield rig


def attempt_dir(rig: ProcessRig, task_id: TaskId, attempt: int = 1) -> Path:
    return rig.directory / rig.node_id / task_id / "attempts" / str(attempt)


def claim_of(rig: ProcessRig, task_id: TaskId) -> Claim:
    return msgspec.json.decode((attempt_dir(rig, task_id) / "claim.json").read_bytes(), type=Claim)


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def daemon_launch(rig: ProcessRig, launch: Launch, then: str) -> Launch:
    """A shell that leaves a daemon of two forks and its own session behind, and goes on."""
    env = launch.env | {"DAEMON": DAEMON, "PYTHON": sys.executable}
    script = f'"$PYTHON" -c "$DAEMON"; echo ready; {then}'
    return msgspec.structs.replace(rig.shell(launch, script), env=env)


async def said(rig: ProcessRig, task_id: TaskId, wanted: str) -> None:
    async def is_there() -> bool:
        return wanted in text(await read(rig, task_id))

    await until(is_there, rig.patience_s)


async def none_left(task_id: TaskId, patience_s: float = 10.0) -> None:
    async def is_empty() -> bool:
        return not pids_of(task_id)

    await until(is_empty, patience_s)


async def supervisor_ended(rig: ProcessRig, claim: Claim) -> None:
    async def has_ended() -> bool:
        return not is_process(claim.supervisor_pid, claim.supervisor_start_time)

    await until(has_ended, rig.patience_s)


LOST_AFTER_MS, STOP_TIMEOUT_MS = 400, 400


def lease_file(rig: ProcessRig) -> str:
    return str(rig.directory / LEASE_FILE)


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def leased(rig: ProcessRig, launch: Launch, lost_after_ms: int = LOST_AFTER_MS) -> Launch:
    lease = LaunchLease(monotonic_ms(), lost_after_ms)
    return msgspec.structs.replace(launch, lease=lease, stop_timeout_ms=STOP_TIMEOUT_MS)


# -- identity ---------------------------------------------------------------------------------------


async def test_the_handle_is_the_pid_of_the_command_itself(rig: ProcessRig) -> None:
    launch = rig.launch(new_task_id())
    seen = await rig.driver.start(launch)
    pid = int(seen.handle)
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x001000\x00"
    assert os.getpgid(pid) == os.getsid(pid) == pid
    stat = stat_of(pid)
    assert stat is not None
    assert stat[1] == claim_of(rig, launch.task_id).supervisor_pid


async def test_a_pid_that_was_given_again_is_never_taken_for_ours(rig: ProcessRig) -> None:
    launch = rig.exits(rig.launch(new_task_id()), 0)
    await rig.driver.start(launch)
    await ended(rig, launch.task_id)
    # As after a crash of the supervisor, and another process with its pid and the command's:
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        directory = attempt_dir(rig, launch.task_id)
        await supervisor_ended(rig, claim_of(rig, launch.task_id))
        (directory / "exit.json").unlink()
        rewrite(directory / "claim.json", supervisor_pid=stranger.pid)
        rewrite(directory / "run.json", pid=stranger.pid)
        await rig.restart()
        (seen,) = await rig.driver.recover()
        assert (seen.state, seen.reason) == (RunState.EXITED, "supervisor_lost")
        assert "was killed" in seen.message
        assert seen.exit_code is None
        assert await rig.driver.stop(launch.task_id, 1, "SIGKILL", 0) == seen
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_after_a_reboot_nothing_runs_and_nobody_is_killed(rig: ProcessRig) -> None:
    launch = rig.exits(rig.launch(new_task_id()), 0)
    await rig.driver.start(launch)
    await ended(rig, launch.task_id)
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        directory = attempt_dir(rig, launch.task_id)
        await supervisor_ended(rig, claim_of(rig, launch.task_id))
        (directory / "exit.json").unlink()
        rewrite(
            directory / "claim.json",
            boot_id="11111111-2222-3333-4444-555555555555",
            supervisor_pid=stranger.pid,
            supervisor_start_time=start_time(stranger.pid),
        )
        rewrite(directory / "run.json", pid=stranger.pid, start_time=start_time(stranger.pid))
        await rig.restart()
        (seen,) = await rig.driver.recover()
        assert (seen.state, seen.exit_code, seen.reason) == (
            RunState.EXITED,
            None,
            "host_rebooted",
        )
        assert await rig.driver.start(launch) == seen
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_two_agents_at_once_start_one(rig: ProcessRig) -> None:
    """As when an agent died right after it had forked, and the next one was fast."""
    launch = rig.launch(new_task_id())
    other = ProcessRig(rig.directory, rig.settings)
    other.node_id, other.settings = rig.node_id, rig.settings
    other.process_driver = rig._new(launch.cluster_id, rig.node_id)
    await other.open()
    try:
        for attempt in range(1, 6):
            launch = msgspec.structs.replace(launch, attempt=attempt)
            one, two = await asyncio.gather(
                rig.driver.start(launch), other.process_driver.start(launch)
            )
            assert one == two
            assert len(pids_of(launch.task_id)) == 1
            await other.process_driver.stop(launch.task_id, attempt, "SIGTERM", NEVER_MS)
    finally:
        await other.process_driver.close()


@pytest.mark.parametrize("evil", ["../evil", "..", "a/b", "", ".", "a" * 200, "-x", "a\0b"])
async def test_an_id_leads_nowhere_else(plain_rig: ProcessRig, evil: str) -> None:
    rig, task_id = plain_rig, TaskId(evil)
    launch = rig.launch(task_id)
    for call in (rig.driver.prepare, rig.driver.start):
        with pytest.raises(DriverFailed) as failed:
            await call(launch)
        assert (failed.value.code, failed.value.transient) == ("bad_id", False)
    assert (await rig.driver.inspect(task_id, 1)).state is RunState.GONE
    assert (await rig.driver.stop(task_id, 1, "SIGKILL", 0)).state is RunState.GONE
    assert await read(rig, task_id) == []
    await rig.driver.remove(task_id, keep_logs=False)
    assert sorted(p.name for p in rig.directory.iterdir()) == [rig.node_id]


# -- the agent dies ---------------------------------------------------------------------------------

AGENT = """
import asyncio, sys
from pathlib import Path
import msgspec
from cube.adapters.process.driver import ProcessDriver
from cube.adapters.process.settings import ProcessSettings
from cube.model.launch import Launch

async def main():
    launch = msgspec.json.decode(sys.argv[1].encode(), type=Launch)
    settings = msgspec.json.decode(sys.argv[2].encode(), type=ProcessSettings)
    driver = ProcessDriver(launch.cluster_id, launch.node_id, Path(sys.argv[3]), None, settings)
    await driver.open(lambda seen: None)
    print((await driver.start(launch)).handle, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def run_and_kill_an_agent(rig: ProcessRig, launch: Launch) -> int:
    """A process of its own starts the task and is killed. Returns the command's pid."""
    agent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        AGENT,
        msgspec.json.encode(launch).decode(),
        msgspec.json.encode(rig.settings).decode(),
        str(rig.directory / rig.node_id),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert agent.stdout is not None
    try:
        async with asyncio.timeout(rig.patience_s):
            return int(await agent.stdout.readline())
    finally:
        agent.kill()
        await agent.wait()


async def test_the_same_pid_after_the_agent_was_killed(rig: ProcessRig) -> None:
    launch = rig.prints_for_ever(rig.launch(new_task_id()), "tick")
    pid = await run_and_kill_an_agent(rig, launch)
    (seen,) = await rig.driver.recover()
    assert (seen.state, seen.handle) == (RunState.RUNNING, str(pid))
    # Its output still has a reader, or it would die of a broken pipe:
    before = len(text(await read(rig, launch.task_id)))

    async def has_more() -> bool:
        return len(text(await read(rig, launch.task_id))) > before

    await until(has_more, rig.patience_s)
    seen = await rig.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS)
    assert (seen.state, seen.exit_code) == (RunState.EXITED, 143)
    await none_left(launch.task_id)


async def test_an_exit_code_while_no_agent_lived(rig: ProcessRig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    launch = rig.shell(
        rig.launch(new_task_id()), f"while [ ! -e {go} ]; do sleep 0.01; done; exit 41"
    )
    await run_and_kill_an_agent(rig, launch)
    go.touch()
    await none_left(launch.task_id)
    await supervisor_ended(rig, claim_of(rig, launch.task_id))
    (seen,) = await rig.driver.recover()
    assert (seen.state, seen.exit_code) == (RunState.EXITED, 41)


# -- the files are replaced -------------------------------------------------------------------------


async def test_a_task_runs_on_when_the_files_of_its_release_are_gone(
    rig: ProcessRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the package is upgraded: a supervisor has loaded all that it will ever need."""
    old = tmp_path / "old-release"
    shutil.copytree(Path(PACKAGE_ROOT) / "cube/adapters/process", old / "cube/adapters/process")
    for package in ("cube", "cube/adapters"):
        (old / package / "__init__.py").touch()
    monkeypatch.setattr("cube.adapters.process.spawning.PACKAGE_ROOT", str(old))
    go = tmp_path / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.01; done; echo late; exit 7"
    one = daemon_launch(rig, rig.launch(new_task_id()), wait)
    other = leased(rig, rig.ignores_sigterm(rig.launch(new_task_id())), lost_after_ms=3_600_000)
    for launch in (one, other):
        await rig.driver.start(launch)
        await said(rig, launch.task_id, "ready\n")
    shutil.rmtree(old)
    monkeypatch.undo()
    await rig.restart()
    go.touch()
    assert (await ended(rig, one.task_id)).exit_code == 7
    assert text(await read(rig, one.task_id)) == "ready\nlate\n"
    result = await rig.driver.execute(other.task_id, 1, ("echo", "beside"), NEVER_MS)
    assert result.output == b"beside\n"
    assert (await rig.driver.stop(other.task_id, 1, "SIGTERM", 100)).exit_code == 137
    for launch in (one, other):
        await none_left(launch.task_id)
        log = attempt_dir(rig, launch.task_id) / "supervisor.log"
        assert log.read_text() == ""


def test_what_the_first_release_wrote_is_read_and_what_later_ones_add_is_passed_over(
    tmp_path: Path,
) -> None:
    """Records and orders only ever gain fields: an agent must not take the task of a newer supervisor
    for lost (it would end it), nor a new one that of an older."""
    claim = (
        '{"version":1,"cluster_id":"c","node_id":"n","task_id":"t","attempt":3,"boot_id":"b",'
        '"supervisor_pid":7,"supervisor_start_time":8}'
    )
    run = '{"version":1,"pid":9,"start_time":10,"started_at_ms":11}'
    end = (
        '{"version":1,"exit_code":137,"oom_killed":true,"finished_at_ms":12,"failure":"",'
        '"message":"","is_transient":false}'
    )
    path = tmp_path / "record.json"
    for added in ("", ',"of_the_future":[1,{}]'):
        path.write_text(claim[:-1] + added + "}")
        assert read_record(path, Claim) == Claim(1, "c", "n", "t", 3, "b", 7, 8)
        path.write_text(run[:-1] + added + "}")
        assert read_record(path, Run) == Run(1, 9, 10, 11)
        path.write_text((end[:-1] + added + "}").ljust(4096))
        assert read_record(path, Exit) == Exit(1, 137, True, 12)
    first_order = [
        ("mode", b"supervise"), ("cluster_id", b"c"), ("node_id", b"n"), ("task_id", b"t"),
        ("attempt", b"3"), ("dir", b"/d"), ("logs", b"/l"), ("segment_bytes", b"1000"),
        ("segments", b"2"), ("cwd", b"/w"), ("argv", b"sleep"), ("env", b"A=b"), ("cgroup", b"/g"),
    ]  # fmt: skip
    beside = unpack(beside_order(unpack(pack(first_order)), ("id",)))
    assert beside["argv"] == [b"id"]
    assert [beside[key] for key in ("cwd", "env", "cgroup")] == [[b"/w"], [b"A=b"], [b"/g"]]


# -- the supervisor dies ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_watched", [True, False])
async def test_without_its_supervisor_a_task_is_ended_too(
    rig: ProcessRig, is_watched: bool
) -> None:
    launch = daemon_launch(
        rig, rig.forks(rig.launch(new_task_id())), "sleep 1000 & setsid sleep 1000"
    )
    await rig.driver.start(launch)
    await said(rig, launch.task_id, "ready\n")
    if not is_watched:
        await rig.kill_agent()
    claim = claim_of(rig, launch.task_id)
    os.kill(claim.supervisor_pid, signal.SIGKILL)
    if is_watched:

        async def told() -> bool:
            return bool(rig.changes)

        await until(told, rig.patience_s)
        seen = rig.changes[-1]
    else:
        await supervisor_ended(rig, claim)
        await rig.restart()
        (seen,) = await rig.driver.recover()
    assert (seen.state, seen.exit_code, seen.reason) == (RunState.EXITED, None, "supervisor_lost")
    assert pids_of(launch.task_id) == set()
    assert await rig.driver.start(launch) == await rig.driver.inspect(launch.task_id, 1) == seen


async def test_a_supervisor_that_dies_before_the_command_leaves_no_command(
    rig: ProcessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = rig.prints(rig.launch(new_task_id()), "never\n")
    # run.json cannot be written over a directory: the supervisor fails before it opens the gate.
    (attempt_dir(rig, launch.task_id) / "run.json").mkdir(parents=True)
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.start(launch)
    assert failed.value.transient
    assert await read(rig, launch.task_id) == []
    assert pids_of(launch.task_id) == set()
    (attempt_dir(rig, launch.task_id) / "run.json").rmdir()
    await rig.driver.start(launch)
    assert (await ended(rig, launch.task_id)).exit_code == 0
    assert text(await read(rig, launch.task_id)) == "never\n"


async def test_a_supervisor_that_cannot_run_says_why(
    plain_rig: ProcessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = plain_rig
    monkeypatch.setattr("cube.adapters.process.spawning.BOOTSTRAP", "raise SystemExit('no luck')")
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.start(rig.launch(new_task_id()))
    assert (failed.value.code, failed.value.transient) == ("supervisor_failed", True)
    assert "no luck" in failed.value.message


async def test_a_stopped_supervisor_and_a_stopped_command_end_all_the_same(
    rig: ProcessRig,
) -> None:
    launch = rig.launch(new_task_id())
    seen = await rig.driver.start(launch)
    pids = (int(seen.handle), claim_of(rig, launch.task_id).supervisor_pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    async def are_stopped() -> bool:
        return all(stat is not None and stat[0] == "T" for stat in map(stat_of, pids))

    await until(are_stopped, rig.patience_s)
    seen = await rig.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS)
    assert (seen.state, seen.exit_code) == (RunState.EXITED, 143)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(b"\x00\xff{{{")


def of_the_future(path: Path) -> None:
    rewrite(path, version=2)


@pytest.mark.parametrize("harm", [cut_short, empty, noise, of_the_future])
async def test_half_of_a_record_reads_as_none(
    plain_rig: ProcessRig, harm: Callable[[Path], None]
) -> None:
    """Only a crash of the host leaves such files; whatever they say, each attempt gets an end."""
    rig, ended_ids = plain_rig, []
    for name in ("claim.json", "run.json", "exit.json"):
        launch = rig.exits(rig.launch(new_task_id()), 5)
        await rig.driver.start(launch)
        await ended(rig, launch.task_id)
        ended_ids.append(launch.task_id)
        await supervisor_ended(rig, claim_of(rig, launch.task_id))
        harm(attempt_dir(rig, launch.task_id) / name)
    await rig.restart()
    found = {seen.task_id: seen for seen in await rig.driver.recover()}
    reports = [(found[t].state, found[t].exit_code, found[t].reason) for t in ended_ids]
    assert reports == [
        (RunState.EXITED, 5, ""),
        (RunState.EXITED, 5, ""),
        (RunState.EXITED, None, "supervisor_lost"),
    ]
    for task_id in ended_ids:
        await rig.driver.remove(task_id, keep_logs=False)
    assert await rig.driver.recover() == []


async def test_a_claim_that_was_lost_while_the_task_ran(plain_rig: ProcessRig) -> None:
    rig = plain_rig
    if rig.process_driver.cgroup_version == "none":
        pytest.skip("needs writable cgroups: without its records a process is found by group alone")
    launch = rig.launch(new_task_id())
    await rig.driver.start(launch)
    await rig.kill_agent()
    empty(attempt_dir(rig, launch.task_id) / "claim.json")
    await rig.restart()
    (seen,) = await rig.driver.recover()
    assert seen.state is RunState.EXITED
    await none_left(launch.task_id)


async def test_a_group_that_nobody_knows_is_emptied(plain_rig: ProcessRig) -> None:
    rig = plain_rig
    if rig.process_driver.cgroup_version == "none":
        pytest.skip("no writable cgroups here")
    launch = rig.launch(new_task_id())
    await rig.driver.start(launch)
    await rig.kill_agent()
    home = rig.directory / rig.node_id
    (home / launch.task_id).rename(rig.directory / "moved-away-by-hand")
    await rig.restart()
    assert await rig.driver.recover() == []
    await none_left(launch.task_id)


async def test_who_looks_at_an_attempt_while_it_is_removed_finds_none(
    plain_rig: ProcessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its records would read as the death of its supervisor."""
    rig = plain_rig
    launch = rig.exits(rig.launch(new_task_id()), 0)
    await rig.driver.start(launch)
    await ended(rig, launch.task_id)
    seen = []

    def remove_tree(path: Path) -> None:
        seen.append(rig.process_driver._attempts.look((launch.task_id, 1)))
        really_remove(path)

    really_remove = attempts.remove_tree
    monkeypatch.setattr(attempts, "remove_tree", remove_tree)
    await rig.driver.remove(launch.task_id, keep_logs=False)
    assert set(seen) == {None}
    assert list((rig.directory / rig.node_id).iterdir()) == []


async def test_a_node_that_is_given_up_leaves_no_group(rig: ProcessRig) -> None:
    launch = rig.launch(new_task_id())
    await rig.driver.start(launch)
    homes = [Path(group).parent for group in rig.process_driver.cgroup_directories(TaskId("t"), 1)]
    await rig.process_driver.give_up()
    assert all(home.exists() for home in homes), "something runs in them"
    await rig.driver.stop(launch.task_id, 1, "SIGKILL", 0)
    await rig.driver.remove(launch.task_id, keep_logs=False)
    await rig.process_driver.give_up()
    assert not any(home.exists() for home in homes)
