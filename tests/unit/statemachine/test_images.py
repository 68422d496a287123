"""The first digest that a node reports for an image is what the job's version runs."""

from __future__ import annotations

import msgspec

from cube.model import commands as c
from cube.model.cluster import Job, Task
from cube.model.ids import JobId
from cube.model.lifecycle import TaskState
from cube.model.spec import DriverName
from cube.statemachine import snapshot
from tests.builders import Machine, group, job
from tests.cron_cluster import MINUTE_MS, Crontab, nightly

ONE, TWO = (f"sha256:{digit * 64}" for digit in "12")
IMAGE = "app:1"


def spec(count: int = 2, **changes: object) -> c.SubmitJob:
    one = group(driver=DriverName.DOCKER, image=IMAGE, count=count, **changes)
    return c.SubmitJob(job("web", {"g": one}), JobId("job-web"))


def made(machine: Machine) -> list[Task]:
    found = sorted(machine.state.tasks.values(), key=lambda task: task.slot)
    assert found
    return found


def the_job(machine: Machine) -> Job:
    found = machine.state.job_named("web")
    assert found is not None
    return found


def digests(machine: Machine) -> dict[int, dict[str, str]]:
    return {entry.version: entry.digests for entry in the_job(machine).versions}


def begun() -> tuple[Machine, list[Task]]:
    machine = Machine("a", "b")
    machine.do(spec())
    machine.place("web", "g", (0, "a", ()), (1, "b", ()))
    return machine, made(machine)


def test_the_first_report_wins_and_later_ones_are_told_of_their_task_only() -> None:
    machine, (first, second) = begun()
    assert machine.state.digest_for(first) == ""
    machine.report(first.id, "preparing", image_digest=ONE)
    machine.report(second.id, "preparing", image_digest=TWO)
    assert digests(machine) == {1: {IMAGE: ONE}}
    assert [task.image_digest for task in made(machine)] == [ONE, TWO]
    assert machine.state.digest_for(second) == ONE
    loaded = snapshot.load(snapshot.dump(machine.state))
    assert loaded.job_named("web") == machine.state.job_named("web")


def test_what_is_no_digest_is_not_believed() -> None:
    machine, (first, _) = begun()
    machine.report(first.id, "preparing", image_digest="latest")
    assert digests(machine) == {1: {}}
    assert made(machine)[0].image_digest == ""


def test_a_digest_in_the_reference_is_known_from_the_beginning() -> None:
    machine = Machine("a")
    machine.do(c.SubmitJob(job("web", {"g": group(image=f"app@{ONE}")}), JobId("job-web")))
    machine.place("web", "g", (0, "a", ()))
    [task] = made(machine)
    assert machine.state.digest_for(task) == ONE
    machine.report(task.id, "preparing", image_digest=ONE)
    assert digests(machine) == {1: {}}


def test_a_version_whose_tasks_go_on_has_the_same_image_and_another_asks_anew() -> None:
    machine, (first, _) = begun()
    machine.report(first.id, "preparing", image_digest=ONE)
    machine.do(spec(count=3))
    assert digests(machine)[2] == {IMAGE: ONE}
    machine.do(spec(count=3, env={"A": "b"}))
    assert digests(machine)[3] == {}
    machine.do(c.RollBackJob("web", 2))
    assert digests(machine)[4] == {IMAGE: ONE}
    machine.do(c.RestartJob("web"))
    assert digests(machine)[5] == {}


def test_what_is_reported_after_the_next_version_came_counts_for_both() -> None:
    machine, (first, _) = begun()
    machine.do(spec(count=3))
    machine.do(spec(count=3, env={"A": "b"}))
    machine.report(first.id, "preparing", image_digest=ONE)
    assert digests(machine) == {1: {IMAGE: ONE}, 2: {IMAGE: ONE}, 3: {}}


def test_later_runs_of_a_cron_job_run_the_image_of_the_first() -> None:
    tab = Crontab()
    tab.submit(nightly(driver=DriverName.DOCKER, image=IMAGE))
    tab.after(MINUTE_MS)
    tab.plan()
    [task] = tab.state.tasks.values()
    tab.report(task.id, "running", image_digest=ONE)
    assert tab.job.versions[-1].digests == {IMAGE: ONE}
    tab.finish(1)
    tab.after(MINUTE_MS)
    tab.plan()
    assert [run.versions[0].digests for run in tab.state.runs_of(tab.job)] == [
        {IMAGE: ONE}, {IMAGE: ONE},
    ]  # fmt: skip


def test_bytes_of_the_release_before_still_load() -> None:
    """Without the fields that this release has added: they get their defaults."""
    report = c.TaskReport(made(begun()[0])[0].id, 1, TaskState.RUNNING)
    whole = msgspec.msgpack.encode(report)
    fields = msgspec.msgpack.decode(whole)
    assert fields.pop() == ""
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=c.TaskReport) == report
