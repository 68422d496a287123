"""Where secrets and configs are put on a host, and whom nobody gives them to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from cube.adapters import task_files
from cube.adapters.docker_engine.file_mounts import owner_of
from cube.adapters.task_files import TaskFiles
from cube.model.errors import DriverFailed
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Launch, LaunchFile, LaunchValue
from cube.model.stored import StoredKind, StoredRef

NODE = NodeId("node-1")
TASK = TaskId("task-1")
IS_ROOT = os.geteuid() == 0


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A directory that passes for a tmpfs."""
    monkeypatch.setattr(task_files, "_is_memory", lambda root: root == str(tmp_path))
    return str(tmp_path)


def launch(*files: LaunchFile, task_id: TaskId = TASK) -> Launch:
    return Launch(
        cluster_id=ClusterId("c"), node_id=NODE, task_id=task_id, task_name="j.g.0", job="j",
        group="g", attempt=1, files=files,
    )  # fmt: skip


def file(name: str = "f", mode: int = 0o400, uid: int | None = None, gid: int | None = None,
         data: bytes = b"value") -> LaunchFile:  # fmt: skip
    value = LaunchValue(StoredRef(StoredKind.SECRET, "s"), 1)
    return LaunchFile(value=value, target=name, mode=mode, uid=uid, gid=gid, data=data)


def test_directories_can_be_passed_and_not_listed_whatever_the_umask(memory: str) -> None:
    old = os.umask(0o077)
    try:
        ((_, path),) = TaskFiles(NODE, "process", [memory]).write(launch(file()), None)
    finally:
        os.umask(old)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"value", 0o400)
    for directory in list(path.parents)[:6]:
        assert stat.S_IMODE(directory.stat().st_mode) in (0o711, 0o700, 0o755), directory
    assert [stat.S_IMODE(parent.stat().st_mode) for parent in list(path.parents)[:6]] == [0o711] * 6


def test_files_of_containers_are_numbered_for_names_may_meet(memory: str) -> None:
    written = TaskFiles(NODE, "docker", [memory]).write(
        launch(file("/a/key", data=b"1"), file("/b/key", data=b"2")), None
    )
    assert [(path.name, path.read_bytes()) for _, path in written] == [("0", b"1"), ("1", b"2")]


def test_without_memory_nothing_is_written_and_it_says_why(tmp_path: Path) -> None:
    files = TaskFiles(NODE, "process", [str(tmp_path / "none")])
    with pytest.raises(DriverFailed, match="need a tmpfs") as caught:
        _ = files.write(launch(file()), None)
    assert (caught.value.code, caught.value.transient) == ("no_memory_files", False)
    assert files.write(launch(), None) == []  # who needs none is not held up


def test_disks_are_no_memory_and_shm_is() -> None:
    assert not task_files._is_memory("/proc")
    assert not task_files._is_memory("/")
    assert task_files._is_memory("/dev/shm") or not Path("/dev/shm").is_mount()


@pytest.mark.parametrize("depth", [1, 2])
def test_what_others_made_before_us_leads_no_sweep_to_other_things_of_ours(
    memory: str, tmp_path_factory: pytest.TempPathFactory, depth: int
) -> None:
    """/dev/shm is everybody's: `docker` in /var/lib is root's as well."""
    elsewhere = tmp_path_factory.mktemp("lib")
    parts = (f"cube-{os.geteuid()}", NODE, "docker")
    precious = elsewhere.joinpath(*parts[depth:], "image")
    precious.mkdir(parents=True)
    link = Path(memory, *parts[:depth])
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    files = TaskFiles(NODE, "docker", [memory])
    files.sweep(lambda _: False)
    files.remove(TaskId("image"))
    assert precious.is_dir()


@pytest.mark.skipif(not IS_ROOT, reason="only root can make what is another user's")
def test_a_directory_of_another_user_on_the_way_is_not_swept(memory: str) -> None:
    home = Path(memory, f"cube-{os.geteuid()}", NODE, "docker")
    (home / "image").mkdir(parents=True)
    os.chown(home.parent.parent, 12345, -1)
    TaskFiles(NODE, "docker", [memory]).sweep(lambda _: False)
    assert (home / "image").is_dir()


def test_what_others_made_before_us_is_not_used(memory: str) -> None:
    trap = Path(memory, f"cube-{os.geteuid()}")
    trap.mkdir()
    trap.chmod(0o777)
    with pytest.raises(DriverFailed, match="not this agent's"):
        _ = TaskFiles(NODE, "process", [memory]).write(launch(file()), None)
    trap.rmdir()
    elsewhere = Path(memory, "elsewhere")
    elsewhere.mkdir()
    trap.symlink_to(elsewhere)
    with pytest.raises(DriverFailed, match="not this agent's"):
        _ = TaskFiles(NODE, "process", [memory]).write(launch(file()), None)
    TaskFiles(NODE, "process", [memory]).sweep(lambda _: False)
    assert list(elsewhere.iterdir()) == []


def test_a_task_that_fails_half_way_leaves_nothing(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fchmod", _no_space)
    with pytest.raises(DriverFailed, match="No space left") as caught:
        _ = TaskFiles(NODE, "process", [memory]).write(launch(file()), None)
    assert caught.value.transient
    assert [path for path in Path(memory).rglob("*") if path.is_file()] == []


def _no_space(_fd: int, _mode: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.skipif(not IS_ROOT, reason="only root gives files away")
def test_root_gives_each_file_to_whom_it_is_for(memory: str) -> None:
    written = TaskFiles(NODE, "docker", [memory]).write(
        launch(file("/a"), file("/b", uid=7), file("/c", uid=7, gid=8)), (101, 102)
    )
    owners = [(path.stat().st_uid, path.stat().st_gid) for _, path in written]
    assert owners == [(101, 102), (7, 102), (7, 8)]


def test_who_is_not_root_gives_nothing_away(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(memory, "cube-4321")
    home.mkdir(mode=0o711)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    monkeypatch.setattr(task_files, "_is_ours", lambda _: True)
    files = TaskFiles(NODE, "docker", [memory])
    with pytest.raises(DriverFailed, match=r'mode = "0444"') as caught:
        _ = files.write(launch(file("/a")), (101, 101))
    assert caught.value.code == "owner_not_allowed"
    with pytest.raises(DriverFailed):
        _ = files.write(launch(file("/a", mode=0o444, uid=7)), None)
    assert len(files.write(launch(file("/a", mode=0o444)), (101, 101))) == 1


def test_a_node_without_such_tasks_has_no_directory(memory: str) -> None:
    docker, process = (TaskFiles(NODE, driver, [memory]) for driver in ("docker", "process"))
    home = Path(memory, f"cube-{os.geteuid()}", NODE)
    _ = docker.write(launch(file("/a")), None), process.write(launch(file("a")), None)
    docker.remove(TASK)
    assert [path.name for path in home.iterdir()] == ["process"]
    process.remove(TASK)
    assert not home.exists()
    assert len(docker.write(launch(file("/a")), None)) == 1


def test_a_sweep_leaves_what_is_known(memory: str) -> None:
    files = TaskFiles(NODE, "docker", [memory])
    for task_id in (TASK, TaskId("task-2")):
        _ = files.write(launch(file("/a"), task_id=task_id), None)
    files.sweep(lambda task_id: task_id == TASK)
    names = [path.name for path in Path(memory, f"cube-{os.geteuid()}", NODE, "docker").iterdir()]
    assert names == [TASK]


def test_of_removed_nodes_nothing_is_left(memory: str) -> None:
    gone, alive = NodeId("removed"), NodeId("alive")
    for node_id in (gone, alive):
        _ = TaskFiles(node_id, "docker", [memory]).write(launch(file("/a")), None)
    _ = TaskFiles(gone, "process", [memory]).write(launch(file("a")), None)
    TaskFiles(NODE, "docker", [memory]).reap({gone, NodeId("../alive"), NodeId("never-here")})
    left = sorted(str(path.relative_to(memory)) for path in Path(memory).glob("*/*/*"))
    assert left == [f"cube-{os.geteuid()}/alive/docker", f"cube-{os.geteuid()}/removed/process"]


@pytest.mark.parametrize(
    ("user", "owner"),
    [
        ("", None), ("nginx", None), ("nginx:1", None), ("101", (101, 0)), ("101:102", (101, 102)),
        ("4294967295", None), ("1:99999999999", None),
    ],
)  # fmt: skip
def test_whom_a_container_s_files_are_for(user: str, owner: tuple[int, int] | None) -> None:
    assert owner_of(user) == owner


def test_no_repr_shows_a_value() -> None:
    canary = msgspec.structs.replace(
        launch(file(data=b"canary")), env={"A": "canary"}, login="canary"
    )
    assert "canary" not in repr(canary) + repr(canary.files)
