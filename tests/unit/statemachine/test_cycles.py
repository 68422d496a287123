"""depends_on in a circle across jobs: refused with its path when the last of them is submitted."""

from __future__ import annotations

import pytest

from cube.model.outcome import JobAccepted, Rejected, RejectReason
from cube.model.spec import JobSpec
from cube.statemachine.cycles import PATH_SHOWN_MAX
from tests.builders import Machine, group, job


def waiting(name: str, **groups: str) -> JobSpec:
    """Each group with what it depends on, separated by blanks."""
    return job(name, {g: group(depends_on=tuple(names.split())) for g, names in groups.items()})


def submit_all(*specs: JobSpec) -> Rejected | None:
    """The refusal of the last; the others are accepted."""
    machine = Machine("a")
    for spec in specs[:-1]:
        assert isinstance(machine.submit(spec), JobAccepted)
    before = machine.state.jobs
    outcome = machine.submit(specs[-1])
    if isinstance(outcome, Rejected):
        assert machine.state.jobs is before
        return outcome
    return None


@pytest.mark.parametrize(
    ("specs", "path"),
    [
        ([waiting("a", g="b/g"), waiting("b", g="a/g")], "b/g → a/g → b/g"),
        (
            [waiting("a", g="b/g"), waiting("b", g="c/x"), waiting("c", x="y", y="a/g")],
            "c/x → c/y → a/g → b/g → c/x",
        ),
        # The way to the circle is not part of it.
        (
            [waiting("a", g="b/g"), waiting("b", start="g", g="a/g")],
            "b/g → a/g → b/g",
        ),
        # Closed by an update.
        (
            [waiting("b", g=""), waiting("a", g="b/g"), waiting("b", g="x", x="a/g")],
            "b/g → b/x → a/g → b/g",
        ),
    ],
)
def test_a_circle_across_jobs_is_refused_with_its_path(specs: list[JobSpec], path: str) -> None:
    found = submit_all(*specs)
    assert found is not None
    assert found.reason is RejectReason.REFUSED
    assert found.message == f"depends_on would be a cycle: {path}"


@pytest.mark.parametrize(
    "specs",
    [
        [waiting("a", g="b/g")],  # b may come later
        [waiting("a", g="b/nope"), waiting("b", g="a/g")],
        # Two ways to the same group, and groups of jobs that depend on each other without a circle.
        [waiting("a", x="", y="b/x"), waiting("b", x="a/x")],
        [waiting("d", g=""), waiting("b", g="d/g"), waiting("a", g="d/g b/g", h="b/g")],
    ],
)
def test_what_is_no_circle_is_accepted(specs: list[JobSpec]) -> None:
    assert submit_all(*specs) is None


def test_a_long_circle_is_told_in_short() -> None:
    count = 2_000
    specs = [waiting(f"j{n:04}", g=f"j{n + 1:04}/g") for n in range(count)]
    found = submit_all(*specs, waiting(f"j{count:04}", g="j0000/g"))
    assert found is not None
    names = found.message.partition(": ")[2].split(" → ")
    assert len(names) == PATH_SHOWN_MAX + 1
    assert (names[0], names[-2:]) == ("j2000/g", ["…", "j2000/g"])
