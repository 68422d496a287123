"""What is known of attempts: on disk, and of their processes. Decides what is true; watches nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from cube.adapters.process.cgroups import Cgroups
from cube.adapters.process.host import boot_id, cgroup_pids, kill_round, start_time, task_pids
from cube.adapters.process.processes import is_process, orphans
from cube.adapters.process.records import (
    SAFE_ID,
    Claim,
    Exit,
    Run,
    TaskPaths,
    Verdict,
    read_record,
)
from cube.adapters.process.usage import usage
from cube.adapters.process.wire import VERSION, write_new, write_over
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Observation, RunState, TaskStats
from cube.ports.clock import Clock

LOG = logging.getLogger(__name__)

ORPHAN_ROUNDS = 100  # of killing what a dead supervisor left
ORPHAN_ROUND_MS = 10
QUIET_ROUNDS = 3  # one look through /proc can miss what forks meanwhile

DISK_EXCEEDED = "disk_exceeded"  # the reason of an attempt that held more than it asked for
# Why the end of an attempt is not known, for people.
LOST = {
    "host_rebooted": "its host was rebooted",
    "supervisor_lost": "the process that watches over it was killed; what was left of it was, too",
    "record_lost": "what was written down of it cannot be read; what was left of it was killed",
}

Identity = tuple[TaskId, int]


class Attempt(msgspec.Struct, frozen=True):
    """One look at the records of one attempt. No claim: it is there, but cannot be understood."""

    claim: Claim | None
    run: Run | None
    exit: Exit | None
    verdict: Verdict | None = None


class Attempts:
    """All attempts of this node below one directory."""

    def __init__(
        self,
        cluster_id: ClusterId,
        node_id: NodeId,
        directory: Path,
        clock: Clock,
        cgroups: Cgroups,
    ) -> None:
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._directory = directory
        self._clock = clock
        self._boot_id = boot_id()
        self._verdicts: dict[Identity, Verdict] = {}  # also of those that a full disk did not take
        self.cgroups = cgroups

    def paths(self, task_id: TaskId) -> TaskPaths:
        return TaskPaths(self._directory, task_id)

    def all(self) -> list[Identity]:
        """In order of task and attempt."""
        names = sorted(os.listdir(self._directory)) if self._directory.is_dir() else []
        ids = [TaskId(name) for name in names if SAFE_ID.fullmatch(name)]
        return [(task_id, number) for task_id in ids for number in self.paths(task_id).numbers()]

    def kept(self) -> list[TaskId]:
        """In order: tasks with output and no attempt."""
        names = sorted(os.listdir(self._directory)) if self._directory.is_dir() else []
        ids = [TaskId(name) for name in names if SAFE_ID.fullmatch(name)]
        return [
            task_id
            for task_id in ids
            if self.paths(task_id).logs.is_dir() and not self.paths(task_id).numbers()
        ]

    def look(self, identity: Identity) -> Attempt | None:
        """None: nothing of ours has this identity."""
        task_id, number = identity
        if not SAFE_ID.fullmatch(task_id):
            return None
        directory = self.paths(task_id).attempt(number)
        claim = read_record(directory / "claim.json", Claim)
        if claim is None and not (directory / "claim.json").exists():
            return None
        mark = (self._cluster_id, self._node_id, task_id, number)
        if claim and (claim.cluster_id, claim.node_id, claim.task_id, claim.attempt) != mark:
            return None
        # The end is read first: once there is one, run.json is complete too.
        ended = read_record(directory / "exit.json", Exit)
        run = read_record(directory / "run.json", Run)
        verdict = self._verdicts.get(identity)
        if verdict is None and ended is not None:
            verdict = read_record(directory / "verdict.json", Verdict)
        return Attempt(claim, run, ended, verdict)

    def is_supervised(self, attempt: Attempt) -> bool:
        """Its supervisor lives: this one, of this boot."""
        claim = attempt.claim
        if claim is None or claim.boot_id != self._boot_id:
            return False
        return is_process(claim.supervisor_pid, claim.supervisor_start_time)

    def observation(self, identity: Identity, attempt: Attempt | None) -> Observation:
        task_id, number = identity
        if attempt is None:
            return Observation(task_id=task_id, attempt=number, state=RunState.GONE)
        run, ended = attempt.run, attempt.exit
        seen = Observation(
            task_id=task_id,
            attempt=number,
            state=RunState.RUNNING,
            handle=str(run.pid) if run is not None else "",
            started_at_ms=run.started_at_ms if run is not None else 0,
        )
        if ended is None:
            return seen
        reason, message = ended.failure or ended.reason, ended.message or LOST.get(ended.reason, "")
        if attempt.verdict is not None:
            reason, message = attempt.verdict.reason, attempt.verdict.message
        return msgspec.structs.replace(
            seen,
            state=RunState.EXITED,
            exit_code=ended.exit_code,
            oom_killed=ended.oom_killed,
            reason=reason,
            message=message,
            finished_at_ms=ended.finished_at_ms,
        )

    def living(self, identity: Identity, attempt: Attempt | None) -> set[int]:
        """Every process of this attempt but its supervisor."""
        directories = self.cgroups.directories(group_name(identity))
        if attempt is not None and attempt.claim is not None and self.is_supervised(attempt):
            return task_pids(attempt.claim.supervisor_pid, self._session(attempt.run), directories)
        found = cgroup_pids(directories)
        if self.cgroups.version == "none" and attempt is not None and attempt.run is not None:
            found |= orphans(attempt.run.pid, attempt.run.start_time, identity[0])
        return found

    def usage(self, identity: Identity, limit_bytes: int) -> TaskStats:
        directories = self.cgroups.directories(group_name(identity))
        # The groups have them all; without groups they are looked for among all of the host's.
        pids = cgroup_pids(directories) or self.living(identity, self.look(identity))
        return usage(directories, pids, limit_bytes, self._clock.now_ms())

    def _session(self, run: Run | None) -> int:
        """The command's session while the command lives; later its number may be another's."""
        return run.pid if run is not None and start_time(run.pid) == run.start_time else 0

    def kill_round(self, identity: Identity, attempt: Attempt | None) -> bool:
        """KILL to all of it, once. True: there was something."""
        living = self.living(identity, attempt)
        kill_round(living, self.cgroups.directories(group_name(identity)))
        return bool(living)

    async def conclude(self, identity: Identity, attempt: Attempt) -> Attempt | None:
        """The attempt has no supervisor and no end: now it has one. All that was left is killed.
        Returns what is known of it now; None: it was removed meanwhile."""
        reason = self._reason(attempt)
        if reason != "host_rebooted":
            quiet = 0
            for _ in range(ORPHAN_ROUNDS):
                was_alive = await asyncio.to_thread(self.kill_round, identity, attempt)
                quiet = 0 if was_alive else quiet + 1
                if quiet == QUIET_ROUNDS:
                    break
                await asyncio.sleep(ORPHAN_ROUND_MS / 1000)
            self.cgroups.remove(group_name(identity))
        end = Exit(VERSION, None, False, self._clock.now_ms(), reason=reason)
        self._write_end(identity, end)
        known = self.look(identity)
        if (
            known is not None and known.exit is None
        ):  # the disk did not take it: it is true all the same
            return msgspec.structs.replace(known, exit=end)
        return known

    def judge(self, identity: Identity, reason: str, message: str) -> None:
        """Once the attempt has ended, this is why. A full disk keeps it from outliving the agent."""
        verdict = self._verdicts[identity] = Verdict(VERSION, reason, message)
        path = self.paths(identity[0]).attempt(identity[1]) / "verdict.json"
        try:
            write_over(str(path), msgspec.json.encode(verdict))
        except OSError as error:
            LOG.warning("process_verdict_not_written task=%s attempt=%d %s", *identity, error)

    def was_over_disk(self, task_id: TaskId) -> bool:
        """The last attempt of which something is known was ended for what it held."""
        numbers = self.paths(task_id).numbers()
        last = self.look((task_id, numbers[-1])) if numbers else None
        return (
            last is not None and last.verdict is not None and last.verdict.reason == DISK_EXCEEDED
        )

    def _reason(self, attempt: Attempt) -> str:
        if attempt.claim is None:
            return "record_lost"
        return "supervisor_lost" if attempt.claim.boot_id == self._boot_id else "host_rebooted"

    def _write_end(self, identity: Identity, end: Exit) -> None:
        """Unless there is one by now: the supervisor's own last word is the better one."""
        path = self.paths(identity[0]).attempt(identity[1]) / "exit.json"
        try:
            if not write_new(str(path), msgspec.json.encode(end)) and not read_record(path, Exit):
                write_over(str(path), msgspec.json.encode(end))
        except OSError as error:
            LOG.warning("process_end_not_written task=%s attempt=%d error=%s", *identity, error)

    def forget(self, identity: Identity) -> None:
        """Nothing of this attempt is left but its output. It must have ended."""
        task_id, number = identity
        _ = self._verdicts.pop(identity, None)
        self.cgroups.remove(group_name(identity))
        directory = self.paths(task_id).attempt(number)
        gone = directory.with_name(f".{number}.gone")  # at once: who looks meanwhile finds nothing
        if gone.exists():  # an agent died here before
            remove_tree(gone)
        with contextlib.suppress(FileNotFoundError):
            directory.rename(gone)
        remove_tree(gone)

    def forget_task(self, task_id: TaskId, *, keep_logs: bool) -> None:
        """Nothing of the task is left but, when asked, its output. All attempts must have ended."""
        paths = self.paths(task_id)
        for number in paths.numbers():
            self.forget((task_id, number))
        remove_tree(paths.attempts)
        remove_tree(paths.work)
        if not keep_logs:
            remove_tree(paths.home)


def group_name(identity: Identity) -> str:
    return f"{identity[0]}.{identity[1]}"


def remove_tree(path: Path) -> None:
    """Gone, also where a task made directories that nobody may write. Follows no link."""

    def open_up_and_retry(remove: Any, name: str, _: object) -> None:
        if not os.path.lexists(name):
            return
        os.chmod(os.path.dirname(name), 0o700)
        if os.path.isdir(name) and not os.path.islink(name):
            os.chmod(name, 0o700)
            remove_tree(Path(name))
        else:
            os.unlink(name)

    if path.exists():
        shutil.rmtree(path, onerror=open_up_and_retry)
