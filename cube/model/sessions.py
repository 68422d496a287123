"""A command that somebody runs beside a task: what is asked for, and what it says."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from cube.model.spec import ID_MAX

ROWS_DEFAULT, COLUMNS_DEFAULT = 24, 80  # of a terminal whose size nobody knows
SIDE_MAX = 10_000  # rows or columns: what is more is no terminal
ARGV_BYTES_MAX = 128 * 1024  # the kernel takes one argument of this size
TERM_CHARS_MAX = 64
PATH_CHARS_MAX = 4096  # the kernel takes no longer one

NOT_EXECUTABLE = 126  # the exit codes that every shell has for these
NOT_FOUND = 127


class FileOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a command is there for, so that a driver that can may do it without the command.

    `get`: a tar archive of `path` is its output, below the path's last part (all that is in the
    directory, when that is `.`). `put`: the archive that is its input is unpacked into the directory
    `path`. `look`: it exits with 0 when `path` is a directory, and its output is a FileOwner (or
    nothing). A path that is not absolute is below the task's working directory."""

    action: Literal["get", "put", "look"]
    path: str


class FileOwner(msgspec.Struct, frozen=True):
    """Who should own what is put into a task."""

    uid: Annotated[int, msgspec.Meta(ge=0, le=ID_MAX)] = 0
    gid: Annotated[int, msgspec.Meta(ge=0, le=ID_MAX)] = 0


class ExecOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tty`: it has a terminal of this size and kind, and one stream of output, stdout. `files`: what
    `argv` does."""

    argv: tuple[str, ...]
    files: FileOrder | None = None
    tty: bool = False
    rows: int = ROWS_DEFAULT
    columns: int = COLUMNS_DEFAULT
    term: str = ""

    def trouble(self) -> str:
        """Why nobody could run this, as a sentence; empty when somebody could."""
        if not self.argv or not self.argv[0]:
            return "argv is empty: there is no command"
        if any("\0" in word for word in (*self.argv, self.term)):
            return "a command cannot contain a NUL"
        if sum(len(word.encode(errors="replace")) + 1 for word in self.argv) > ARGV_BYTES_MAX:
            return f"the command is longer than {ARGV_BYTES_MAX} bytes"
        if not (0 < self.rows <= SIDE_MAX and 0 < self.columns <= SIDE_MAX):
            return f"rows and columns are 1 to {SIDE_MAX}"
        if len(self.term) > TERM_CHARS_MAX:
            return f"term is longer than {TERM_CHARS_MAX} characters"
        if self.files is not None:
            if "\0" in self.files.path or not 0 < len(self.files.path) <= PATH_CHARS_MAX:
                return f"files.path has 1 to {PATH_CHARS_MAX} characters, and no NUL"
            if self.tty:
                return "files do not come over a terminal"
        return ""


class ExecCaller(msgspec.Struct, frozen=True):
    """Who has a command run: as the cluster's history names them, their role and what their token is
    called, the address that they asked from, and the node that passed it on."""

    actor: str
    role: str = ""
    name: str = ""
    remote: str = ""
    through: str = ""


PROGRAM_CHARS_MAX = 100  # of a command, where it is told to others than who ran it
_NAME_BESIDE_FILES = 30  # of the program, beside the path of files
CALLER_CHARS_MAX = 250  # of each word on who ran it: a token's description has 200
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def program_of(order: ExecOrder) -> str:
    """What is told of a command to everybody who may look at the cluster: arguments may be secrets
    (`mysql -pPASSWORD`), and the log keeps what it was told. Where files are asked for, the driver
    decides whether the program runs at all: both are told."""
    if order.files is None:
        return one_line(order.argv[0], PROGRAM_CHARS_MAX)
    name, path = order.argv[0][:_NAME_BESIDE_FILES], order.files.path
    told = f"{name} (cube cp {order.files.action} {path}"
    return one_line(told, PROGRAM_CHARS_MAX - 1) + ")"


def one_line(text: str, chars_max: int) -> str:
    """Cut, and without control characters."""
    return _UNPRINTABLE.sub("?", text[:chars_max])


def is_one_line(text: str, chars_max: int) -> bool:
    """See one_line."""
    return len(text) <= chars_max and _UNPRINTABLE.search(text) is None


class ExecOutput(msgspec.Struct, frozen=True):
    stream: str  # stdout | stderr
    data: bytes


# What goes over the WebSocket of /v1/tasks/{task}/exec. Binary messages: to the task, input; from it,
# one byte for the stream and output. Text messages are JSON: first an ExecOrder, then these.

STREAM_BYTES = {"stdout": b"\x01", "stderr": b"\x02"}
MESSAGE_BYTES_MAX = 256 * 1024  # an order with the longest argv fits; pieces of output are smaller


class ToCommand(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`resize`: (rows, columns)."""

    resize: tuple[int, int] | None = None
    end_input: bool = False


class FromCommand(msgspec.Struct, frozen=True, omit_defaults=True):
    """`started`: output may follow. `ended`: the last message; `exit_code` None: nobody knows it, and
    `reason` says why. `problem`: it did not start, or cannot go on; the last message too."""

    started: bool = False
    ended: bool = False
    exit_code: int | None = None
    reason: str = ""
    problem: dict[str, object] | None = None
