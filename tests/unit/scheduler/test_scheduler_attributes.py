"""Constraint operators: numbers as numbers, versions as versions, else text."""

from __future__ import annotations

import pytest

from cube.model.cluster import Node
from cube.model.launch import DriverInfo
from cube.model.spec import DriverName, GroupSpec, Operator
from cube.scheduler.attributes import PATTERN_CHARS_MAX, attribute, matches
from cube.scheduler.filters import lacks_permission, permissions
from tests.builders import facts


@pytest.mark.parametrize(
    ("have", "operator", "value", "expected"),
    [
        ("ssd", "==", "ssd", True),
        ("ssd", "==", "hdd", False),
        (None, "==", "ssd", False),
        (None, "!=", "ssd", True),
        ("ssd", "!=", "ssd", False),
        ("9", "<", "10", True),
        ("9", ">", "10", False),
        ("1.50", "==", "1.5", True),
        ("20.10.24", ">=", "20.10.3", True),
        ("20.10.3", ">=", "20.10.24", False),
        ("20.10", "<", "20.10.1", True),
        ("27", ">", "20.10.24", True),
        ("v1.2.3", "<=", "1.2.3", True),
        ("5.4.0-91-generic", ">=", "5.4", True),
        ("1.2.3-rc1", "<", "1.2.3-rc2", True),
        ("20.10.24+dfsg1", "==", "20.10.24", True),
        ("v3", "<", "3.0.1", True),
        ("-3", "<", "2", True),
        ("9" * 5000 + ".1", ">", "1.2", True),  # text
        ("b", ">", "a", True),
        ("9", "<", "a", True),  # text, as one of them is no number
        (None, "<", "10", False),
        (None, ">=", "10", False),
        ("a", "in", ("a", "b"), True),
        ("1.0", "in", ("1", "2"), True),
        ("c", "in", ("a", "b"), False),
        (None, "in", ("a",), False),
        ("c", "not_in", ("a", "b"), True),
        (None, "not_in", ("a",), True),
        ("zone-a1", "matches", "^zone-[ab]", True),
        ("zone-c1", "matches", "^zone-[ab]", False),
        (None, "matches", ".*", False),
        ("x", "matches", "(", False),
        ("x", "matches", "x" * (PATTERN_CHARS_MAX + 1), False),
        ("", "exists", "", True),
        (None, "exists", "", False),
        (None, "not_exists", "", True),
        ("x", "not_exists", "", False),
    ],
)
def test_operators(
    have: str | None, operator: str, value: str | tuple[str, ...], expected: bool
) -> None:
    assert matches(have, Operator(operator), value) is expected


def test_attributes() -> None:
    docker = DriverInfo("docker", True, "", {"version": "20.10.24"})
    one = facts(
        "n",
        labels={"disk": "ssd", "zone": "a"},
        attributes={"node.os": "linux", "node.arch": "x86_64"},
        drivers={"docker": docker, "process": DriverInfo("process", False, "off")},
    )
    node = Node(id=one.id, name="named", facts=one, labels={"zone": "b"})
    table = {
        "node.id": "id-n",
        "node.name": "named",
        "node.os": "linux",
        "node.arch": "x86_64",
        "node.labels.disk": "ssd",
        "node.labels.zone": "b",
        "node.labels.none": None,
        "driver.docker": "true",
        "driver.process": "false",
        "driver.docker.version": "20.10.24",
        "driver.docker.none": None,
        "driver.none.version": None,
        "nonsense": None,
    }
    assert {name: attribute(node, name) for name in table} == table


@pytest.mark.parametrize(
    ("user", "allow", "is_refused"),
    [
        ("", "", False),
        ("nobody", "user:nobody", False),
        ("nobody:daemon", "user:nobody", False),
        ("nobody", None, False),
        ("root", "", True),
        ("root:daemon", "", True),
        ("nobody:root", "", True),
        ("0", "", True),
        ("000:1", "", True),
        ("1:0", "", True),
        ("root", "root", False),
        ("root", None, False),  # an agent that is not root itself, or of an older release
    ],
)
def test_root_is_placed_where_the_node_allows_it(
    user: str, allow: str | None, is_refused: bool
) -> None:
    attributes = {} if allow is None else {"allow": allow}
    info = DriverInfo("process", True, attributes=attributes)
    one = facts("n", drivers={"process": info})
    group = GroupSpec(driver=DriverName.PROCESS, command=("x",), user=user)
    asked = permissions(group)
    lacks = lacks_permission(Node(id=one.id, name="n", facts=one), "process", asked)
    assert lacks == (("root",) if is_refused else ())
    wanted = GroupSpec(driver=DriverName.PROCESS, command=("x",), user="alice")
    lacks = lacks_permission(Node(id=one.id, name="n", facts=one), "process", permissions(wanted))
    assert lacks == (() if allow in (None, "root") else ("user:alice",))
