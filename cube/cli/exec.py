"""`cube exec`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Any

import click

from cube.cli.context import Settings, command
from cube.cli.exits import CONFLICT, FAILED, NOT_FOUND, USAGE, CommandError
from cube.cli.output import clean, note
from cube.cli.why import job_of
from cube.client.client import Client
from cube.model.sessions import COLUMNS_DEFAULT, ROWS_DEFAULT, ExecOrder

SHELL = ("sh",)  # what a terminal gets when no command is said
REASON_CHARS_MAX = 500  # of the agent's sentence on the end
_ENDS = (signal.SIGTERM, signal.SIGHUP)


@command("exec", context_settings={"allow_interspersed_args": False})
@click.option(
    "-t/-T",
    "--tty/--no-tty",
    "is_terminal",
    default=None,
    help="With a terminal, or without (default: when in- and output are one).",
)
@click.option("-i", "interactive", is_flag=True, hidden=True, help="As ever.")
@click.option("-n", "--no-stdin", is_flag=True, help="It reads nothing of this command's input.")
@click.argument("name", metavar="TASK")
@click.argument("argv", metavar="[--] COMMAND...", nargs=-1, type=click.UNPROCESSED)
def exec_command(
    settings: Settings, is_terminal: bool | None, interactive: bool, no_stdin: bool, name: str,
    argv: tuple[str, ...],
) -> int:  # fmt: skip
    """Run a command in a task: in its container, or as its process runs, from any node.

    Input is passed on, and so is the exit code. Without a command, a terminal gets `sh`. A job's name
    will do when it has one running task."""
    if argv[:1] == ("--",):
        argv = argv[1:]
    can = sys.stdin.isatty() and sys.stdout.isatty() and not no_stdin
    with_terminal = can if is_terminal is None else is_terminal
    if not argv and not with_terminal:
        raise CommandError(USAGE, "what should run?", hint=f"cube exec {name} -- COMMAND")
    rows, columns = _size()
    order = ExecOrder(
        argv=argv or SHELL, tty=with_terminal, rows=rows, columns=columns,
        term=os.environ.get("TERM", "")[:64] if with_terminal else "",
    )  # fmt: skip
    if trouble := order.trouble():
        raise CommandError(USAGE, trouble)
    client = settings.client
    task_id = _task_of(client, name)
    conversation = client.exec(task_id, order)
    with contextlib.closing(conversation), _wake_ups() as wake:

        def on_wake() -> None:
            if with_terminal:
                conversation.resize(*_size())

        outs = {1: sys.stdout.fileno(), 2: sys.stderr.fileno()}
        stdin = None if no_stdin else sys.stdin.fileno()
        with _raw(with_terminal and sys.stdin.isatty()):
            ended = conversation.run(stdin, outs, wake, on_wake)
    reason = ended.reason[:REASON_CHARS_MAX]
    if ended.exit_code is None:
        raise CommandError(FAILED, "the command's exit code is not known", reason)
    if reason:
        note(f"cube: {clean(reason)}")
    return ended.exit_code


def _task_of(client: Client, name: str) -> str:
    job, task_id = job_of(client, name)
    if task_id is not None:
        return task_id
    running = [task for task in client.tasks(job, state="running")]
    if not running:
        raise CommandError(NOT_FOUND, f"{job} has no running task", hint=f"cube why {job}")
    if len(running) > 1:
        names = [task.name for task in running]
        raise CommandError(
            CONFLICT, f"{job} has {len(running)} running tasks", ", ".join(names[:10]),
            f"cube exec {names[0]} -- COMMAND",
        )  # fmt: skip
    return running[0].id


def _size() -> tuple[int, int]:
    """Rows and columns of this terminal."""
    columns, rows = shutil.get_terminal_size((COLUMNS_DEFAULT, ROWS_DEFAULT))
    return max(1, rows), max(1, columns)


@contextlib.contextmanager
def _raw(wanted: bool) -> Iterator[None]:
    """Keys go through as they are typed; however it ends, the terminal is as it was."""
    if not wanted:
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _wake_ups() -> Iterator[int]:
    """A descriptor that can be read when the terminal's size has changed. Signals that end this
    program raise meanwhile, so that it ends in order."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before: dict[int, Any] = {number: signal.signal(number, end) for number in _ENDS}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
    fd_before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(ours)
        os.close(theirs)
