"""`cube cp`: files and directories between a task and this machine, through any node.

The other half is the engine of a container, which needs nothing in its image and can read and write all
of it; for a plain process `tar`, run beside it as `cube exec` would: with the rights of the task's user.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from cube.cli.archives import ArchiveRefused, Counts, pack, unpack
from cube.cli.context import Settings, command
from cube.cli.exits import FAILED, NOT_FOUND, USAGE, CommandError
from cube.cli.output import note, plural
from cube.client.client import Client
from cube.model.sessions import NOT_EXECUTABLE, ExecOrder, FileOrder, FileOwner
from cube.model.sessions import NOT_FOUND as NO_COMMAND
from cube.model.units import format_size

SAID_BYTES_MAX = 1024  # of who should own what is put into a task


class There(msgspec.Struct, frozen=True):
    task: str
    path: str


@command("cp")
@click.argument("source", metavar="TASK:PATH|LOCAL")
@click.argument("target", metavar="LOCAL|TASK:PATH")
def cp(settings: Settings, source: str, target: str) -> None:
    """Copy a file or directory out of a task, or into it. A PATH that is not absolute is below the
    task's working directory. Links that lead out of what is copied are left out."""
    one, other = _there(source), _there(target)
    if (one is None) == (other is None):
        raise CommandError(
            USAGE, "one of the two is TASK:PATH, the other a file here",
            hint="cube cp shop.web.0:log.txt .    cube cp page.html shop.web.0:/srv/",
        )  # fmt: skip
    client = settings.client
    if one is not None:
        counts = _from_task(client, one, Path(target))
    else:
        assert other is not None
        counts = _to_task(client, Path(source), other)
    left_out = f", {counts.skipped} devices or sockets left out" if counts.skipped else ""
    note(f"{plural(counts.files, 'file')}, {format_size(counts.bytes)}{left_out}")
    if counts.links:
        more = counts.links - len(counts.left_out)
        note(
            f"left out: {plural(counts.links, 'link')} to somewhere else: {', '.join(counts.left_out)}"
            + (f" and {more} more" if more else "")
        )


def _there(text: str) -> There | None:
    """TASK:PATH; None: a file here (`./a:b` is one, too)."""
    task, colon, path = text.partition(":")
    if not colon or "/" in task or not task or task.startswith("."):
        return None
    return There(task, path or ".")


def _from_task(client: Client, there: There, target: Path) -> Counts:
    path = there.path.rstrip("/") or "/"
    base = posixpath.basename(path)
    is_whole_directory = base in ("", ".", "..")
    directory = path if is_whole_directory else posixpath.dirname(path) or "."
    name = target.name
    into = target.parent
    if target.is_dir():
        into, name = (target.parent, target.name) if is_whole_directory else (target, base)
        if is_whole_directory and name in ("", ".."):
            into, name = target, ""
    if not into.is_dir():
        raise CommandError(NOT_FOUND, f"there is no directory {into} here")
    argv = ("tar", "-cf", "-", "-C", directory, "." if is_whole_directory else f"./{base}")
    asked = posixpath.join(path, ".") if is_whole_directory else path
    order = ExecOrder(argv=argv, files=FileOrder(action="get", path=asked))
    read, write = os.pipe()
    into = into.resolve()

    def work() -> Counts:
        with open(read, "rb") as archive:
            return unpack(archive, into, name, has_top=not is_whole_directory)

    return _converse(client, there, order, None, write, work, lambda: os.close(write))


def _to_task(client: Client, source: Path, there: There) -> Counts:
    if not os.path.lexists(source):
        raise CommandError(NOT_FOUND, f"there is no file {source} here")
    path = there.path
    is_directory, owner = _look(client, there)
    own = source.name or source.resolve().name
    if is_directory or path.endswith("/"):
        directory, name = path, own
    else:
        directory, name = posixpath.dirname(path) or ".", posixpath.basename(path)
    argv = ("tar", "-xof", "-", "-C", directory)
    order = ExecOrder(argv=argv, files=FileOrder(action="put", path=directory))
    read, write = os.pipe()

    def work() -> Counts:
        with open(write, "wb") as archive:
            return pack(source, name, archive, owner)

    return _converse(client, there, order, read, None, work, lambda: os.close(read))


def _look(client: Client, there: There) -> tuple[bool, FileOwner]:
    """Whether the path is a directory there, and who should own what is put into it."""
    look = FileOrder(action="look", path=there.path)
    order = ExecOrder(argv=("test", "-d", there.path), files=look)
    read, write = os.pipe()
    said: list[bytes] = []

    def listen() -> None:
        with open(read, "rb") as pipe:  # closed to who says more
            said.append(pipe.read(SAID_BYTES_MAX))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    code: int | None = None
    try:
        code = _run(client, there, order, None, write)
    except BrokenPipeError:
        pass  # no `test` says so much
    finally:
        os.close(write)
        listener.join()
    owner = FileOwner()
    with contextlib.suppress(msgspec.MsgspecError):  # without an engine nothing is said
        owner = msgspec.json.decode(said[0], type=FileOwner)
    return code == 0, owner


def _converse(
    client: Client, there: There, order: ExecOrder, stdin: int | None, stdout: int | None,
    work: Callable[[], Counts], close: Callable[[], None],
) -> Counts:  # fmt: skip
    """The task's tar and this machine's half run at the same time, a pipe between them: whichever is
    slower makes the other wait."""
    counts, failures = Counts(), list[Exception]()

    def run_half() -> None:
        nonlocal counts
        try:
            counts = work()
        except (ArchiveRefused, OSError) as error:
            failures.append(error)

    half = threading.Thread(target=run_half, daemon=True)
    half.start()
    code: int | None = None
    try:
        code = _run(client, there, order, stdin, stdout)
    except BrokenPipeError:
        pass  # our half has given up, and says why
    finally:
        close()
        half.join()
    refusal = next((error for error in failures if not isinstance(error, BrokenPipeError)), None)
    if isinstance(refusal, ArchiveRefused) and code in (0, None):
        raise CommandError(FAILED, str(refusal))
    if code not in (0, None):
        raise _tar_failed(there, code)
    if refusal is not None:
        raise CommandError(
            FAILED, f"{getattr(refusal, 'filename', '') or 'this machine'}: {refusal}"
        )
    return counts


def _tar_failed(there: There, code: int | None) -> CommandError:
    if code in (NO_COMMAND, NOT_EXECUTABLE):
        return CommandError(
            FAILED, f"{there.task} has no `tar`, which copying {there.path} needs",
            hint="the engine copies what is in the image, on volumes and on binds, not /proc and tmpfs",
        )  # fmt: skip
    return CommandError(FAILED, f"tar in {there.task} ended with code {code}; it says above why")


def _run(
    client: Client, there: There, order: ExecOrder, stdin: int | None, stdout: int | None
) -> int | None:
    conversation = client.exec(there.task, order)
    nothing = os.open(os.devnull, os.O_RDWR)
    wake, unused = os.pipe()
    try:
        outs = {1: nothing if stdout is None else stdout, 2: sys.stderr.fileno()}
        return conversation.run(stdin, outs, wake, lambda: None).exit_code
    finally:
        conversation.close()
        for fd in (nothing, wake, unused):
            os.close(fd)
