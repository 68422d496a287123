"""Archives of files, as they come through a pipe: packed from this machine, and unpacked onto it.

What is unpacked was made by a task, which may be anybody's: no name leads out of the destination,
none goes through a link, and nothing but files, directories and links that stay inside is made. A link
that leads elsewhere is left out, and told; what lay behind it comes if it is asked for by its own name.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from cube.model.sessions import FileOwner, one_line

READ_BYTES = 256 * 1024
# Of what stands before a file: its name, attributes and links. tarfile holds all of it in memory.
HEADER_BYTES_MAX = 64 * 1024  # an extended attribute of Linux has as much
GLOBAL_HEADERS_MAX = 64  # that hold for all files that follow
LINKS_TOLD = 5
NAME_CHARS_MAX = 200  # of a name that a task made, in a sentence
PART = ".cube-part"  # of a file that is not whole yet


class ArchiveRefused(Exception):
    """The sentence says what in it cannot be unpacked here."""


_HEADERS = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
     tarfile.GNUTYPE_LONGLINK}
)  # fmt: skip


class _Member(tarfile.TarInfo):
    """Refuses what tarfile would read into memory, however long it is, before it does. The two methods
    are those that it calls for each header; nothing else of it looks at a length so early."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > HEADER_BYTES_MAX:
            raise ArchiveRefused(f"the archive has a header of {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _with_holes(self.name)
        found: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return found

    def _proc_gnusparse_10(self, next_: tarfile.TarInfo, *_: object) -> None:
        raise _with_holes(next_.name)


def _with_holes(name: str) -> ArchiveRefused:
    return ArchiveRefused(f"{name[:200]!r} has holes: a few bytes would fill this disk")


class Counts(msgspec.Struct):
    files: int = 0
    bytes: int = 0
    skipped: int = 0  # devices, sockets and pipes
    links: int = 0  # that lead elsewhere, left out
    left_out: list[str] = []  # the first LINKS_TOLD of those, as "NAME -> WHERE"


def pack(source: Path, name: str, out: IO[bytes], owner: FileOwner | None = None) -> Counts:
    """An archive in which `source` is called `name`, and all belongs to `owner` (None: whoever unpacks
    it). Raises OSError."""
    counts = Counts()
    owner = owner or FileOwner()

    def note(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        info.uid, info.gid = owner.uid, owner.gid
        info.uname = info.gname = ""
        if not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
            counts.skipped += 1
            return None
        counts.files += info.isreg()
        counts.bytes += info.size
        return info

    with tarfile.open(fileobj=out, mode="w|", bufsize=READ_BYTES, format=tarfile.GNU_FORMAT) as tar:
        tar.add(source, name, filter=note)
    return counts


class Place(msgspec.Struct, frozen=True):
    """Where an archive goes: its top is called `name` in `directory`, empty: is that directory.
    `has_top`: each name in it begins with that of its top; else it is what is in a directory."""

    directory: Path
    name: str
    has_top: bool


def unpack(archive: IO[bytes], directory: Path, name: str, *, has_top: bool = True) -> Counts:
    """What is in the archive is below `directory`, as Place says. Raises ArchiveRefused, OSError."""
    counts = Counts()
    place = Place(directory, name, has_top)
    with _refusing():
        with tarfile.open(fileobj=archive, mode="r|", bufsize=READ_BYTES, tarinfo=_Member) as tar:
            for member in tar:
                if len(tar.pax_headers) > GLOBAL_HEADERS_MAX:
                    raise ArchiveRefused(f"more than {GLOBAL_HEADERS_MAX} headers for all files")
                tar.members.clear()  # type: ignore[attr-defined]  # or it remembers them all
                _unpack_one(tar, member, place, counts)
        while archive.read(READ_BYTES):  # what pads its end, or the sender would be cut off
            pass
    return counts


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        # The last three: times, names and numbers that nobody has, and headers of headers.
        raise ArchiveRefused(f"what came is no whole archive: {error}") from None


def _unpack_one(
    tar: tarfile.TarFile, member: tarfile.TarInfo, place: Place, counts: Counts
) -> None:
    directory, target = place.directory, _target(place, member.name)
    _check_parents(directory, target)
    if member.isdir():
        if not target.is_dir() or target.is_symlink():  # one that was here keeps its mode
            target.mkdir()
            target.chmod(member.mode & 0o777 | 0o700)
    elif member.issparse():
        raise _with_holes(member.name)
    elif member.isreg():
        source = tar.extractfile(member)
        assert source is not None, "a regular file has data"
        _write(source, target, member)
        counts.files += 1
        counts.bytes += member.size
    elif member.issym():
        if _stays_inside(directory, target, member.linkname):
            _make_way(target)
            target.symlink_to(member.linkname)
        elif target == directory / place.name:  # all that there is
            raise ArchiveRefused(
                f"{target.name} is a link to {member.linkname[:NAME_CHARS_MAX]!r}, which leads out of "
                "the archive: copy what it leads to"
            )
        else:
            _leave_out(member, counts)
    elif member.islnk():
        other = _target(place, member.linkname)
        _check_parents(directory, other)
        try:
            mode = os.lstat(other).st_mode
        except FileNotFoundError:  # a second name of what was left out
            _leave_out(member, counts)
            return
        if not stat.S_ISREG(mode):
            raise ArchiveRefused(f"{member.name[:NAME_CHARS_MAX]!r} is a link to what is no file")
        _make_way(target)
        os.link(other, target)
        counts.files += 1
    else:
        counts.skipped += 1


def _target(place: Place, member: str) -> Path:
    """Where a member goes. Raises ArchiveRefused for a name that leads elsewhere."""
    parts = [part for part in member.split("/") if part not in ("", ".")]
    if member.startswith("/") or ".." in parts or "\0" in member:
        raise ArchiveRefused(f"the archive has a file {member[:200]!r}, which leads out of it")
    return place.directory.joinpath(place.name, *parts[place.has_top :])


def _check_parents(directory: Path, target: Path) -> None:
    """Every directory between the two is one, and no link. Those that are missing are made."""
    step = directory
    for part in target.relative_to(directory).parts[:-1]:
        step = step / part
        try:
            mode = os.lstat(step).st_mode
        except FileNotFoundError:
            step.mkdir()
            continue
        if not stat.S_ISDIR(mode):
            raise ArchiveRefused(f"{step} is no directory here, so nothing is put into it")


def _stays_inside(directory: Path, target: Path, link: str) -> bool:
    where = os.path.normpath(os.path.join(os.path.dirname(target), link))
    inside = os.path.commonpath([where, str(directory)]) == str(directory)
    parts = [part for part in link.split("/") if part not in ("", ".")]
    # Behind a name, which may be a link, .. leads elsewhere than it seems.
    turns = any(part == ".." and before != ".." for before, part in itertools.pairwise(parts))
    return inside and not turns and not os.path.isabs(link)


def _leave_out(member: tarfile.TarInfo, counts: Counts) -> None:
    counts.links += 1
    if len(counts.left_out) < LINKS_TOLD:
        told = f"{member.name} -> {member.linkname}"
        counts.left_out.append(one_line(told, NAME_CHARS_MAX))


def _make_way(target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        target.unlink()


def _write(source: IO[bytes], target: Path, member: tarfile.TarInfo) -> None:
    """The file is whole, or as it was before."""
    if target.is_dir() and not target.is_symlink():
        raise ArchiveRefused(f"{target} is a directory here, and a file there")
    part = target.with_name(target.name + PART)
    _make_way(part)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(part, flags, 0o600), "wb") as file:
            left = member.size
            while left:
                data = source.read(min(left, READ_BYTES))
                if not data:
                    raise ArchiveRefused(f"{member.name!r} is cut off")
                file.write(data)
                left -= len(data)
            os.fchmod(file.fileno(), member.mode & 0o777)
        os.utime(part, (member.mtime, member.mtime))
        os.rename(part, target)
    except BaseException:
        _make_way(part)
        raise
