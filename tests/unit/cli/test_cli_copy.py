"""`cube cp`: what is packed comes out the same, and what a hostile task sends stays where it belongs."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import IO, cast

import pytest

from cube.cli.archives import LINKS_TOLD, READ_BYTES, ArchiveRefused, pack, unpack
from cube.cli.copy import There, _there


def tree(root: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Each path below with its mode, and its bytes or where it leads."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(root.rglob("*")):
        what: bytes | str | None = None
        if path.is_symlink():
            what = os.readlink(path)
        elif path.is_file():
            what = path.read_bytes()
        found[str(path.relative_to(root))] = (path.lstat().st_mode, what)
    return found


def make_source(root: Path) -> Path:
    source = root / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "big").write_bytes(os.urandom(3 * READ_BYTES + 17))
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    (source / "empty").touch()
    (source / "link").symlink_to("deep/er/big")
    os.link(source / "run", source / "same")
    return source


def test_what_is_packed_is_unpacked_under_the_new_name(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    out = io.BytesIO()
    packed = pack(source, "whatever", out)
    target = tmp_path / "target"
    target.mkdir()
    out.seek(0)
    unpacked = unpack(out, target, "copy")
    assert tree(target / "copy") == tree(source)
    assert packed.files == 3  # the second name of a file is none
    assert unpacked.bytes == packed.bytes
    out.seek(0)
    unpack(out, target, "copy")  # again, over what is there
    assert tree(target / "copy") == tree(source)


def test_one_file_replaces_one_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    out = io.BytesIO()
    pack(tmp_path / "a", "x", out)
    out.seek(0)
    assert unpack(out, tmp_path, "b").files == 1
    assert (tmp_path / "b").read_text() == "new"


@pytest.mark.parametrize("name", ["copy", ""])
def test_what_is_in_a_directory_is_unpacked_with_all_names(tmp_path: Path, name: str) -> None:
    """`cube cp TASK:. copy`, as tar writes it."""
    source = make_source(tmp_path)
    source.chmod(0o777)
    made = subprocess.run(["tar", "-cf", "-", "-C", source, "."], capture_output=True, check=True)
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    unpack(io.BytesIO(made.stdout), target, name, has_top=False)
    assert tree(target / name) == tree(source)
    assert target.stat().st_mode & 0o777 == 0o700  # it was here before


def test_what_nobody_can_have_is_refused_and_not_taken_for_done(tmp_path: Path) -> None:
    plain = tarfile.TarInfo("top")
    late, deep = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=late, mode="w", format=tarfile.PAX_FORMAT) as tar:
        plain.pax_headers = {"mtime": "1e300"}
        tar.addfile(plain)
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1
    deep.write((header.tobuf() + b"x".ljust(512, b"\0")) * 5_000)
    for hostile in (late, deep):
        hostile.seek(0)
        with pytest.raises(ArchiveRefused):
            unpack(hostile, tmp_path, "copy")
        assert list(tmp_path.iterdir()) == []


def test_a_file_with_holes_is_refused(tmp_path: Path) -> None:
    """Its archive is small, whatever it would take here."""
    out = io.BytesIO()
    info = tarfile.TarInfo("top")
    sparse = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "top"}
    info.pax_headers = {**sparse, "GNU.sparse.size": str(1 << 20), "GNU.sparse.map": "0,0"}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    out.seek(0)
    with pytest.raises(ArchiveRefused, match="has holes"):
        unpack(out, tmp_path, "copy")
    assert list(tmp_path.iterdir()) == []


Member = tuple[str, bytes, str]  # name, type, link


def header_then_zeros(kind: bytes, size: int, limit: int) -> IO[bytes]:
    """An archive whose first header says that a name of `size` bytes follows. Reading more than `limit`
    of it fails: that much is in memory then."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    head = info.tobuf(tarfile.USTAR_FORMAT)

    class Stream(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def read(self, count: int = -1) -> bytes:
            data = head if self.given == 0 else bytes(count)
            self.given += len(data)
            assert self.given <= limit, "it takes what it is given"
            return data

    return cast("IO[bytes]", Stream())


@pytest.mark.parametrize(
    "kind",
    [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
     tarfile.GNUTYPE_LONGLINK],
)  # fmt: skip
def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path, kind: bytes) -> None:
    stream = header_then_zeros(kind, 7 << 30, 4 << 20)
    with pytest.raises(ArchiveRefused, match="header of 7516192768 bytes"):
        unpack(stream, tmp_path, "y")


def test_maps_of_holes_are_not_read(tmp_path: Path) -> None:
    """Neither the old kind, which goes on from block to block, nor that of a file's first lines."""
    old = tarfile.TarInfo("x")
    old.type = tarfile.GNUTYPE_SPARSE
    blocks = bytearray(old.tobuf(tarfile.GNU_FORMAT))
    blocks[482] = 1  # more of the map follows
    blocks[148:156] = b"        "
    blocks[148:156] = b"%06o\0 " % sum(blocks)
    with pytest.raises(ArchiveRefused, match="has holes"):
        unpack(io.BytesIO(bytes(blocks) + bytes(1 << 16)), tmp_path, "y")
    out = io.BytesIO()
    new = tarfile.TarInfo("x")
    new.size = 1 << 20
    new.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x",
                       "GNU.sparse.realsize": "9"}  # fmt: skip
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(new, io.BytesIO(b"9999999\n" + b"0\n" * (1 << 19)))
    out.seek(0)
    with pytest.raises(ArchiveRefused, match="has holes"):
        unpack(out, tmp_path, "y")


def test_global_headers_do_not_pile_up(tmp_path: Path) -> None:
    out = io.BytesIO()
    for number in range(200):
        key, value = f"k{number}", "x" * 60_000
        out.write(tarfile.TarInfo.create_pax_global_header({key: value}))
        out.write(tarfile.TarInfo(f"x/{number}").tobuf())
    out.seek(0)
    with pytest.raises(ArchiveRefused, match="headers for all files"):
        unpack(out, tmp_path, "y")


def archive(*members: Member) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            data = b"evil" if kind == tarfile.REGTYPE else b""
            info.size, info.mode = len(data), 0o7777
            tar.addfile(info, io.BytesIO(data))
    out.seek(0)
    return out


DIR, FILE, SYM, HARD = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE

HOSTILE: list[tuple[Member, ...]] = [
    (("../evil", FILE, ""),),
    (("top/../../evil", FILE, ""),),
    (("/etc/evil", FILE, ""),),
    (("top", SYM, ".."),),
    (("top", SYM, "/etc"),),
    (("top", DIR, ""), ("top/a", SYM, "."), ("top/a/evil", FILE, "")),
    (("top", DIR, ""), ("top/d", DIR, ""), ("top/a", SYM, "d"), ("top/a/evil", FILE, "")),
    (("top", DIR, ""), ("top/a", HARD, "/etc/passwd")),
    (("top", DIR, ""), ("top/a", HARD, "../../secret")),
    (("top", DIR, ""), ("top/l", SYM, "d"), ("top/a", HARD, "top/l")),
]


@pytest.mark.parametrize("members", HOSTILE)
def test_nothing_leads_out_of_the_destination(tmp_path: Path, members: tuple[Member, ...]) -> None:
    (tmp_path / "secret").write_text("mine")
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    with pytest.raises(ArchiveRefused):
        unpack(archive(*members), inside, "copy")
    assert not list(tmp_path.rglob("evil"))
    assert (tmp_path / "secret").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "deep"}


@pytest.mark.parametrize("link", ["/etc", "/", "../../..", "../..", "here/..", "here/../here"])
def test_a_link_that_leads_out_is_left_out_and_the_rest_comes(tmp_path: Path, link: str) -> None:
    """Also what would lie behind it, or be its second name. Through `here`, which stays inside, `..`
    is the directory above."""
    inside = tmp_path / "inside"
    inside.mkdir()
    members = (
        ("top", DIR, ""), ("top/here", SYM, "."), ("top/a", SYM, link), ("top/b", HARD, "top/a"),
        ("top/a/evil", FILE, ""), ("top/z", FILE, ""),
    )  # fmt: skip
    counts = unpack(archive(*members), inside, "copy")
    assert (counts.files, counts.links) == (2, 2)
    assert counts.left_out == [f"top/a -> {link}", "top/b -> top/a"]
    copy = inside / "copy"
    assert not (copy / "a").is_symlink()
    assert (copy / "a" / "evil").read_bytes() == b"evil"  # in a directory of that name, here
    assert sorted(path.name for path in copy.iterdir()) == ["a", "here", "z"]
    assert {path.name for path in tmp_path.iterdir()} == {"inside"}


def test_of_many_links_a_few_are_told_and_their_names_are_harmless(tmp_path: Path) -> None:
    bad = "\x1b[2J" + "x" * 90
    members = [("top", DIR, ""), *((f"top/{number}{bad}", SYM, "/") for number in range(50))]
    counts = unpack(archive(*members), tmp_path, "copy")
    assert (counts.links, len(counts.left_out)) == (50, LINKS_TOLD)
    assert all("\x1b" not in told for told in counts.left_out)


def test_a_link_that_was_here_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    inside = tmp_path / "inside"
    (inside / "copy").mkdir(parents=True)
    (inside / "copy" / "d").symlink_to(tmp_path)
    with pytest.raises(ArchiveRefused):
        unpack(archive(("top/d/secret", FILE, "")), inside, "copy")
    (inside / "copy" / "f").symlink_to(tmp_path / "secret")
    unpack(archive(("top/f", FILE, "")), inside, "copy")  # replaces the link
    assert (tmp_path / "secret").read_text() == "mine"
    assert (inside / "copy" / "f").read_bytes() == b"evil"


def test_devices_are_left_out_and_no_file_is_setuid(tmp_path: Path) -> None:
    members = (("top", DIR, ""), ("top/dev", tarfile.CHRTYPE, ""), ("top/p", tarfile.FIFOTYPE, ""))
    counts = unpack(archive(*members, ("top/f", FILE, "")), tmp_path, "copy")
    assert (counts.files, counts.skipped) == (1, 2)
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["f"]
    for path in (tmp_path / "copy", tmp_path / "copy" / "f"):
        assert path.stat().st_mode & 0o7000 == 0


def test_what_is_cut_off_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(200_000))
    (tmp_path / "b").write_text("old")
    out = io.BytesIO()
    pack(tmp_path / "a", "x", out)
    for cut in (0, 300, 100_000):
        with pytest.raises(ArchiveRefused):
            unpack(io.BytesIO(out.getvalue()[:cut]), tmp_path, "b")
        assert (tmp_path / "b").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("shop.web.0:/etc/x", There("shop.web.0", "/etc/x")),
        ("shop.web.0:", There("shop.web.0", ".")),
        ("shop:a:b", There("shop", "a:b")),
        ("./a:b", None), ("/x/a:b", None), ("a", None), (".", None), (":x", None), ("..", None),
    ],
)  # fmt: skip
def test_which_of_the_two_is_in_a_task(text: str, found: There | None) -> None:
    assert _there(text) == found
