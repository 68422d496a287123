"""What supervisor and driver say to each other: the order, and the records of an attempt.

Stdlib only: supervisors import it (see supervisor.py).
"""

from __future__ import annotations

import errno
import os

VERSION = 1  # of every record; a supervisor may be older than the agent that reads it
READ_BYTES = 64 * 1024  # a pipe's default capacity

Order = dict[str, list[bytes]]


class ignoring:  # noqa: N801 - used as contextlib.suppress is, which costs each supervisor 3 ms
    """contextlib.suppress, without what contextlib imports."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self._kinds)


def pack(fields: list[tuple[str, bytes]]) -> bytes:
    """`key=value` fields, each ended by NUL, which neither argv nor an environment can contain."""
    return b"".join(key.encode() + b"=" + value + b"\0" for key, value in fields)


def unpack(order: bytes) -> Order:
    fields: Order = {}
    for field in order.split(b"\0")[:-1]:
        key, _, value = field.partition(b"=")
        fields.setdefault(key.decode(), []).append(value)
    return fields


def first(order: Order, key: str) -> str:
    return os.fsdecode(order[key][0]) if order.get(key) else ""


def read_all(fd: int) -> bytes:
    """The whole of a seekable file, whatever its position."""
    parts, offset = [], 0
    while part := os.pread(fd, READ_BYTES, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def to_json(record: dict[str, str | int | bool | None]) -> bytes:
    """A flat object. Text that is not ASCII is shown escaped: it is for people."""
    return b"{" + b",".join(quote(k) + b":" + _value(v) for k, v in record.items()) + b"}"


def _value(value: str | int | bool | None) -> bytes:
    if value is None:
        return b"null"
    if isinstance(value, bool):
        return b"true" if value else b"false"
    return str(value).encode() if isinstance(value, int) else quote(value)


def quote(text: str) -> bytes:
    plain = text.encode("ascii", "backslashreplace").decode()
    return (
        '"'
        + "".join(c if c >= " " and c not in '"\\\x7f' else f"\\u{ord(c):04x}" for c in plain)
        + '"'
    ).encode()


def write_new(path: str, content: bytes) -> bool:
    """The file exists with this content, whole; False when there was one already."""
    draft = f"{path}.{os.getpid()}"
    write_file(draft, content, os.O_CREAT | os.O_TRUNC)
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(draft)
    return True


def write_over(path: str, content: bytes) -> None:
    """The file has this content: readers see the old one or the new one."""
    draft = f"{path}.{os.getpid()}"
    write_file(draft, content, os.O_CREAT | os.O_TRUNC)
    os.rename(draft, path)


def write_file(path: str, content: bytes, flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o600)
    try:
        if os.write(fd, content) != len(content):
            raise OSError(errno.ENOSPC, "No space left on device", path)
    finally:
        os.close(fd)
