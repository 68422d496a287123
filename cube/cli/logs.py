"""`cube logs`."""

from __future__ import annotations

import difflib
import json
import sys
import time

import click
import msgspec

from cube.cli.context import Settings, command
from cube.cli.exits import NOT_FOUND, USAGE, CommandError
from cube.cli.log_streams import Line, Query, Sources
from cube.cli.output import PALETTE, Style, clean, note
from cube.cli.rollout import ENDED
from cube.cli.tasks import present
from cube.cli.why import job_of
from cube.client.client import Client
from cube.client.errors import ApiProblem, ClientError
from cube.model.views import TaskView

TASKS_MAX = 50  # at once: each holds a connection at two nodes, and a thread here
LOOK_S = 1.0  # for tasks that have come, when following
JOB_OVER = ("completed", "failed", "stopped")


class Wanted(msgspec.Struct, frozen=True):
    """Whose output. `task_id`: this one and no other; else of these group and slot, None: any."""

    job: str
    group: str | None = None
    slot: int | None = None
    task_id: str | None = None

    def takes(self, task: TaskView) -> bool:
        return (
            task.node_id is not None
            and self.task_id in (None, task.id)
            and self.group in (None, task.group)
            and self.slot in (None, task.slot)
        )


@command("logs")
@click.argument("name", metavar="JOB|JOB/GROUP|TASK")
@click.option(
    "-f", "--follow", is_flag=True, help="Go on as more comes, and with what replaces it."
)
@click.option(
    "--tail", type=click.IntRange(min=0), default=100, help="Lines of the past (100), of each task."
)
@click.option("--all", "all_", is_flag=True, help="All lines that are kept.")
@click.option("--since", default="", help="Only what is younger, such as 10m.")
@click.option("-t", "--timestamps", is_flag=True, help="When each line was printed.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="One of the two only.")
@click.option("--no-prefix", is_flag=True, help="Do not say which task a line is from.")
def logs(
    settings: Settings, name: str, follow: bool, tail: int, all_: bool, since: str,
    timestamps: bool, stream: str | None, no_prefix: bool,
) -> None:  # fmt: skip
    """What a task prints, or all tasks of a job or group, merged by time, from whichever node they
    are on."""
    client = settings.client
    wanted = _what(client, name)
    tasks = _tasks_of(client, wanted)
    if not tasks and not follow:
        raise CommandError(NOT_FOUND, f"{name} has no task that ran", hint=f"cube why {wanted.job}")
    streams = (stream,) if stream else ()
    query = Query(streams, None if all_ else tail, since, follow)
    is_one = wanted.task_id is not None or wanted.slot is not None
    printer = _Printer(settings, timestamps, not (no_prefix or is_one))
    if is_one and not follow and not printer.changes_lines:
        _copy(client, tasks[0], query)  # as fast as it comes
        return
    if len(tasks) > TASKS_MAX:
        note(f"cube: only {TASKS_MAX} of {len(tasks)} tasks are shown; name a group or a task")
    sources = Sources(settings.another_client, query)
    for task in tasks[:TASKS_MAX]:
        sources.add(task)
    looks = _Looks(settings.another_client(), wanted, sources)
    for item in sources.lines(looks.is_over if follow else lambda: True):
        if item is None:
            sys.stdout.flush()
        else:
            printer.show(*item)
        if follow:
            looks.look()
    sys.stdout.flush()


def _what(client: Client, name: str) -> Wanted:
    job, slash, group = name.partition("/")
    if slash:
        found = client.job(job)
        if group not in found.groups:
            near = difflib.get_close_matches(group, found.groups, n=1)
            known = f"did you mean {near[0]}?" if near else f"it has {', '.join(found.groups)}"
            raise CommandError(
                NOT_FOUND if group else USAGE, f"{job} has no group {group!r}", hint=known
            )
        return Wanted(found.name, group)
    job, task_id = job_of(client, name)
    if task_id is None:
        return Wanted(job)
    task = client.task(task_id)
    if task.name == name:  # a slot has a name, whoever is in it
        return Wanted(job, task.group, task.slot)
    return Wanted(job, task_id=task.id)


def _tasks_of(client: Client, wanted: Wanted) -> list[TaskView]:
    """Those that run or should; of a job that has ended, the last one of each slot."""
    if wanted.task_id is not None:
        return [client.task(wanted.task_id)]
    tasks = [task for task in client.tasks(wanted.job) if wanted.takes(task)]
    newest = {task.name: task for task in sorted(tasks, key=lambda task: task.created_at or "")}
    shown = sorted(newest.values(), key=lambda task: (task.group, task.slot))
    return shown if wanted.slot is not None else present(tasks) or shown


def _copy(client: Client, task: TaskView, query: Query) -> None:
    pieces = client.logs(task.id, streams=query.streams, tail=query.tail, since=query.since)
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


class _Looks:
    """Finds tasks that have come since: replacements, and more of them."""

    def __init__(self, client: Client, wanted: Wanted, sources: Sources) -> None:
        self._client, self._wanted, self._sources = client, wanted, sources
        self._known = set(sources.tasks)
        self._is_first = True
        self._next = time.monotonic()
        self._told = False

    def look(self) -> None:
        if self._wanted.task_id is not None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK_S
        try:
            tasks = [
                task for task in self._client.tasks(self._wanted.job) if self._wanted.takes(task)
            ]
        except ClientError:
            return  # no agent answers now: the readers say so
        for task in tasks:
            if task.id in self._known:
                continue
            self._known.add(task.id)
            if self._is_first and task.state in ENDED:
                continue  # of the past, which was looked at already
            self._join(task)
        self._is_first = False

    def _join(self, task: TaskView) -> None:
        if len(self._sources.tasks) >= 4 * TASKS_MAX:
            if not self._told:
                note("cube: too many tasks have come and gone: run the command again")
            self._told = True
            return
        self._sources.add(task, is_new=True)

    def is_over(self) -> bool:
        """Nothing more can come of what is wanted."""
        wanted = self._wanted
        if wanted.task_id is not None:
            return True
        self._next = 0.0
        self.look()
        try:
            job = self._client.job(wanted.job)
            tasks = self._client.tasks(wanted.job)
        except ApiProblem as problem:
            return problem.status == 404
        except ClientError:
            return False
        if any(task.state not in ENDED for task in tasks if wanted.takes(task)):
            return False
        group = None if wanted.group is None else job.groups.get(wanted.group)
        is_gone = wanted.group is not None and (
            group is None or (wanted.slot is not None and wanted.slot >= group.count)
        )
        return is_gone or job.status in JOB_OVER


class _Printer:
    """Lines with the name of their task, a colour for each; control characters made harmless on a
    terminal, bytes as they are otherwise."""

    def __init__(self, settings: Settings, timestamps: bool, prefixed: bool) -> None:
        self._style = Style(settings)
        self._is_terminal = sys.stdout.isatty()
        self._json = settings.output == "json"
        self._timestamps = timestamps
        self._prefixed = prefixed
        self._colors: dict[str, str] = {}
        self._width = 0

    @property
    def changes_lines(self) -> bool:
        return self._is_terminal or self._json or self._timestamps or self._prefixed

    def show(self, task: TaskView, line: Line) -> None:
        if self._json:
            text = line.text.decode(errors="replace")
            told = {"task": task.name, "id": task.id, "node": task.node_name, "line": text}
            told |= {"at": line.at} if self._timestamps else {}
            sys.stdout.buffer.write(json.dumps(told).encode() + b"\n")
            return
        data = line.text
        if self._is_terminal:
            data = clean(data.decode(errors="replace")).encode()
        stamp = f"{line.at or '-'} ".encode() if self._timestamps else b""
        sys.stdout.buffer.write(self._prefix(task) + stamp + data + b"\n")

    def _prefix(self, task: TaskView) -> bytes:
        if not self._prefixed:
            return b""
        label = f"{task.name}@{task.node_name}"
        self._width = max(self._width, len(label))
        color = self._colors.setdefault(task.id, PALETTE[len(self._colors) % len(PALETTE)])
        return (self._style.paint(label.ljust(self._width), color) + " ").encode()
