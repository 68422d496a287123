"""What a host says of itself is what constraints find."""

from __future__ import annotations

from pathlib import Path

import pytest

from cube.adapters import host
from cube.model import commands as c
from cube.model.spec import Constraint, Operator, Placement
from cube.scheduler.attributes import attribute
from cube.scheduler.plan import Scheduler
from tests.builders import Machine, facts, group, job


def test_the_facts_are_there(tmp_path: Path) -> None:
    found = host.attributes()
    assert sorted(found) == ["node.arch", "node.cores", "node.kernel", "node.os"]
    assert all(found.values())
    assert host.capacity(tmp_path).cpu_milli == int(found["node.cores"]) * 1000
    stats = host.stats(tmp_path, 7)
    assert (stats.applied_index, stats.cpu_cores) == (7, int(found["node.cores"]))
    assert 0 < stats.memory_used_bytes <= stats.memory_total_bytes


@pytest.mark.parametrize(
    ("machine", "arch"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")]
)
def test_architectures_have_the_names_that_images_have(
    monkeypatch: pytest.MonkeyPatch, machine: str, arch: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert host.attributes()["node.arch"] == arch


@pytest.mark.parametrize(
    ("name", "operator", "value", "is_placed"),
    [
        ("node.os", Operator.EQ, "linux", True),
        ("node.os", Operator.EQ, "plan9", False),
        ("node.arch", Operator.EXISTS, "", True),
        ("node.cores", Operator.GE, "1", True),
        ("node.cores", Operator.GT, "100000", False),
        ("node.kernel", Operator.GE, "1.0", True),
    ],
)
def test_constraints_find_them(name: str, operator: Operator, value: str, is_placed: bool) -> None:
    machine = Machine()
    machine.do(c.RegisterNode(facts("n1", attributes=host.attributes())))
    (node,) = machine.state.nodes.values()
    assert attribute(node, name)
    wish = Placement(constraints=(Constraint(name, operator, value),))
    machine.submit(job("web", {"g": group(placement=wish)}))
    plan = Scheduler().plan(machine.state, machine.now_ms, 1, "seed")
    placed = 0 if plan.command is None else len(plan.command.placements)
    assert placed == is_placed
