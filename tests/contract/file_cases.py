"""What is true of the secrets and configs of a task, whichever driver runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import msgspec

from cube.adapters.task_files import ROOTS, TaskFiles
from cube.model.ids import NodeId, TaskId
from cube.model.launch import Launch, LaunchFile, LaunchValue
from cube.model.stored import StoredKind, StoredRef
from tests.contract.driver_cases import Rig, ended, new_task_id, read, text, wait_for_output

CANARY = b"canary-in-a-file\n\x00\xff"
WORDS = "a-word-to-read\n"


class FileRig(Rig, Protocol):
    node_id: NodeId
    has_paths: bool  # its tasks' files are at paths of their own, not below one directory

    def runs(self, launch: Launch, script: str) -> Launch:
        """The script of a shell, which ends by SIGTERM when it waits."""
        ...


def file_of(
    rig: FileRig, name: str, data: bytes, kind: StoredKind = StoredKind.SECRET, mode: int = 0o400
) -> LaunchFile:
    target = f"/run/{kind.value}s/{name}" if rig.has_paths else name
    ref = StoredRef(kind, name)
    return LaunchFile(value=LaunchValue(ref, 1), target=target, mode=mode, data=data)


def script_of(rig: FileRig, script: str) -> str:
    """`$S` and `$C` are where secrets and configs are."""
    if rig.has_paths:
        return f"S=/run/secrets; C=/run/configs; {script}"
    return f"S=$CUBE_SECRETS_DIR; C=$CUBE_CONFIGS_DIR; {script}"


def with_files(rig: FileRig, task_id: TaskId, script: str, *files: LaunchFile) -> Launch:
    launch = rig.runs(rig.launch(task_id), script_of(rig, script))
    return msgspec.structs.replace(launch, files=files)


def left_of(rig: FileRig, task_id: str = "*") -> list[Path]:
    """The directories of the task's attempts on this host."""
    mine = f"cube-{os.geteuid()}/{rig.node_id}/{rig.driver.name}/{task_id}/*"
    return [path for root in ROOTS for path in Path(root).glob(mine)]


class FileContract:
    async def test_files_are_there_before_the_command_with_their_modes(self, rig: FileRig) -> None:
        task_id = new_task_id()
        script = (
            'stat -c "%a" "$S/words" "$S/open" "$C/conf"; cat "$S/words" "$C/conf"; '
            'wc -c < "$S/open" | tr -d " "'
        )
        launch = with_files(
            rig, task_id, script,
            file_of(rig, "words", WORDS.encode()), file_of(rig, "open", CANARY, mode=0o440),
            file_of(rig, "conf", b"=settings\n", StoredKind.CONFIG, 0o444),
        )  # fmt: skip
        await rig.driver.prepare(launch)
        _ = await rig.driver.start(launch)
        assert (await ended(rig, task_id)).exit_code == 0
        told = text(await read(rig, task_id, ("stdout",)))
        assert told == f"400\n440\n444\n{WORDS}=settings\n{len(CANARY)}\n"

    async def test_they_are_in_memory_and_gone_after_the_task(self, rig: FileRig) -> None:
        task_id = new_task_id()
        script = 'cat "$S/words"; sleep 1000 & wait'
        launch = with_files(rig, task_id, script, file_of(rig, "words", WORDS.encode()))
        _ = await rig.driver.start(launch)
        await wait_for_output(rig, task_id, WORDS)
        (directory,) = left_of(rig, task_id)
        assert os.stat(directory).st_dev != os.stat("/").st_dev
        assert [path.read_bytes() for path in directory.rglob("*") if path.is_file()] == [
            WORDS.encode()
        ]
        _ = await rig.driver.stop(task_id, 1, "SIGKILL", 0)
        await rig.driver.remove(task_id, keep_logs=True)
        assert left_of(rig, task_id) == []
        await rig.driver.remove(task_id, keep_logs=False)

    async def test_another_agent_finds_the_task_with_its_files(self, rig: FileRig) -> None:
        task_id = new_task_id()
        script = 'echo ready; while [ ! -s "$S/never" ]; do sleep 0.1; cat "$S/words"; done'
        launch = with_files(rig, task_id, script, file_of(rig, "words", WORDS.encode()))
        _ = await rig.driver.start(launch)
        await wait_for_output(rig, task_id, "ready")
        driver = await rig.restart()
        assert [seen.task_id for seen in await driver.recover()] == [task_id]
        since = text(await read(rig, task_id)).count(WORDS)
        await wait_for_output(rig, task_id, WORDS * (since + 2))
        _ = await driver.stop(task_id, 1, "SIGKILL", 0)
        await driver.remove(task_id, keep_logs=False)
        assert left_of(rig, task_id) == []

    async def test_a_new_attempt_has_the_new_values_only(self, rig: FileRig) -> None:
        task_id = new_task_id()
        script = 'cat "$S/words"'
        first = with_files(rig, task_id, script, file_of(rig, "words", b"old"))
        _ = await rig.driver.start(first)
        _ = await ended(rig, task_id)
        second = msgspec.structs.replace(first, attempt=2, files=(file_of(rig, "words", b"new"),))
        _ = await rig.driver.start(second)
        _ = await ended(rig, task_id, 2)
        assert text(await read(rig, task_id, ("stdout",))) == "oldnew"
        assert [path.name for path in left_of(rig, task_id)] == ["2"]
        await rig.driver.remove(task_id, keep_logs=False)

    async def test_what_no_task_stands_for_is_swept(self, rig: FileRig) -> None:
        stray = rig.launch(new_task_id())
        stray = msgspec.structs.replace(stray, files=(file_of(rig, "words", CANARY),))
        _ = TaskFiles(rig.node_id, rig.driver.name).write(stray, None)
        assert len(left_of(rig)) == 1
        assert await rig.driver.recover() == []
        assert left_of(rig) == []
