"""What a task of the process driver gets: its environment, user, directory, limits, and no more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from cube.adapters.process.settings import ProcessSettings
from cube.model.errors import DriverFailed
from cube.model.launch import Launch, RunState
from cube.model.sessions import ExecOrder
from cube.model.spec import MountSpec, MountType, Ulimit
from tests.contract.driver_cases import (
    NEVER_MS,
    ended,
    new_task_id,
    read,
    text,
    until,
)
from tests.contract.process_rig import ProcessRig, pids_of, process_rig

MIB = 1024 * 1024
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[ProcessRig]:
    async with process_rig(tmp_path / "tasks") as rig:
        yield rig


@pytest.fixture
async def limited(rig: ProcessRig) -> ProcessRig:
    if rig.process_driver.cgroup_version == "none":
        pytest.skip("no writable cgroups here")
    return rig


def changed(launch: Launch, **changes: object) -> Launch:
    return msgspec.structs.replace(launch, **changes)


async def prepare_and_start(rig: ProcessRig, launch: Launch) -> None:
    await rig.driver.prepare(launch)
    await rig.driver.start(launch)


async def output_of(rig: ProcessRig, launch: Launch) -> str:
    await rig.driver.start(launch)
    seen = await ended(rig, launch.task_id)
    output = text(await read(rig, launch.task_id))
    assert seen.exit_code == 0, output
    return output


# -- what it gets -----------------------------------------------------------------------------------


async def test_the_environment_is_the_launchs_and_three_names_more(
    rig: ProcessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")
    monkeypatch.setenv("LANG", "C.UTF-8")
    launch = rig.launch(new_task_id())
    env = launch.env | {"GREETING": "grüß\n dich ", "EMPTY": "", "PYTHONPATH": "/nowhere"}
    launch = changed(launch, command=("env", "-0"), env=env)
    pairs = dict(p.split("=", 1) for p in (await output_of(rig, launch)).split("\0")[:-1])
    assert pairs == env | {name: os.environ[name] for name in ("PATH", "HOME", "LANG")}


async def test_the_launch_overrides_what_is_inherited(rig: ProcessRig) -> None:
    launch = rig.launch(new_task_id())
    launch = changed(
        launch, command=("/usr/bin/env",), env={"PATH": "/x", "HOME": "/y", "LANG": "z"}
    )
    assert sorted((await output_of(rig, launch)).split()) == ["HOME=/y", "LANG=z", "PATH=/x"]


async def test_arguments_arrive_as_they_are(rig: ProcessRig) -> None:
    words = ("%s\n", "a b", "", "$HOME", "*", "'\"", "ü", "-n")
    launch = changed(rig.launch(new_task_id()), entrypoint=("printf",), command=words)
    assert await output_of(rig, launch) == "".join(f"{word}\n" for word in words[1:])


@contextlib.contextmanager
def ignored(*numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def test_it_inherits_no_descriptor_and_no_signal(rig: ProcessRig) -> None:
    with open("/dev/null") as extra:
        os.set_inheritable(extra.fileno(), True)
        script = (
            "import os, signal\n"
            "print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:-1])\n"
            "print(os.readlink('/proc/self/fd/0'))\n"
        )
        launch = rig.launch(new_task_id())
        output = await output_of(rig, changed(launch, command=(sys.executable, "-c", script)))
    assert output == "[0, 1, 2]\n/dev/null\n"
    launch = rig.shell(rig.launch(new_task_id()), "grep -E 'Sig(Blk|Ign)|Umask' /proc/self/status")
    with ignored(signal.SIGQUIT, signal.SIGUSR2):  # as of an agent that a shell started with `&`
        output = await output_of(rig, launch)
    assert output.split() == [
        "Umask:",
        "0022",
        "SigBlk:",
        "0000000000000000",
        "SigIgn:",
        "0000000180000000",  # 32 and 33: posix_spawn's, and glibc takes them back when it needs them
    ]


async def test_the_working_directory_is_its_own_and_kept_across_attempts(rig: ProcessRig) -> None:
    task_id = new_task_id()
    assert await output_of(rig, rig.shell(rig.launch(task_id), "ls; echo 1 > state")) == ""
    await rig.driver.start(rig.shell(rig.launch(task_id, 2), "ls; pwd"))
    await ended(rig, task_id, 2)
    work = rig.directory / rig.node_id / task_id / "work"
    assert text(await read(rig, task_id)) == f"state\n{work}\n"
    await rig.driver.remove(task_id, keep_logs=True)
    assert not work.exists()


async def test_a_working_directory_that_is_named(rig: ProcessRig, tmp_path: Path) -> None:
    launch = changed(rig.launch(new_task_id()), command=("pwd",), working_dir=str(tmp_path))
    assert await output_of(rig, launch) == f"{tmp_path}\n"


async def test_what_a_task_wrote_is_removed_whatever_its_modes(rig: ProcessRig) -> None:
    script = (
        "mkdir -p a/b; echo x > a/b/c; ln -s /etc here; chmod 000 a/b/c a/b; chmod 555 a; chmod 0 ."
    )
    launch = rig.shell(rig.launch(new_task_id()), script)
    await output_of(rig, launch)
    await rig.driver.remove(launch.task_id, keep_logs=False)
    assert list((rig.directory / rig.node_id).iterdir()) == []
    assert Path("/etc/passwd").exists()


async def test_a_command_beside_it_has_all_that_the_task_has(rig: ProcessRig) -> None:
    launch = rig.launch(new_task_id())
    launch = changed(launch, env=launch.env | {"PASSWORD": "geheim"}, pids_limit=50)
    await rig.driver.start(launch)
    work = rig.directory / rig.node_id / launch.task_id / "work"
    for _ in range(2):  # also by an agent that did not start it
        argv = ("sh", "-c", "pwd; echo $PASSWORD; cat /proc/self/cgroup; ls /proc/self/fd; cat")
        result = await rig.driver.execute(launch.task_id, 1, argv, NEVER_MS)
        assert result.exit_code == 0
        words = result.output.decode().split()
        assert words[:2] == [str(work), "geheim"]
        assert words[-4:-1] == ["0", "1", "2"]
        if rig.process_driver.cgroup_version != "none":
            assert f"{launch.task_id}.1" in result.output.decode()
        await rig.restart()


async def test_the_output_of_a_command_beside_it_is_bounded(rig: ProcessRig) -> None:
    launch = rig.launch(new_task_id())
    await rig.driver.start(launch)
    argv = ("sh", "-c", "echo start; yes | head -c 3000000; echo >&2 end")
    result = await rig.driver.execute(launch.task_id, 1, argv, NEVER_MS)
    assert (result.exit_code, len(result.output)) == (0, 4096)
    assert result.output.startswith(b"start\ny\ny\n")


async def test_a_command_beside_it_that_hangs_still_says_what_it_said(rig: ProcessRig) -> None:
    launch = rig.launch(new_task_id())
    await rig.driver.start(launch)
    before = pids_of(launch.task_id)
    argv = ("sh", "-c", "echo first; sleep 1000 & sleep 1000")
    result = await rig.driver.execute(launch.task_id, 1, argv, 500)
    assert (result.exit_code, result.output) == (None, b"first\n")

    async def is_as_before() -> bool:
        return pids_of(launch.task_id) == before

    await until(is_as_before, rig.patience_s)


async def test_a_command_beside_it_that_leaves_a_child_is_not_waited_for(rig: ProcessRig) -> None:
    launch = rig.launch(new_task_id())
    await rig.driver.start(launch)
    argv = ("sh", "-c", "sleep 1000 & echo done")
    result = await rig.driver.execute(launch.task_id, 1, argv, NEVER_MS)
    assert (result.exit_code, result.output) == (0, b"done\n")


async def test_a_command_beside_it_that_does_not_exist(rig: ProcessRig) -> None:
    launch = rig.launch(new_task_id())
    await rig.driver.start(launch)
    result = await rig.driver.execute(launch.task_id, 1, ("no-such-command-here",), NEVER_MS)
    assert result.exit_code == 127
    assert b"no no-such-command-here in PATH" in result.output


# -- what it cannot get -----------------------------------------------------------------------------


async def test_each_impossible_launch_has_its_own_reason(rig: ProcessRig, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    noise = tmp_path / "noise"
    noise.write_bytes(b"\x00\x01\x02")
    noise.chmod(0o755)
    good = rig.launch(new_task_id())
    mount = MountSpec(type=MountType.BIND, target="/data", source="/srv")
    cases = [
        (changed(good, command=("/no/such/file",)), "command_not_found", "/no/such/file"),
        (changed(good, command=("nosuchword",)), "command_not_found", "PATH"),
        (changed(good, command=(str(script),)), "command_not_found", "interpreter"),
        (changed(good, command=(str(plain),)), "command_not_executable", "mode"),
        (changed(good, command=(str(tmp_path),)), "command_not_executable", str(tmp_path)),
        (changed(good, command=(str(noise),)), "command_not_executable", "format"),
        (changed(good, command=()), "command_missing", "command"),
        (changed(good, command=("a\0b",)), "bad_launch", "NUL"),
        (changed(good, env={"A=B": "c"}), "bad_launch", "environment"),
        (changed(good, user="no-such-user"), "user_unknown", "no-such-user"),
        (changed(good, user="nobody:no-such-group"), "user_unknown", "no-such-group"),
        (changed(good, user=str(1 << 40)), "user_unknown", str(1 << 40)),
        (changed(good, user=f"nobody:{1 << 40}"), "user_unknown", str(1 << 40)),
        (changed(good, ulimits=(Ulimit("locksmith", 1, 1),)), "ulimit_unknown", "locksmith"),
        (changed(good, working_dir="/no/such/dir"), "working_dir_missing", "/no/such/dir"),
        (changed(good, working_dir=str(plain)), "working_dir_missing", str(plain)),
        (changed(good, mounts=(mount,)), "mounts_not_supported", "docker"),
        (changed(good, command=("true", "x" * 200_000)), "argv_too_long", "true"),
    ]
    for launch, code, hint in cases:
        launch = changed(launch, task_id=new_task_id())
        for _ in range(2):
            with pytest.raises(DriverFailed) as failed:
                await prepare_and_start(rig, launch)
            assert (failed.value.code, failed.value.transient) == (code, False)
            assert hint in failed.value.message
        seen = await rig.driver.inspect(launch.task_id, 1)
        assert seen.state is RunState.GONE or seen.reason == code
        # The next attempt may do better: the file is there now, say.
        await rig.driver.start(changed(good, task_id=launch.task_id, attempt=2))
        assert [s.attempt for s in await rig.driver.recover()] == [2]
        await rig.driver.stop(launch.task_id, 2, "SIGKILL", 0)
        await rig.driver.remove(launch.task_id, keep_logs=False)


@needs_root
@pytest.mark.root
async def test_a_closed_folder_in_path_is_passed_over(rig: ProcessRig, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    path = f"{tmp_path / 'closed'}:{os.environ['PATH']}"
    launch = changed(rig.launch(new_task_id()), env={"PATH": path}, user="nobody")
    assert await output_of(rig, changed(launch, command=("echo", "found"))) == "found\n"
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.start(changed(launch, task_id=new_task_id(), command=("no-such-word",)))
    assert failed.value.code == "command_not_found"


async def test_no_secret_is_on_the_disk(rig: ProcessRig) -> None:
    launch = rig.launch(new_task_id())
    launch = changed(launch, env=launch.env | {"PASSWORD": "canary-7f3a"})
    await rig.driver.start(launch)
    found = subprocess.run(
        ["grep", "-r", "canary-7f3a", str(rig.directory)], capture_output=True, check=False
    )
    assert found.returncode == 1, found.stdout
    claim = rig.directory / rig.node_id / launch.task_id / "attempts" / "1" / "claim.json"
    assert claim.stat().st_mode & 0o077 == 0


# -- as another user --------------------------------------------------------------------------------


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("user", ["nobody", "65534", "nobody:daemon", "65534:1", "54321"])
@pytest.mark.parametrize("users", ["*", ""], ids=["any", "named"])
async def test_as_another_user(tmp_path: Path, user: str, users: str) -> None:
    settings = ProcessSettings(users=(users or user,))
    async with process_rig(tmp_path / "tasks", settings) as rig:
        await _as_another_user(rig, user)


async def _as_another_user(rig: ProcessRig, user: str) -> None:
    script = "id -u; id -g; id -G; echo $HOME; echo x > mine; ls -n mine | cut -d' ' -f3"
    launch = changed(rig.shell(rig.launch(new_task_id()), script), user=user)
    words = (await output_of(rig, launch)).split()
    uid = "54321" if user == "54321" else "65534"
    gid = "1" if ":" in user else uid
    home = "/" if user == "54321" else "/nonexistent"
    assert words == [uid, gid, gid, home, uid]
    await rig.driver.remove(launch.task_id, keep_logs=False)
    assert list((rig.directory / rig.node_id).iterdir()) == []


@needs_root
@pytest.mark.root
async def test_a_task_of_another_user_is_stopped_and_entered_like_any(rig: ProcessRig) -> None:
    launch = changed(rig.forks(rig.launch(new_task_id())), user="nobody")
    await rig.driver.start(launch)
    result = await rig.driver.execute(launch.task_id, 1, ("id", "-u"), NEVER_MS)
    assert result.output == b"65534\n"
    seen = await rig.driver.stop(launch.task_id, 1, "SIGTERM", NEVER_MS)
    assert seen.exit_code == 143
    assert pids_of(launch.task_id) == set()


def is_for_all(program: str) -> bool:
    return subprocess.run(
        ["/bin/sh", "-c", 'test -x "$1"', "sh", program], user=65534, check=False
    ).returncode == 0  # fmt: skip


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("user", ["", "nobody"])
async def test_what_runs_beside_a_task_dies_with_the_agent_whoever_it_runs_as(
    rig: ProcessRig, user: str
) -> None:
    launch = changed(rig.forks(rig.launch(new_task_id())), user=user)
    await rig.driver.start(launch)
    pythons = (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3")
    python = next((one for one in pythons if is_for_all(one)), None)
    if python is None:
        pytest.skip("no Python that another user may run")
    argv = (
        python, "-I", "-S", "-c",
        "import ctypes; it = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(it)); print(it.value)",
    )  # fmt: skip
    result = await rig.driver.execute(launch.task_id, 1, argv, NEVER_MS)
    assert result.output == b"9\n"
    session = await rig.driver.open_exec(launch.task_id, 1, ExecOrder(argv=argv))
    try:
        assert b"".join([piece.data async for piece in session.output()]) == b"9\n"
    finally:
        await session.close()


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("user", ["root", "0", "root:nogroup", "nobody:root", "nobody:0"])
async def test_root_only_where_the_node_allows_it(tmp_path: Path, user: str) -> None:
    """Who leaves `user` out, too, where the node's default would be root."""
    for settings in (ProcessSettings(), ProcessSettings(user=user)):
        async with process_rig(tmp_path / "refused", settings) as rig:
            launch = rig.launch(new_task_id())
            launch = launch if settings.user else changed(launch, user=user)
            with pytest.raises(DriverFailed) as failed:
                await prepare_and_start(rig, launch)
            assert (failed.value.code, failed.value.transient) == ("not_allowed", False)
            assert "[drivers.process] allow" in failed.value.message
    async with process_rig(tmp_path / "allowed", ProcessSettings(allow=("root",))) as rig:
        launch = changed(rig.shell(rig.launch(new_task_id()), "id -u; id -g; id -G"), user=user)
        uid, _, group = user.partition(":")
        gid = "65534" if group == "nogroup" else "0"
        groups = gid if group else " ".join(map(str, os.getgrouplist("root", 0)))
        wanted = "65534" if uid == "nobody" else "0"
        assert (await output_of(rig, launch)).splitlines() == [wanted, gid, groups]


@needs_root
@pytest.mark.root
async def test_a_node_says_who_runs_what_names_no_user(tmp_path: Path) -> None:
    async with process_rig(tmp_path / "tasks", ProcessSettings(user="nobody")) as rig:
        launch = rig.shell(rig.launch(new_task_id()), "id -u; echo x > mine")
        assert await output_of(rig, launch) == "65534\n"
        launch = changed(rig.shell(rig.launch(new_task_id()), "id -u"), user="nobody:nogroup")
        assert await output_of(rig, launch) == "65534\n"


@needs_root
@pytest.mark.root
@pytest.mark.parametrize(
    ("user", "settings"),
    [
        ("daemon", ProcessSettings()),
        ("1", ProcessSettings(users=("daemon",))),
        ("54321", ProcessSettings()),
        ("nobody:daemon", ProcessSettings()),  # nobody is not in that group
        ("daemon:nogroup", ProcessSettings(users=("daemon",))),
        ("daemon", ProcessSettings(users=("daemon:nogroup",))),
        ("daemon", ProcessSettings(user="nobody", users=())),
    ],
)
async def test_as_nobody_but_whom_the_node_names(
    tmp_path: Path, user: str, settings: ProcessSettings
) -> None:
    """Else whoever may run jobs is every person of the host, with what their groups may."""
    async with process_rig(tmp_path / "tasks", settings) as rig:
        with pytest.raises(DriverFailed) as failed:
            await prepare_and_start(rig, changed(rig.launch(new_task_id()), user=user))
        assert (failed.value.code, failed.value.transient) == ("not_allowed", False)
        assert f'[drivers.process] users = ["{user}"]' in failed.value.message


@needs_root
@pytest.mark.root
async def test_groups_of_its_own_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 7])
    async with process_rig(tmp_path / "tasks") as rig:
        launch = changed(rig.shell(rig.launch(new_task_id()), "id -G"), user="nobody:7")
        assert await output_of(rig, launch) == "7\n"
        attributes = (await rig.driver.fingerprint()).attributes
        assert attributes["allow"] == "user:nobody"


@needs_root
@pytest.mark.root
async def test_supplementary_groups_are_those_of_the_user(
    rig: ProcessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 7, 9])
    launch = changed(rig.shell(rig.launch(new_task_id()), "id -G"), user="nobody")
    assert await output_of(rig, launch) == "65534 7 9\n"
