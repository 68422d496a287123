"""Differences of specs by path, in the job file's words."""

from __future__ import annotations

from cube.model.jobdiff import Change, spec_changes
from tests.fakes.cluster import job_spec


def paths(*changes: Change) -> dict[str, tuple[object, object]]:
    return {change.path: (change.old, change.new) for change in changes}


def test_the_same_spec_differs_in_nothing() -> None:
    assert spec_changes(job_spec(), job_spec()) == ()


def test_of_a_new_job_what_it_is_and_what_is_not_the_default() -> None:
    found = paths(
        *spec_changes(None, job_spec("shop", web={"env": {"A": "1"}, "resources": {"pids": 7}}))
    )
    assert found == {
        "name": (None, "shop"),
        "type": (None, "service"),
        "groups.web.count": (None, 1),
        "groups.web.driver": (None, "process"),
        "groups.web.command": (None, ["true"]),
        "groups.web.env.A": (None, "1"),
        "groups.web.resources.pids": (None, 7),
        "groups.web.ports.http.host": (None, 0),
        "groups.web.ports.http.protocol": (None, "tcp"),
        "groups.web.shutdown_delay": (None, 2.0),
    }


def test_tables_that_come_and_go_are_told_field_by_field() -> None:
    one = job_spec("shop", web={"env": {"A": "1", "B": "2"}})
    two = job_spec("shop", web={"env": {"A": "3"}, "ports": {"http": {}, "admin": {"host": 81}}})
    assert paths(*spec_changes(one, two)) == {
        "groups.web.env.A": ("1", "3"),
        "groups.web.env.B": ("2", None),
        "groups.web.ports.admin.host": (None, 81),
        "groups.web.ports.admin.protocol": (None, "tcp"),
    }


def test_a_group_that_comes_or_goes() -> None:
    one, two = job_spec("shop", a={}, b={"count": 2}), job_spec("shop", a={})
    gone = paths(*spec_changes(one, two))
    assert gone["groups.b.count"] == (2, None)
    assert paths(*spec_changes(two, one)) == {path: (new, old) for path, (old, new) in gone.items()}
    assert not any(path.startswith("groups.a") for path in gone)
