"""`cube cp`: what is packed comes out the same, and what a hostile task sends stays where it belongs."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from cube.cli.archives import READ_BYTES, ArchiveRefused, pack, unpack
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


Member = tuple[str, bytes, str]  # name, type, link


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
    (
        ("top", DIR, ""),
        ("top/a", SYM, "/etc"),
    ),
    (
        ("top", DIR, ""),
        ("top/a", SYM, "../../.."),
    ),
    (("top", SYM, ".."),),
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
    assert (tmp_path / "copy" / "f").stat().st_mode & 0o7000 == 0


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
