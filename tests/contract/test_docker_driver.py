"""What only the docker driver does: limits, ports, names, images, what it must not touch."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any

import docker.errors
import msgspec
import pytest

from cube.adapters.docker_driver import DockerSettings
from cube.adapters.docker_engine import containers
from cube.adapters.docker_engine.engine import Engine
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.launch import Launch, LaunchPort, Observation, RunState
from cube.model.sessions import ExecOrder
from cube.model.spec import DockerOptions, Protocol
from tests.contract.docker_rig import (
    IMAGE,
    OBEYS,
    WAITS,
    DockerRig,
    begun_in,
    processes_in,
    run,
    shell,
    with_options,
)
from tests.contract.driver_cases import ended, new_task_id, read, text, until
from tests.ports import free_port

pytestmark = pytest.mark.docker


async def until_told(rig: DockerRig, launch: Launch, state: RunState) -> Observation:
    def told() -> list[Observation]:
        return [c for c in rig.changes if c.task_id == launch.task_id and c.state is state]

    async def is_told() -> bool:
        return bool(told())

    await until(is_told, rig.patience_s)
    return told()[-1]


def publishing(launch: Launch, host: int, target: int = 80) -> Launch:
    port = LaunchPort("http", host, target, Protocol.TCP, "127.0.0.1")
    return msgspec.structs.replace(launch, ports=(port,))


# -- ports ----------------------------------------------------------------------------------------


async def test_a_published_port_answers_on_its_address(rig: DockerRig) -> None:
    port = free_port()
    serve = shell(rig.launch(new_task_id()), "echo hello > /tmp/index.html; httpd -f -p 80 -h /tmp")
    await run(rig, publishing(serve, port))
    answers: list[bytes] = []

    async def answered() -> bool:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            answers.append(await reader.read())
            writer.close()
        return any(b"hello" in answer for answer in answers)

    await until(answered, rig.patience_s)


@pytest.mark.parametrize("by_container", [True, False])
async def test_a_taken_port_is_a_lasting_failure_that_leaves_nothing(
    rig: DockerRig, by_container: bool
) -> None:
    with contextlib.closing(socket.socket()) as holder:
        if by_container:
            port = free_port()
            await run(rig, publishing(rig.launch(new_task_id()), port))
        else:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
        launch = publishing(rig.launch(new_task_id()), port)
        with pytest.raises(DriverFailed) as failed:
            await run(rig, launch)
    assert (failed.value.code, failed.value.transient) == ("port_taken", False)
    assert str(port) in failed.value.message
    assert rig.containers(launch.task_id) == []


# -- images ---------------------------------------------------------------------------------------


async def test_an_image_that_is_not_there_is_missing_or_its_registry_out_of_reach(
    rig: DockerRig,
) -> None:
    # .invalid never resolves, so that no registry is asked
    launch = msgspec.structs.replace(rig.launch(new_task_id()), image="registry.invalid/nothing:1")
    with pytest.raises(DriverFailed, match=r"registry\.invalid/nothing:1") as failed:
        await rig.driver.prepare(launch)
    assert (failed.value.code, failed.value.transient) == ("pull_failed", True)
    with pytest.raises(DriverFailed, match="docker pull") as failed:
        await rig.driver.prepare(
            msgspec.structs.replace(launch, docker=DockerOptions(pull="never"))
        )
    assert (failed.value.code, failed.value.transient) == ("image_missing", False)
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.start(launch)
    assert (failed.value.code, failed.value.transient) == ("image_missing", False)


async def test_an_image_removed_after_it_was_prepared_is_noticed(rig: DockerRig) -> None:
    name = f"registry.invalid/{rig.cluster_id}"
    rig.client.tag(IMAGE, name, "1")
    launch = msgspec.structs.replace(rig.launch(new_task_id()), image=f"{name}:1")
    await rig.driver.prepare(launch)
    rig.client.remove_image(f"{name}:1")
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.start(launch)
    assert failed.value.code == "pull_failed"  # it tried to get it back
    rig.client.tag(IMAGE, name, "1")
    try:
        assert (await rig.driver.start(launch)).state is RunState.RUNNING
    finally:
        rig.client.remove_image(f"{name}:1", noprune=True)


async def test_a_nonsensical_option_is_a_lasting_failure(rig: DockerRig) -> None:
    base = rig.launch(new_task_id())
    for launch, code in (
        (msgspec.structs.replace(base, image="Not A Name"), "image_invalid"),
        (msgspec.structs.replace(base, memory_limit_bytes=1024), "bad_option"),
        (msgspec.structs.replace(base, user="nobody-here"), "user_missing"),
        (
            msgspec.structs.replace(
                base, command=("/etc/passwd",), docker=DockerOptions(init=False)
            ),
            "command_not_executable",
        ),
        (with_options(base, pull="sometimes"), "bad_option"),
    ):
        with pytest.raises(DriverFailed) as failed:
            await run(rig, launch)
        assert (failed.value.code, failed.value.transient) == (code, False), failed.value.message
    assert rig.containers() == []


# -- ends -----------------------------------------------------------------------------------------


async def test_a_task_that_takes_too_much_memory_says_so(rig: DockerRig) -> None:
    launch = shell(rig.launch(new_task_id()), 'x=$(head -c 99999999 /dev/zero | tr "\\0" a)')
    await run(rig, launch)
    seen = await ended(rig, launch.task_id)
    assert (seen.exit_code, seen.oom_killed, seen.reason) == (137, True, "oom_killed")
    assert (await until_told(rig, launch, RunState.EXITED)).oom_killed


async def test_a_container_removed_behind_our_back_is_told_as_gone(rig: DockerRig) -> None:
    launch = rig.launch(new_task_id())
    seen = await run(rig, launch)
    rig.client.remove_container(seen.handle, force=True)
    await until_told(rig, launch, RunState.GONE)
    assert (await rig.driver.inspect(launch.task_id, 1)).state is RunState.GONE
    assert (await rig.driver.stop(launch.task_id, 1, "SIGTERM", 60_000)).state is RunState.GONE
    assert await rig.driver.recover() == []


async def test_a_container_killed_behind_our_back_is_told_with_its_signal(rig: DockerRig) -> None:
    launch = rig.launch(new_task_id())
    seen = await run(rig, launch)
    rig.client.kill(seen.handle, "SIGKILL")
    told = await until_told(rig, launch, RunState.EXITED)
    assert (told.exit_code, told.oom_killed, told.reason) == (137, False, "")
    assert (await run(rig, rig.launch(launch.task_id, 2))).state is RunState.RUNNING


async def test_what_we_remove_ourselves_is_not_told_as_gone(rig: DockerRig) -> None:
    launch = rig.exits(rig.launch(new_task_id()), 0)
    await run(rig, launch)
    await until_told(rig, launch, RunState.EXITED)
    await rig.driver.remove(launch.task_id, keep_logs=False)
    other = rig.exits(rig.launch(new_task_id()), 0)  # its news come after the removal's
    await run(rig, other)
    await until_told(rig, other, RunState.EXITED)
    assert {c.state for c in rig.changes if c.task_id == launch.task_id} == {RunState.EXITED}


async def test_an_ended_container_removed_behind_our_back_is_told_as_gone(rig: DockerRig) -> None:
    launch = rig.exits(rig.launch(new_task_id()), 0)
    await run(rig, launch)
    seen = await until_told(rig, launch, RunState.EXITED)
    rig.client.remove_container(seen.handle)
    await until_told(rig, launch, RunState.GONE)


async def test_an_inspection_that_a_removal_overtook_is_not_told(
    rig: DockerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = rig.launch(new_task_id())
    seen = await run(rig, launch)
    is_held, go_on = threading.Event(), threading.Event()
    real_look = containers.look

    def slow_look(client: Any, marks: Any, task_id: TaskId, attempt: int) -> Observation:
        result = real_look(client, marks, task_id, attempt)
        if task_id == launch.task_id:
            is_held.set()
            go_on.wait(rig.patience_s)
        return result

    monkeypatch.setattr(containers, "look", slow_look)
    rig.client.kill(seen.handle)
    assert await asyncio.to_thread(is_held.wait, rig.patience_s)
    await rig.driver.remove(launch.task_id, keep_logs=False)
    go_on.set()
    other = rig.exits(rig.launch(new_task_id()), 0)
    await run(rig, other)
    await until_told(rig, other, RunState.EXITED)
    assert [c for c in rig.changes if c.task_id == launch.task_id] == []


async def test_an_answer_counts_even_when_our_own_loop_is_late(docker_host: str) -> None:
    """A stall of the agent must not look like a hung engine."""
    engine = Engine(DockerSettings(host=docker_host, call_timeout_ms=100, ping_timeout_ms=100))
    try:
        assert await engine.call(lambda _: 1, timeout_ms=30_000) == 1  # connected
        call = asyncio.create_task(engine.call(lambda _: 2))
        await asyncio.sleep(0)  # it is with the thread now
        time.sleep(1.5)  # longer than the call's whole deadline
        assert await call == 2
    finally:
        await engine.close()


async def test_a_signal_that_does_not_exist_kills(rig: DockerRig) -> None:
    launch = rig.ignores_sigterm(rig.launch(new_task_id()))
    await run(rig, launch)
    seen = await rig.driver.stop(launch.task_id, 1, "SIGNONSENSE", 600_000)
    assert (seen.state, seen.exit_code) == (RunState.EXITED, 137)


async def test_a_paused_container_runs_and_can_be_stopped(rig: DockerRig) -> None:
    launch = rig.launch(new_task_id())
    seen = await run(rig, launch)
    rig.client.pause(seen.handle)
    seen = await rig.driver.inspect(launch.task_id, 1)
    assert (seen.state, seen.reason) == (RunState.RUNNING, "paused")
    seen = await rig.driver.stop(launch.task_id, 1, "SIGTERM", 200)
    assert seen.state is RunState.EXITED


# -- what is ours ---------------------------------------------------------------------------------


async def test_a_name_that_somebody_else_has_is_refused_and_left_alone(rig: DockerRig) -> None:
    launch = rig.launch(new_task_id())
    name = f"cube-{launch.task_id}-1"
    foreign: Any = rig.client.create_container(IMAGE, ["sleep", "1000"], name=name)
    try:
        rig.client.start(foreign["Id"])
        with pytest.raises(DriverFailed, match=name) as failed:
            await run(rig, launch)
        assert (failed.value.code, failed.value.transient) == ("name_taken", False)
        assert (await rig.driver.inspect(launch.task_id, 1)).state is RunState.GONE
        assert (await rig.driver.stop(launch.task_id, 1, "SIGKILL", 0)).state is RunState.GONE
        await rig.driver.remove(launch.task_id, keep_logs=False)
        assert await read(rig, launch.task_id) == []
        assert rig.client.inspect_container(foreign["Id"])["State"]["Running"]
    finally:
        rig.client.remove_container(foreign["Id"], force=True)


async def test_containers_of_others_are_not_seen_and_not_touched(rig: DockerRig) -> None:
    task_id = new_task_id()
    marks = {"cube.cluster": rig.cluster_id, "cube.node": rig.node_id, "cube.task": task_id}
    marks["cube.attempt"] = "1"
    decoys = {
        "another-node": {**marks, "cube.node": "another"},
        "another-cluster": {**marks, "cube.cluster": "another"},
        "no-task": {key: marks[key] for key in ("cube.cluster", "cube.node")},
        "not-a-number": {**marks, "cube.attempt": "x"},
        "another-name": marks,  # made by hand, copying our labels
    }
    made = []
    try:
        for name, labels in decoys.items():
            one: Any = rig.client.create_container(
                IMAGE, ["sleep", "1000"], name=f"{task_id}-{name}", labels=labels
            )
            made.append(one["Id"])
            rig.client.start(one["Id"])
        assert await rig.driver.recover() == []
        await rig.driver.stop(task_id, 1, "SIGKILL", 0)
        await rig.driver.remove(task_id, keep_logs=False)
        assert all(rig.client.inspect_container(one)["State"]["Running"] for one in made)
    finally:
        for one in made:
            rig.client.remove_container(one, force=True)


async def test_what_was_created_and_never_started_is_started_by_start(rig: DockerRig) -> None:
    launch = await half_started(rig)
    assert (await rig.driver.inspect(launch.task_id, 1)).state is RunState.GONE
    assert (await rig.driver.start(launch)).state is RunState.RUNNING
    assert len(rig.containers(launch.task_id)) == 1


async def test_what_was_created_and_never_started_goes_when_the_agent_comes_back(
    rig: DockerRig,
) -> None:
    launch = await half_started(rig)
    driver = await rig.restart()
    assert await driver.recover() == []
    assert rig.containers(launch.task_id) == []


async def test_stopping_what_was_created_and_never_started_removes_it(rig: DockerRig) -> None:
    launch = await half_started(rig)
    assert (await rig.driver.stop(launch.task_id, 1, "SIGTERM", 1000)).state is RunState.GONE
    assert rig.containers(launch.task_id) == []


async def half_started(rig: DockerRig) -> Launch:
    """As an agent that died between create and start leaves it."""
    launch = rig.launch(new_task_id())
    seen = await run(rig, launch)
    labels = rig.inspected(launch.task_id)["Config"]["Labels"]
    await rig.driver.stop(launch.task_id, 1, "SIGKILL", 0)
    await rig.driver.remove(launch.task_id, keep_logs=False)
    with pytest.raises(docker.errors.NotFound):
        rig.client.inspect_container(seen.handle)
    rig.client.create_container(
        IMAGE,
        ["sh", "-c", OBEYS + WAITS],
        name=f"cube-{launch.task_id}-1",
        labels=labels,
    )
    return launch


# -- attempts, output, commands -------------------------------------------------------------------


async def test_only_the_last_ended_attempts_container_is_kept_for_its_output(
    rig: DockerRig,
) -> None:
    task_id = new_task_id()
    for attempt in (1, 2, 3):
        await run(rig, rig.prints(rig.launch(task_id, attempt), f"{attempt} a\n{attempt} b\n"))
        await ended(rig, task_id, attempt)
    names = sorted(container["Names"][0] for container in rig.containers(task_id))
    assert names == [f"/cube-{task_id}-3", f"/cube-logs-{task_id}-2"]
    assert text(await read(rig, task_id)) == "2 a\n2 b\n3 a\n3 b\n"
    assert text(await read(rig, task_id, tail=3)) == "2 b\n3 a\n3 b\n"
    assert text(await read(rig, task_id, tail=1)) == "3 b\n"


async def test_an_earlier_attempt_that_runs_is_not_replaced(rig: DockerRig) -> None:
    launch = rig.launch(new_task_id())
    seen = await run(rig, launch)
    with pytest.raises(DriverFailed) as failed:
        await rig.driver.start(rig.launch(launch.task_id, 2))
    assert (failed.value.code, failed.value.transient) == ("still_running", True)
    assert await rig.driver.inspect(launch.task_id, 1) == seen


async def test_a_follower_goes_on_into_the_next_attempt(rig: DockerRig) -> None:
    task_id = new_task_id()
    await run(rig, shell(rig.launch(task_id), f"{OBEYS}echo first; {WAITS}"))
    following = rig.driver.logs(task_id, streams=("stdout",), tail=None, since_ms=0, follow=True)
    async with asyncio.timeout(rig.patience_s):
        assert (await anext(following)).data == b"first\n"
        # Both happen before the follower looks again, so it finds the next attempt there.
        await rig.driver.stop(task_id, 1, "SIGTERM", 60_000)
        await run(rig, rig.prints(rig.launch(task_id, 2), "second\n"))
        assert [chunk.data async for chunk in following] == [b"second\n"]


async def test_the_last_lines_of_one_stream_are_not_those_of_both(rig: DockerRig) -> None:
    launch = rig.prints(rig.launch(new_task_id()), "out 1\nout 2\n", "err\n" * 50)
    await run(rig, launch)
    await ended(rig, launch.task_id)
    assert text(await read(rig, launch.task_id, streams=("stdout",), tail=1)) == "out 2\n"


async def test_following_from_the_last_lines_repeats_and_drops_nothing(rig: DockerRig) -> None:
    script = f"{OBEYS}i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done"
    launch = shell(rig.launch(new_task_id()), script)
    await run(rig, launch)
    numbers: list[int] = []
    following = rig.driver.logs(
        launch.task_id, streams=("stdout",), tail=5, since_ms=0, follow=True
    )
    async with asyncio.timeout(rig.patience_s):
        async for chunk in following:
            assert chunk.at_ms > 0
            numbers += [int(line) for line in chunk.data.split()]
            if len(numbers) >= 60:
                break
    await following.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_much_output_arrives_whole_through_a_slow_reader(rig: DockerRig) -> None:
    launch = shell(rig.launch(new_task_id()), "seq 1 100000; head -c 100000 /dev/zero | tr '\\0' x")
    await run(rig, launch)
    await ended(rig, launch.task_id)
    got = bytearray()
    async for chunk in rig.driver.logs(
        launch.task_id, streams=("stdout",), tail=None, since_ms=0, follow=False
    ):
        if len(got) % 7 == 0:
            await asyncio.sleep(0)
        got += chunk.data
    wanted = "".join(f"{number}\n" for number in range(1, 100_001)).encode() + b"x" * 100_000
    assert bytes(got) == wanted


async def test_a_command_past_its_deadline_leaves_no_process(rig: DockerRig) -> None:
    launch = rig.launch(new_task_id())
    seen = await run(rig, launch)
    before = set(await begun_in(rig, seen.handle))
    argv = ("sh", "-c", "echo begun; sleep 1234 & sleep 1235")
    result = await rig.driver.execute(launch.task_id, 1, argv, 1500)
    assert (result.exit_code, result.output) == (None, b"begun\n")

    async def is_clean() -> bool:
        return not set(processes_in(seen.handle)) - before

    await until(is_clean, rig.patience_s)


async def test_commands_of_an_agent_that_was_killed_end_when_it_is_back(rig: DockerRig) -> None:
    """And no others: not one that was begun by hand, nor one of the agent that is there now."""
    launch = rig.launch(new_task_id())
    seen = await run(rig, launch)
    order = ExecOrder(argv=("sh", "-c", "sleep 1234 & sleep 1235"))
    lost: Any = await rig.driver.open_exec(launch.task_id, 1, order)
    lost._wire.writer.transport.abort()  # as the kernel does it for who was killed
    by_hand = rig.client.exec_create(seen.handle, ["sleep", "1236"])
    rig.client.exec_start(by_hand["Id"], detach=True)

    def sleeping() -> set[str]:
        words = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_in(seen.handle)]
        return {word.split("\0")[1] for word in words if word.startswith("sleep\x0012")}

    async def are_begun() -> bool:
        return sleeping() == {"1234", "1235", "1236"}

    await until(are_begun, rig.patience_s)
    driver = await rig.restart()
    mine = await driver.open_exec(launch.task_id, 1, ExecOrder(argv=("sleep", "1237")))

    async def are_two_left() -> bool:
        return sleeping() == {"1236", "1237"}

    await driver.recover()
    await until(are_two_left, rig.patience_s)
    await driver.recover()
    assert rig.client.exec_inspect(by_hand["Id"])["Running"]
    assert await are_two_left()
    await mine.close()


async def test_a_command_writes_more_than_is_kept(rig: DockerRig) -> None:
    launch = rig.launch(new_task_id())
    await run(rig, launch)
    argv = ("sh", "-c", "seq 1 100000; echo; exit 4")
    result = await rig.driver.execute(launch.task_id, 1, argv, 60_000)
    assert result.exit_code == 4
    assert len(result.output) == 4096
    assert result.output.startswith(b"1\n2\n3\n")


async def test_a_command_that_does_not_exist_beside_the_task_exits_as_a_shell_says(
    rig: DockerRig,
) -> None:
    launch = rig.launch(new_task_id())
    await run(rig, launch)
    result = await rig.driver.execute(launch.task_id, 1, ("no-such-command",), 60_000)
    assert result.exit_code in (126, 127)
    assert b"no-such-command" in result.output
