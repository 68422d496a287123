"""Small files that are replaced whole, in a directory that one agent holds."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from cube.adapters import file_disk
from cube.adapters.file_disk import FileDisk
from cube.model.errors import Unavailable
from cube.ports.disk import Disk
from tests.fakes.disk import FakeDisk


@pytest.fixture(params=["file", "fake"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "fake":
        yield FakeDisk()
        return
    made = FileDisk(tmp_path / "data")
    yield made
    made.close()


def test_what_was_replaced_is_read(disk: Disk) -> None:
    assert disk.read("a.json") is None
    for data in (b"one", b"", b"a longer second one", bytes(range(256)) * 1000):
        disk.replace("a.json", data)
        assert disk.read("a.json") == data
    assert disk.read("b.json") is None


def test_names_may_have_directories(disk: Disk) -> None:
    disk.replace("a/b/c", b"x")
    assert disk.read("a/b/c") == b"x"


def test_what_was_deleted_is_not_there(disk: Disk) -> None:
    disk.delete("a")
    disk.replace("a", b"x")
    disk.delete("a")
    assert disk.read("a") is None


# What only a real one can show


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def files(place: Path) -> Iterator[FileDisk]:
    made = FileDisk(place)
    yield made
    made.close()


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x"])
def test_a_name_leads_nowhere_else(files: FileDisk, name: str) -> None:
    with pytest.raises(AssertionError):
        files.replace(name, b"x")


def test_only_its_owner_may_look(files: FileDisk, place: Path) -> None:
    files.replace("sub/a", b"x")
    for path, mode in ((place, 0o700), (place / "sub", 0o700), (place / "sub" / "a", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_what_a_crash_left_behind_is_not_read_and_does_no_harm(place: Path) -> None:
    disk = FileDisk(place)
    disk.replace("a", b"old")
    disk.close()
    (place / "a.new").write_bytes(b"half a fi")
    (place / "a.new").chmod(0o644)
    disk = FileDisk(place)
    assert disk.read("a") == b"old"
    disk.replace("a", b"new")
    assert disk.read("a") == b"new"
    assert stat.S_IMODE((place / "a").stat().st_mode) == 0o600
    assert sorted(path.name for path in place.iterdir()) == ["a", "lock"]
    disk.close()


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_content(
    files: FileDisk, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    files.replace("a", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(os, "open", full)
        else:
            patch.setattr(os, call, full)
        with pytest.raises(Unavailable, match="No space left"):
            files.replace("a", b"new")
    assert files.read("a") == b"old"
    files.replace("a", b"newer")
    assert files.read("a") == b"newer"


def test_it_is_on_disk_before_it_is_named_and_the_name_before_the_return(
    files: FileDisk, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(fd: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        order.append(f"sync {os.readlink(f'/proc/self/fd/{fd}')}" if is_directory else "sync file")
        fsync(fd)

    def noted_replace(old: str, new: str) -> None:
        order.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    files.replace("a", b"x")
    assert order == ["sync file", "rename", f"sync {place}"]
    order.clear()
    files.replace("sub/a", b"x")  # a directory that is not on disk itself holds nothing
    assert order == [f"sync {place}", "sync file", "rename", f"sync {place / 'sub'}"]


def test_an_unreadable_file_is_not_taken_for_an_absent_one(files: FileDisk, place: Path) -> None:
    (place / "a").mkdir()
    with pytest.raises(Unavailable):
        files.read("a")
    with pytest.raises(Unavailable):
        files.replace("a", b"x")
    with pytest.raises(Unavailable):
        files.delete("a")


def test_a_file_beyond_measure_is_damage(files: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_disk, "FILE_BYTES_MAX", 3)
    files.replace("a", b"123")
    assert files.read("a") == b"123"
    with pytest.raises(Unavailable, match="larger"):
        files.replace("a", b"1234")
    monkeypatch.setattr(file_disk, "FILE_BYTES_MAX", 2)
    with pytest.raises(Unavailable, match="larger"):
        files.read("a")


def test_a_directory_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match="cannot use data directory"):
        FileDisk(tmp_path / "file" / "data")


def test_one_agent_holds_the_directory(place: Path) -> None:
    first = FileDisk(place)
    with pytest.raises(Unavailable, match="another agent"):
        FileDisk(place)
    first.close()
    FileDisk(place).close()


HOLDER = """
    import subprocess, sys
    from pathlib import Path
    from cube.adapters.file_disk import FileDisk
    disk = FileDisk(Path(sys.argv[1]))
    child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def test_a_killed_agent_holds_nothing_and_its_children_neither(place: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(Unavailable, match="another agent"):
            FileDisk(place)
        holder.kill()
        holder.communicate()
        FileDisk(place).close()
    finally:
        os.kill(child, 9)
        holder.kill()
        holder.communicate()
