"""What is written for a limit, in a directory that stands in for the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cube.adapters.process.cgroups import Limits, detect, quota_us, shares, weight
from cube.adapters.process.host import cgroup_pids, kill_round, oom_kills
from cube.model.errors import DriverFailed

LIMITS = Limits(
    cpu_milli=250,
    cpu_max_milli=1500,
    memory_bytes=64 << 20,
    memory_limit_bytes=128 << 20,
    pids=100,
)


def written(directory: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in Path(directory).iterdir()}


def test_version_1_has_a_group_in_each_hierarchy(tmp_path: Path) -> None:
    for controller in ("cpu", "memory", "pids", "freezer"):
        (tmp_path / controller).mkdir()
    groups = detect(tmp_path, "cube", "node-1")
    assert (groups.version, groups.controllers) == ("1", ("cpu", "memory", "pids"))
    made = groups.create("task.1", LIMITS)
    assert made == [str(tmp_path / c / "cube/node-1/task.1") for c in ("cpu", "memory", "pids")]
    assert written(made[0]) == {
        "cpu.shares": "256",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "150000",
    }
    assert written(made[1]) == {
        "memory.soft_limit_in_bytes": str(64 << 20),
        "memory.limit_in_bytes": str(128 << 20),
        "memory.memsw.limit_in_bytes": str(128 << 20),
    }
    assert written(made[2]) == {"pids.max": "100"}
    assert list(groups.leftovers()) == ["task.1"]


def test_version_1_does_with_what_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    groups = detect(tmp_path, "cube", "node-1")
    assert (groups.version, groups.controllers) == ("1", ("pids",))
    assert "not mounted" in groups.reason
    assert groups.create("task.1", LIMITS) == [str(tmp_path / "pids/cube/node-1/task.1")]


def test_version_2_has_one_group_and_passes_the_controllers_down(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    groups = detect(tmp_path, "cube", "node-1")
    assert (groups.version, groups.controllers) == ("2", ("cpu", "memory", "pids"))
    for above in (tmp_path, tmp_path / "cube", tmp_path / "cube/node-1"):
        assert (above / "cgroup.subtree_control").read_text() == "+pids"  # each by itself: the last
    made = groups.create("task.1", LIMITS)
    assert made == [str(tmp_path / "cube/node-1/task.1")]
    assert written(made[0]) == {
        "cpu.weight": "10",
        "cpu.max": "150000 100000",
        "memory.low": str(64 << 20),
        "memory.max": str(128 << 20),
        "memory.swap.max": "0",
        "pids.max": "100",
    }


def test_version_2_does_with_the_controllers_that_are_offered(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("hugetlb pids")
    groups = detect(tmp_path, "cube", "node-1")
    assert groups.controllers == ("pids",)
    assert written(groups.create("task.1", LIMITS)[0]) == {"pids.max": "100"}


def test_no_limit_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    made = detect(tmp_path, "cube", "node-1").create("task.1", Limits())
    assert written(made[0]) == {}


def test_a_host_without_groups_says_why(tmp_path: Path) -> None:
    groups = detect(tmp_path / "none", "cube", "node-1")
    assert (groups.version, groups.controllers) == ("none", ())
    assert "not mounted" in groups.reason
    assert groups.create("task.1", LIMITS) == []
    assert list(groups.leftovers()) == []


def test_a_host_that_does_not_let_us_says_why(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "cube").write_text("in the way")
    groups = detect(tmp_path, "cube", "node-1")
    assert groups.version == "none"
    assert "cannot use" in groups.reason


@pytest.mark.parametrize(
    ("cpu_milli", "wanted_shares", "wanted_weight"),
    [
        (1, 2, 1),
        (100, 102, 4),
        (1000, 1024, 39),
        (256_000, 262_144, 10_000),
        (10**9, 262_144, 10_000),
    ],
)
def test_shares_of_a_core(cpu_milli: int, wanted_shares: int, wanted_weight: int) -> None:
    assert (shares(cpu_milli), weight(cpu_milli)) == (wanted_shares, wanted_weight)


def test_the_kernel_gets_no_quota_below_its_least() -> None:
    assert [quota_us(milli) for milli in (1, 10, 200, 2000)] == [1000, 1000, 20_000, 200_000]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
    ],
)
def test_both_versions_tell_of_kills_for_memory(tmp_path: Path, file: str, text: str) -> None:
    assert oom_kills([str(tmp_path)]) == 0
    (tmp_path / file).write_text(text)
    assert oom_kills([str(tmp_path / "absent"), str(tmp_path)]) == 2


def test_killing_a_group_first_stops_it_from_forking(tmp_path: Path) -> None:
    for name in ("pids.max", "cgroup.kill", "cgroup.procs"):
        (tmp_path / name).write_text("")
    kill_round(set(), [str(tmp_path)])
    assert (tmp_path / "pids.max").read_text() == "0"
    assert (tmp_path / "cgroup.kill").read_text() == "1"


def test_a_limit_that_cannot_be_written_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    groups = detect(tmp_path, "cube", "node-1")
    (tmp_path / "pids/cube/node-1/task.1/pids.max").mkdir(parents=True)
    with pytest.raises(DriverFailed) as failed:
        groups.create("task.1", LIMITS)
    assert failed.value.code == "limits_not_set"
    assert "pids.max to '100'" in failed.value.message


def test_members_are_read_from_all_hierarchies(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("12\n345\n")
    assert cgroup_pids([str(tmp_path), str(tmp_path / "absent")]) == {12, 345}
