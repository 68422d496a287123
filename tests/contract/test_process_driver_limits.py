"""What a task of the process driver may use: limits, disk, output; and what one costs."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cube.adapters.process.host import cgroup_pids
from cube.adapters.process.settings import ProcessSettings
from cube.adapters.process.spawning import PACKAGE_ROOT
from cube.adapters.process.supervisor import BOOTSTRAP
from cube.model.errors import DriverFailed
from cube.model.launch import RunState
from cube.model.spec import Ulimit
from tests.contract.driver_cases import (
    NEVER_MS,
    ended,
    new_task_id,
    read,
    text,
    until,
    wait_for_output,
)
from tests.contract.process_rig import ProcessRig, pids_of, process_rig
from tests.contract.test_process_driver_launch import (
    MIB,
    changed,
    limited,
    needs_root,
    output_of,
    rig,
)

__all__ = ["limited", "rig"]  # fixtures

# -- limits -----------------------------------------------------------------------------------------


@needs_root
@pytest.mark.root
async def test_too_much_memory_is_its_end_and_is_called_so(limited: ProcessRig) -> None:
    launch = limited.launch(new_task_id())
    eater = "b = bytearray(200 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nprint('survived')"
    launch = changed(launch, command=(sys.executable, "-c", eater), memory_limit_bytes=32 * MIB)
    await limited.driver.start(launch)
    seen = await ended(limited, launch.task_id)
    assert (seen.exit_code, seen.oom_killed) == (137, True)
    within = changed(launch, task_id=new_task_id(), memory_limit_bytes=400 * MIB)
    assert await output_of(limited, within) == "survived\n"


@needs_root
@pytest.mark.root
async def test_too_many_processes_are_refused(limited: ProcessRig) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait"
    launch = changed(limited.shell(limited.launch(new_task_id()), script), pids_limit=5)
    await limited.driver.start(launch)

    async def is_refused() -> bool:
        return "fork" in text(await read(limited, launch.task_id)).lower()

    await until(is_refused, limited.patience_s)
    assert len(pids_of(launch.task_id)) <= 5
    await limited.driver.stop(launch.task_id, 1, "SIGKILL", 0)
    assert pids_of(launch.task_id) == set()


@needs_root
@pytest.mark.root
async def test_a_fork_bomb_is_ended(limited: ProcessRig) -> None:
    bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass\n"
    launch = limited.launch(new_task_id())
    launch = changed(launch, command=(sys.executable, "-c", bomb), pids_limit=64, cpu_max_milli=500)
    await limited.driver.start(launch)

    async def is_full() -> bool:
        return len(pids_of(launch.task_id)) > 50

    await until(is_full, limited.patience_s)
    seen = await limited.driver.stop(launch.task_id, 1, "SIGTERM", 50)
    assert seen.state is RunState.EXITED
    assert pids_of(launch.task_id) == set()


@needs_root
@pytest.mark.root
async def test_the_kernel_has_the_limits_and_the_supervisor_is_outside(limited: ProcessRig) -> None:
    launch = changed(
        limited.launch(new_task_id()),
        cpu_milli=500,
        cpu_max_milli=250,
        memory_limit_bytes=64 * MIB,
        pids_limit=20,
    )
    seen = await limited.driver.start(launch)
    groups = limited.process_driver.cgroup_directories(launch.task_id, 1)
    wanted = {
        "1": {
            "cpu.shares": "512",
            "cpu.cfs_quota_us": "25000",
            "memory.limit_in_bytes": str(64 * MIB),
            "pids.max": "20",
        },
        "2": {
            "cpu.weight": "20",
            "cpu.max": "25000 100000",
            "memory.max": str(64 * MIB),
            "pids.max": "20",
        },
    }[limited.process_driver.cgroup_version]
    kept = {
        file.name: file.read_text().strip()
        for group in groups
        for file in Path(group).iterdir()
        if file.name in wanted
    }
    assert kept == wanted
    for group in groups:
        assert cgroup_pids([group]) == {int(seen.handle)}
    await limited.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS)
    assert not any(Path(group).exists() for group in groups)


@needs_root
@pytest.mark.root
async def test_a_limit_that_the_kernel_refuses_is_not_dropped(limited: ProcessRig) -> None:
    launch = changed(limited.exits(limited.launch(new_task_id()), 0), memory_limit_bytes=-5)
    with pytest.raises(DriverFailed) as failed:
        await limited.driver.start(launch)
    assert failed.value.code == "limits_not_set"
    assert (await limited.driver.inspect(launch.task_id, 1)).state is RunState.GONE


async def test_what_the_host_offers_is_told(rig: ProcessRig, tmp_path: Path) -> None:
    info = await rig.driver.fingerprint()
    assert info.attributes["cgroup"] == rig.process_driver.cgroup_version
    settings = ProcessSettings(cgroup_root=str(tmp_path / "nothing"))
    async with process_rig(tmp_path / "other", settings) as other:
        info = await other.driver.fingerprint()
        assert (info.healthy, info.attributes["cgroup"]) == (True, "none")
        assert "not mounted" in info.attributes["cgroup_reason"]


async def test_a_directory_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "tasks").write_text("in the way")
    rig = ProcessRig(tmp_path / "tasks")
    await rig.open()
    info = await rig.driver.fingerprint()
    assert not info.healthy
    assert str(tmp_path) in info.reason
    await rig.driver.close()


async def test_limits_of_a_process_are_set_beside_it_too(rig: ProcessRig) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = (Ulimit("core", 0, 0), Ulimit("nofile", 64, 128), Ulimit("fsize", -1, -1))
    script = "ulimit -c; ulimit -Sn; ulimit -Hn; ulimit -f; echo ready; sleep 1000"
    launch = changed(rig.shell(rig.launch(new_task_id()), script), ulimits=limits)
    assert hard == resource.RLIM_INFINITY or hard >= 128
    await rig.driver.start(launch)
    await wait_for_output(rig, launch.task_id, "ready\n")
    assert text(await read(rig, launch.task_id)).split()[:-1] == ["0", "64", "128", "unlimited"]
    result = await rig.driver.execute(launch.task_id, 1, ("sh", "-c", "ulimit -Hn"), NEVER_MS)
    assert result.output == b"128\n"
    plain = rig.shell(rig.launch(new_task_id()), "ulimit -Hn")
    assert await output_of(rig, plain) == f"{'unlimited' if hard < 0 else hard}\n"


@needs_root
@pytest.mark.root
async def test_a_limit_above_the_agents_is_set_or_a_reason(rig: ProcessRig) -> None:
    """Root may raise it, for another user too, unless it was denied CAP_SYS_RESOURCE."""
    hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)[1]
    assert hard >= 0
    limits = (Ulimit("sigpending", hard + 1, hard + 2),)
    launch = rig.shell(rig.launch(new_task_id()), "grep 'pending signals' /proc/self/limits")
    launch = changed(launch, ulimits=limits, user="nobody")
    if may("ulimit -Hi unlimited"):
        assert (await output_of(rig, launch)).split()[3:5] == [str(hard + 1), str(hard + 2)]
        return
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.start(launch)
    assert (failed.value.code, failed.value.transient) == ("limits_not_set", False)
    assert f"ulimits.sigpending to {hard + 1} (hard: {hard + 2})" in failed.value.message
    assert f"own hard limit is {hard}" in failed.value.message


def may(script: str) -> bool:
    """Whether this user of this host may do that."""
    return subprocess.run(["bash", "-c", script], check=False, capture_output=True).returncode == 0


async def test_a_limit_that_nobody_may_set_is_a_reason(rig: ProcessRig) -> None:
    kernel_max = int(Path("/proc/sys/fs/nr_open").read_text())
    launch = rig.launch(new_task_id())
    launch = changed(launch, ulimits=(Ulimit("nofile", 10, kernel_max + 1),))
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.start(launch)
    assert (failed.value.code, failed.value.transient) == ("limits_not_set", False)


async def test_a_task_has_not_its_supervisors_standing_when_memory_runs_out(
    rig: ProcessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also where this user may not ask for less than usual, a supervisor may ask for more.
    setting = "cube.adapters.process.supervisor.OOM_SCORE_ADJ = b'500'; main()"
    bootstrap = BOOTSTRAP.replace("main()", f"import cube.adapters.process.supervisor; {setting}")
    monkeypatch.setattr("cube.adapters.process.spawning.BOOTSTRAP", bootstrap)
    launch = rig.shell(rig.launch(new_task_id()), "cat /proc/self/oom_score_adj")
    assert await output_of(rig, launch) == "0\n"


async def test_when_memory_runs_out_the_task_goes_before_its_supervisor(rig: ProcessRig) -> None:
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text().strip()
    own.write_text("300")
    try:
        launch = rig.shell(rig.launch(new_task_id()), "cat /proc/self/oom_score_adj; sleep 1000")
        seen = await rig.driver.start(launch)
    finally:
        own.write_text(before)
    await wait_for_output(rig, launch.task_id, "0\n")
    assert text(await read(rig, launch.task_id)) == "0\n"
    parent = Path(f"/proc/{seen.handle}/stat").read_text().rpartition(")")[2].split()[1]
    # Who may not ask for more than others is at least not less safe than its task.
    wanted = "-998" if may("echo -998 > /proc/self/oom_score_adj") else "0"
    assert Path(f"/proc/{parent}/oom_score_adj").read_text().strip() == wanted


# -- disk -------------------------------------------------------------------------------------------

LOOKS = ProcessSettings(disk_look_ms=50)


async def test_who_keeps_more_than_it_asked_for_is_ended_and_begins_anew(tmp_path: Path) -> None:
    async with process_rig(tmp_path / "tasks", LOOKS) as rig:
        task_id = new_task_id()
        launch = rig.shell(rig.launch(task_id), "head -c 2000000 /dev/zero > big; exec sleep 1000")
        await rig.driver.start(changed(launch, disk_bytes=MIB))
        seen = await ended(rig, task_id)
        assert (seen.exit_code, seen.reason, seen.oom_killed) == (137, "disk_exceeded", False)
        assert "holds 1.9 MiB (2" in seen.message
        assert seen.message.endswith("; resources.disk is 1 MiB")
        assert await rig.driver.inspect(task_id, 1) == seen
        await rig.restart()  # it is known to the next agent, too
        assert await rig.driver.recover() == [seen]
        launch = changed(rig.shell(rig.launch(task_id, 2), "ls; sleep 1000"), disk_bytes=MIB)
        await rig.driver.start(launch)

        async def was_looked_at() -> bool:
            return rig.process_driver.disk_watch.looks >= 2

        await until(was_looked_at, rig.patience_s)
        assert (await rig.driver.inspect(task_id, 2)).state is RunState.RUNNING
        assert text(await read(rig, task_id)) == "", "the directory was emptied"


async def test_the_disk_of_adopted_tasks_is_watched_and_that_of_the_unlimited_is_not(
    tmp_path: Path,
) -> None:
    async with process_rig(tmp_path / "tasks", LOOKS) as rig:
        script = (
            "while [ ! -e go ]; do sleep 0.01; done; head -c 2000000 /dev/zero > big; sleep 1000"
        )
        limited, free = rig.shell(rig.launch(new_task_id()), script), rig.launch(new_task_id())
        await rig.driver.start(changed(limited, disk_bytes=MIB))
        await rig.driver.start(rig.shell(free, script))
        await rig.restart()
        assert len(await rig.driver.recover()) == 2
        for launch in (limited, free):
            (rig.directory / rig.node_id / launch.task_id / "work" / "go").touch()
        assert (await ended(rig, limited.task_id)).reason == "disk_exceeded"
        assert (await rig.driver.inspect(free.task_id, 1)).state is RunState.RUNNING

        async def is_told() -> bool:
            return bool(rig.changes)

        await until(is_told, rig.patience_s)
        assert {(seen.task_id, seen.reason) for seen in rig.changes} == {
            (limited.task_id, "disk_exceeded")
        }


# -- output and the price of a task -----------------------------------------------------------------


async def test_a_loud_task_stays_within_its_files(tmp_path: Path) -> None:
    settings = ProcessSettings(log_segment_bytes=MIB, log_segments=2)
    async with process_rig(tmp_path / "tasks", settings) as rig:
        script = (
            "yes 'out out out out' | head -c 150000000; yes err | head -c 10000000 >&2; echo end"
        )
        launch = rig.shell(rig.launch(new_task_id()), script)
        await rig.driver.start(launch)
        assert (await ended(rig, launch.task_id)).exit_code == 0
        logs = rig.directory / rig.node_id / launch.task_id / "logs"
        assert sum(file.stat().st_size for file in logs.iterdir()) < 4.6 * MIB
        out = text(await read(rig, launch.task_id, streams=("stdout",)))
        assert len(out) > 0.9 * MIB
        assert out.endswith("out out out out\nend\n")
        assert text(await read(rig, launch.task_id, streams=("stdout",), tail=1)) == "end\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "cube-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs root, and leave to mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """All of its space is taken until the file is removed."""
    path = disk / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    return path


@pytest.mark.root
async def test_a_full_disk_costs_output_but_not_the_exit_code(small_disk: Path) -> None:
    async with process_rig(small_disk / "tasks") as rig:
        task_id, go = new_task_id(), small_disk / "go"
        script = f"while [ ! -e {go} ]; do sleep 0.01; done; yes | head -c 3000000; exit 41"
        lost, kept = rig.launch(new_task_id()), rig.shell(rig.launch(task_id), script)
        await rig.driver.start(lost)
        await rig.driver.start(kept)
        go.touch()
        filler = fill(small_disk)
        seen = await ended(rig, task_id)
        assert (seen.exit_code, seen.reason) == (41, "")

        with pytest.raises(DriverFailed) as failed:
            await rig.driver.start(rig.launch(new_task_id()))
        assert failed.value.transient

        claim = rig.directory / rig.node_id / lost.task_id / "attempts" / "1" / "claim.json"
        os.kill(int(json.loads(claim.read_text())["supervisor_pid"]), signal.SIGKILL)
        assert (await ended(rig, lost.task_id)).reason == "supervisor_lost"
        filler.unlink()
        await rig.driver.start(rig.launch(task_id, 2))


@pytest.mark.root
async def test_who_fills_the_disk_is_told_so_though_that_cannot_be_written_down(
    small_disk: Path,
) -> None:
    async with process_rig(small_disk / "tasks", LOOKS) as rig:
        script = "yes > fill; echo full > full; sleep 1000"
        launch = rig.shell(rig.launch(new_task_id()), script)
        await rig.driver.start(changed(launch, disk_bytes=100_000))
        seen = await ended(rig, launch.task_id)
        assert (seen.exit_code, seen.reason) == (137, "disk_exceeded")
        again = changed(rig.shell(rig.launch(launch.task_id, 2), "ls"), disk_bytes=100_000)
        await rig.driver.start(again)
        assert (await ended(rig, launch.task_id, 2)).exit_code == 0


async def test_output_need_not_be_text(rig: ProcessRig) -> None:
    launch = rig.shell(rig.launch(new_task_id()), "head -c 100000 /dev/urandom | tee copy")
    await rig.driver.start(launch)
    await ended(rig, launch.task_id)
    copy = rig.directory / rig.node_id / launch.task_id / "work" / "copy"
    assert b"".join(c.data for c in await read(rig, launch.task_id)) == copy.read_bytes()


async def test_times_of_output_are_those_of_the_host(rig: ProcessRig) -> None:
    launch = rig.prints(rig.launch(new_task_id()), "x\n")
    await rig.driver.start(launch)
    seen = await ended(rig, launch.task_id)
    (chunk,) = await read(rig, launch.task_id)
    assert seen.started_at_ms <= chunk.at_ms <= seen.finished_at_ms
    assert await read(rig, launch.task_id, since_ms=chunk.at_ms) == [chunk]
    assert await read(rig, launch.task_id, since_ms=chunk.at_ms + 1) == []


async def test_a_supervisor_is_small(rig: ProcessRig) -> None:
    launch = rig.launch(new_task_id())
    seen = await rig.driver.start(launch)
    parent = Path(f"/proc/{seen.handle}/stat").read_text().rpartition(")")[2].split()[1]
    pages = int(Path(f"/proc/{parent}/statm").read_text().split()[1])
    assert pages * resource.getpagesize() < 14 * MIB
    assert sorted(os.listdir(f"/proc/{parent}/fd"), key=int)[:3] == ["0", "1", "2"]
    assert len(os.listdir(f"/proc/{parent}/fd")) <= 11  # 3, 2 × wake-up, 2 pipes, 2 × 2 files


def test_a_supervisor_imports_next_to_nothing() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "import cube.adapters.process.supervisor; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, PACKAGE_ROOT],
        capture_output=True,
        check=True,
        text=True,
    )
    modules = set(done.stdout.split())
    heavy = {"json", "re", "enum", "contextlib", "typing", "asyncio", "msgspec", "subprocess"}
    assert modules & heavy == set()
    assert {name for name in modules if name.startswith("cube.adapters.")} == {
        "cube.adapters.process",
        *(
            f"cube.adapters.process.{name}"
            for name in ("supervisor", "host", "lease", "output", "wire")
        ),
    }
