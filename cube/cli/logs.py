"""`cube logs`."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator

import click

from cube.cli.context import Settings, command
from cube.cli.exits import NOT_FOUND, CommandError
from cube.cli.output import COLORS, Style, clean, note, out
from cube.cli.tasks import present
from cube.cli.why import job_of
from cube.client.client import Client
from cube.client.errors import ClientError
from cube.model.views import TaskView

FOLLOWED_MAX = 50  # tasks at once: each holds a connection and a thread
QUEUE_LINES = 1_000  # waiting to be printed; a slow terminal slows the readers, nothing is dropped
LINE_BYTES_MAX = 64 * 1024  # a longer line is printed in pieces
_PALETTE = tuple(name for name in COLORS if name not in ("grey", "bold", "red"))


@command("logs")
@click.argument("name", metavar="JOB|TASK")
@click.option("-f", "--follow", is_flag=True, help="Go on as more comes.")
@click.option("--tail", type=click.IntRange(min=0), default=100, help="Lines of the past (100).")
@click.option("--since", default="", help="Only what is younger, such as 10m.")
@click.option("-t", "--timestamps", is_flag=True, help="When each line was printed.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="One of the two only.")
@click.option("--no-prefix", is_flag=True, help="Do not say which task a line is from.")
def logs(
    settings: Settings, name: str, follow: bool, tail: int, since: str, timestamps: bool,
    stream: str | None, no_prefix: bool,
) -> None:  # fmt: skip
    """What a task prints, or all tasks of a job, from whichever node they are on."""
    client = settings.client
    job, task_id = job_of(client, name)
    tasks = [client.task(task_id)] if task_id is not None else _of_job(client, job)
    if not tasks:
        raise CommandError(NOT_FOUND, f"{job} has no task that ran", hint=f"cube why {job}")
    prefixed = not no_prefix and task_id is None

    def lines(task: TaskView, source: Client) -> Iterator[bytes]:
        return _lines(
            source.logs(
                task.id, streams=(stream,) if stream else (), tail=tail, since=since,
                follow=follow, timestamps=timestamps,
            )
        )  # fmt: skip

    printer = _Printer(settings, tasks, prefixed)
    if follow and len(tasks) > 1:
        _follow_all(settings, tasks[:FOLLOWED_MAX], lines, printer)
        return
    for task in tasks:
        for line in lines(task, client):
            printer.show(task, line)


def _of_job(client: Client, job: str) -> list[TaskView]:
    """Those that run or should; of a job that has ended, the last one of each slot."""
    tasks = [task for task in client.tasks(job) if task.node_id is not None]
    newest = {task.name: task for task in sorted(tasks, key=lambda task: task.created_at or "")}
    return present(tasks) or sorted(newest.values(), key=lambda task: (task.group, task.slot))


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines, without their ends."""
    rest = b""
    for piece in pieces:
        rest += piece
        *whole, rest = rest.split(b"\n")
        yield from whole
        while len(rest) > LINE_BYTES_MAX:
            yield rest[:LINE_BYTES_MAX]
            rest = rest[LINE_BYTES_MAX:]
    if rest:
        yield rest


class _Printer:
    """Lines with the name of their task, a colour for each; control characters made harmless on a
    terminal, bytes as they are otherwise."""

    def __init__(self, settings: Settings, tasks: list[TaskView], prefixed: bool) -> None:
        style = Style(settings)
        self._neutral = sys.stdout.isatty()
        self._json = settings.output == "json"
        self._prefix: dict[str, bytes] = {}
        width = max(len(f"{task.name}@{task.node_name}") for task in tasks)
        for number, task in enumerate(tasks):
            label = f"{task.name}@{task.node_name}".ljust(width)
            painted = style.paint(label, _PALETTE[number % len(_PALETTE)])
            self._prefix[task.id] = (painted + " ").encode() if prefixed else b""

    def show(self, task: TaskView, line: bytes) -> None:
        if self._json:
            text = line.decode(errors="replace")
            out(
                json.dumps({"task": task.name, "id": task.id, "node": task.node_name, "line": text})
            )
            return
        if self._neutral:
            line = clean(line.decode(errors="replace")).encode()
        sys.stdout.buffer.write(self._prefix[task.id] + line + b"\n")
        sys.stdout.buffer.flush()


def _follow_all(
    settings: Settings,
    tasks: list[TaskView],
    lines: Callable[[TaskView, Client], Iterator[bytes]],
    printer: _Printer,
) -> None:
    """Each task in a thread of its own, printed as it comes."""
    waiting: queue.Queue[tuple[TaskView, bytes | None]] = queue.Queue(QUEUE_LINES)

    def read(task: TaskView) -> None:
        source = settings.another_client()
        try:
            for line in lines(task, source):
                waiting.put((task, line))
        except ClientError as error:
            note(f"{task.name}: {error}")
        finally:
            waiting.put((task, None))

    for task in tasks:
        threading.Thread(target=read, args=(task,), daemon=True).start()
    open_ = len(tasks)
    while open_:
        task, line = waiting.get()
        if line is None:
            open_ -= 1
        else:
            printer.show(task, line)
