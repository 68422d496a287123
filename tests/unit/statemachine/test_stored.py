"""Secrets and configs in the state: versions, who uses them, what a new one sets going."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from cube.model import commands as c
from cube.model.cluster import Job
from cube.model.deployment import DeploymentStatus, DeploymentStep
from cube.model.events import ConfigEvent, SecretEvent
from cube.model.outcome import Done, JobAccepted, Outcome, Rejected, RejectReason, StoredAccepted
from cube.model.spec import (
    CronSpec,
    DockerOptions,
    JobSpec,
    JobType,
    MountSpec,
    MountType,
    SecretRef,
)
from cube.model.stored import (
    NAMES_MAX,
    SEALED_BYTES_MAX,
    STORE_BYTES_MAX,
    VALUE_BYTES_MAX,
    VERSIONS_KEPT,
    StoredKind,
)
from cube.statemachine import stored as stored_machine
from cube.statemachine.invariants import violations
from cube.statemachine.snapshot import dump, load
from tests.builders import Machine, group, job

SECRET, CONFIG = StoredKind.SECRET, StoredKind.CONFIG


def put(machine: Machine, value: str, name: str = "db", **changes: Any) -> Outcome:
    """A secret; its envelope and fingerprint are stand-ins."""
    fields: dict[str, Any] = {
        "data": b"sealed:" + value.encode(),
        "size_bytes": len(value),
        "fingerprint": value.encode().rjust(32, b"."),
    }
    return machine.do(c.StoreVersion(SECRET, name, **(fields | changes)))


def put_config(machine: Machine, value: bytes, name: str = "conf", **changes: Any) -> Outcome:
    return machine.do(c.StoreVersion(CONFIG, name, value, len(value), **changes))


def using(name: str = "web", *, other: str = "60", **changes: Any) -> JobSpec:
    """Group `g` has the secret db in its environment; group `plain` has nothing."""
    groups = {
        "g": group(env={"P": SecretRef("db")}, command=("sleep", other)),
        "plain": group(),
    }
    return job(name, groups, **changes)


def job_of(machine: Machine, name: str = "web") -> Job:
    found = machine.state.job_named(name)
    assert found is not None
    return found


def refused(outcome: Outcome, reason: RejectReason, *words: str) -> None:
    assert isinstance(outcome, Rejected), outcome
    assert outcome.reason is reason
    for word in words:
        assert word in outcome.message, outcome.message


def succeed(machine: Machine, name: str = "web") -> None:
    """The newest version is one to go back to."""
    step = DeploymentStep(job_of(machine, name).id, job_of(machine, name).version,
                          DeploymentStatus.SUCCESSFUL)  # fmt: skip
    machine.do(c.ApplyPlan(machine.term, f"ok-{machine.state.index}", deployments=(step,)))


def fail(machine: Machine, name: str = "web") -> None:
    step = DeploymentStep(job_of(machine, name).id, job_of(machine, name).version,
                          DeploymentStatus.FAILED, "it broke", roll_back=True)  # fmt: skip
    machine.do(c.ApplyPlan(machine.term, f"bad-{machine.state.index}", deployments=(step,)))


# Setting


def test_versions_count_up_and_the_same_value_is_none() -> None:
    machine = Machine()
    assert put(machine, "one") == StoredAccepted(SECRET, "db", 1, True)
    assert machine.steps[-1].events == (SecretEvent("db", "set", 1),)
    assert put(machine, "one", data=b"sealed anew") == StoredAccepted(SECRET, "db", 1, False)
    assert put(machine, "two") == StoredAccepted(SECRET, "db", 2, True)
    stored = machine.state.stored["secret/db"]
    assert [one.version for one in stored.versions] == [1, 2]
    assert (stored.newest.size_bytes, stored.newest.actor) == (3, "test")


def test_a_config_and_a_secret_of_one_name_are_two_things() -> None:
    machine = Machine()
    _ = put(machine, "one", "x"), put_config(machine, b"text", "x")
    assert machine.steps[-1].events == (ConfigEvent("x", "set", 1),)
    assert put_config(machine, b"text", "x") == StoredAccepted(CONFIG, "x", 1, False)
    assert sorted(machine.state.stored) == ["config/x", "secret/x"]
    assert machine.do(c.RemoveStored(SECRET, "x")) == Done()
    assert sorted(machine.state.stored) == ["config/x"]


def test_the_state_survives_its_snapshot() -> None:
    machine = Machine()
    _ = put(machine, "one"), put_config(machine, b"\x00\xff"), machine.submit(using())
    again = load(dump(machine.state))
    assert (dict(again.stored), dict(again.jobs)) == (
        dict(machine.state.stored), dict(machine.state.jobs),
    )  # fmt: skip
    assert dump(again) == dump(machine.state)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a/b"}, "letters, digits"),
        ({"name": ""}, "letters, digits"),
        ({"name": "x" * 129}, "letters, digits"),
        ({"size_bytes": VALUE_BYTES_MAX + 1}, "at most 65536 bytes"),
        ({"size_bytes": -1}, "at most 65536 bytes"),
        ({"data": b"x" * (SEALED_BYTES_MAX + 1)}, "not sealed"),
        ({"data": b"one"}, "not sealed"),
        ({"fingerprint": b""}, "fingerprint"),
    ],
)
def test_what_can_be_no_secret_is_refused(changes: dict[str, Any], words: str) -> None:
    machine = Machine()
    refused(put(machine, "one", **changes), RejectReason.INVALID, words)
    assert not machine.state.stored


def test_a_config_has_no_fingerprint_and_says_its_size() -> None:
    machine = Machine()
    refused(put_config(machine, b"x", fingerprint=b"." * 32), RejectReason.INVALID)
    refused(machine.do(c.StoreVersion(CONFIG, "x", b"abc", 2)), RejectReason.INVALID, "size")


def test_who_names_the_version_gets_no_other() -> None:
    machine = Machine()
    refused(put(machine, "one", expected_version=1), RejectReason.CONFLICT, "does not exist")
    assert isinstance(put(machine, "one", expected_version=0), StoredAccepted)
    refused(put(machine, "two", expected_version=0), RejectReason.CONFLICT, "is at version 1")
    assert isinstance(put(machine, "two", expected_version=1), StoredAccepted)
    refused(put(machine, "3", expected_version=1), RejectReason.CONFLICT, "version 2, not 1")


def test_names_and_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (NAMES_MAX, STORE_BYTES_MAX) == (1_000, 16 << 20)
    monkeypatch.setattr(stored_machine, "NAMES_MAX", 2)
    monkeypatch.setattr(stored_machine, "STORE_BYTES_MAX", 10)
    machine = Machine()
    _ = put(machine, "1234", "a"), put(machine, "1", "b")
    refused(put(machine, "1", "c"), RejectReason.LIMIT, "2 secrets")
    assert isinstance(put_config(machine, b"12345"), StoredAccepted)  # each kind has its number
    refused(put(machine, "2", "a"), RejectReason.LIMIT, "11 bytes", "10 are")
    assert machine.do(c.RemoveStored(SECRET, "b")) == Done()
    assert isinstance(put(machine, "2", "a"), StoredAccepted)


def test_old_versions_go_unless_a_job_has_them() -> None:
    machine = Machine()
    _ = put(machine, "1"), machine.submit(using()), machine.do(c.StopJob("web"))
    for number in range(2, 10):
        _ = put(machine, str(number))
    kept = [one.version for one in machine.state.stored["secret/db"].versions]
    assert kept == [1, *range(10 - VERSIONS_KEPT, 10)]
    assert violations(machine.state) == []


# Jobs


def test_a_job_that_names_what_is_not_there_is_refused_with_all_names() -> None:
    mounts = (MountSpec(MountType.CONFIG, "c", "conf"), MountSpec(MountType.SECRET, "s", "tls"))
    spec = job(
        "web", {"g": group(env={"P": SecretRef("db")}, mounts=mounts,
                           docker=DockerOptions(registry_secret="login"))}
    )  # fmt: skip
    machine = Machine()
    outcome = machine.submit(spec)
    refused(
        outcome, RejectReason.REFUSED,
        "no config conf, no secret db, no secret login, no secret tls", "`cube config set conf`",
    )  # fmt: skip
    _ = put_config(machine, b"x"), put(machine, "1"), put(machine, "2", "tls")
    refused(machine.submit(spec), RejectReason.REFUSED, "no secret login", "cube secret set login")
    _ = put(machine, "user:pw", "login")
    assert isinstance(machine.submit(spec), JobAccepted)
    assert job_of(machine).versions[-1].uses == {
        "config/conf": 1, "secret/db": 1, "secret/login": 0, "secret/tls": 1,
    }  # fmt: skip


def test_a_new_version_makes_a_new_version_of_each_service_that_has_it() -> None:
    machine = Machine("n1")
    _ = put(machine, "1"), put(machine, "1", "other")
    _ = machine.submit(using("b")), machine.submit(using("a")), machine.submit(job("c"))
    _ = machine.submit(using("stopped")), machine.do(c.StopJob("stopped"))
    _ = machine.submit(using("batch", type=JobType.BATCH))
    assert put(machine, "2") == StoredAccepted(SECRET, "db", 2, True, ("a", "b"), 2)
    newest = job_of(machine, "a").versions[-1]
    assert (newest.version, newest.uses) == (2, {"secret/db": 2})
    assert newest.reason == "secret db is at version 2"
    deployment = job_of(machine, "a").deployment
    assert deployment is not None
    assert (deployment.status, deployment.cause) == (DeploymentStatus.RUNNING, newest.reason)
    for untouched in ("c", "stopped", "batch"):
        assert job_of(machine, untouched).version == 1
    assert isinstance(put(machine, "2", "other"), StoredAccepted)
    assert job_of(machine, "a").version == 2
    assert violations(machine.state) == []


def test_a_new_secret_brings_no_new_image() -> None:
    machine = Machine()
    _ = put(machine, "1"), machine.submit(using())
    old = job_of(machine)
    digests = {"image:latest": "sha256:" + "a" * 64}
    old = structs.replace(old, versions=(structs.replace(old.versions[0], digests=digests),))
    again = Machine(state=structs.replace(machine.state, jobs=machine.state.jobs.set(old.id, old)))
    _ = put(again, "2")
    assert job_of(again).version == 2
    assert job_of(again).versions[-1].digests == digests


def test_only_the_groups_that_have_it_need_new_containers() -> None:
    machine = Machine()
    _ = put(machine, "1"), machine.submit(using()), put(machine, "2")
    assert not job_of(machine).same_container("g", 1, 2)
    assert job_of(machine).same_container("plain", 1, 2)


def test_a_new_login_for_images_replaces_nothing() -> None:
    machine = Machine()
    _ = put(machine, "1", "login")
    docker = DockerOptions(registry_secret="login")
    _ = machine.submit(job("web", {"g": group(docker=docker)}))
    assert put(machine, "2", "login") == StoredAccepted(SECRET, "login", 2, True)
    assert job_of(machine).version == 1
    refused(machine.do(c.RemoveStored(SECRET, "login")), RejectReason.REFUSED, "used by web")


def test_a_version_that_fails_with_a_new_secret_goes_back_to_the_old_one() -> None:
    machine = Machine()
    _ = put(machine, "good"), machine.submit(using())
    succeed(machine)
    _ = put(machine, "bad")
    fail(machine)
    versions = job_of(machine).versions
    assert [entry.uses["secret/db"] for entry in versions] == [1, 2, 1]
    assert job_of(machine).same_container("g", 1, 3)
    # Scaling and restarting leave it so; submitting asks for the newest again.
    _ = machine.do(c.ScaleJob("web", {"g": 2})), machine.do(c.RestartJob("web"))
    assert job_of(machine).versions[-1].uses == {"secret/db": 1}
    again = machine.submit(job_of(machine).spec)
    assert isinstance(again, JobAccepted) and again.changed
    assert job_of(machine).versions[-1].uses == {"secret/db": 2}
    again = machine.submit(job_of(machine).spec)
    assert isinstance(again, JobAccepted) and not again.changed


def test_going_back_takes_the_old_secret_too_and_not_one_that_is_gone() -> None:
    machine = Machine()
    _ = put(machine, "1"), machine.submit(using()), put(machine, "2")
    assert isinstance(machine.do(c.RollBackJob("web", 1)), JobAccepted)
    assert job_of(machine).versions[-1].uses == {"secret/db": 1}
    _ = machine.submit(job("web"))
    succeed(machine)
    assert machine.do(c.RemoveStored(SECRET, "db")) == Done()
    refused(
        machine.do(c.RollBackJob("web", 2)), RejectReason.REFUSED,
        "version 2 of web uses version 2 of secret db, which is gone",
    )  # fmt: skip
    # A secret of the same name is another one: what versions remember is not taken from it.
    assert put(machine, "new") == StoredAccepted(SECRET, "db", 3, True)
    refused(machine.do(c.RollBackJob("web", 2)), RejectReason.REFUSED, "which is gone")


def test_a_job_that_starts_again_has_the_newest() -> None:
    machine = Machine()
    _ = put(machine, "1"), machine.submit(using()), machine.do(c.StopJob("web")), put(machine, "2")
    assert machine.do(c.StartJob("web")) == Done()
    assert (job_of(machine).version, job_of(machine).stopped) == (2, False)
    assert job_of(machine).versions[-1].uses == {"secret/db": 2}


def test_each_run_of_a_cron_job_has_the_newest() -> None:
    machine = Machine()
    _ = put(machine, "1")
    _ = machine.submit(using("web", type=JobType.CRON, cron=CronSpec("0 0 * * *")))
    assert job_of(machine).versions[-1].uses == {"secret/db": 0}
    _ = machine.do(c.TriggerJob("web"))
    assert put(machine, "2") == StoredAccepted(SECRET, "db", 2, True)
    assert job_of(machine).version == 1
    cron = job_of(machine).cron
    assert cron is not None
    run = machine.state.jobs[cron.runs[-1].job_id]
    assert run.versions[-1].uses == {"secret/db": 1}


# Removing


def test_what_is_used_is_not_removed() -> None:
    machine = Machine("n1")
    refused(machine.do(c.RemoveStored(SECRET, "db")), RejectReason.NOT_FOUND, "no secret db")
    _ = put(machine, "1")
    for name in "gfedcba":
        _ = machine.submit(using(name))
    refused(
        machine.do(c.RemoveStored(SECRET, "db")), RejectReason.REFUSED,
        "used by a, b, c, d, e and 2 more", "first",
    )  # fmt: skip
    for name in "bcdefg":
        _ = machine.do(c.DeleteJob(name))
    _ = machine.do(c.StopJob("a"))
    refused(machine.do(c.RemoveStored(SECRET, "db")), RejectReason.REFUSED, "used by a;")
    _ = machine.do(c.DeleteJob("a"))
    assert machine.do(c.RemoveStored(SECRET, "db")) == Done()
    assert machine.steps[-1].events == (SecretEvent("db", "removed", 1),)


def test_what_tasks_run_with_or_a_failure_goes_back_to_is_used() -> None:
    machine = Machine("n1")
    _ = put(machine, "1"), machine.submit(using()), machine.place("web", "g", (0, "n1", ()))
    _ = machine.submit(job("web", {"g": group()}))
    refused(machine.do(c.RemoveStored(SECRET, "db")), RejectReason.REFUSED, "used by web")
    task = next(iter(machine.state.tasks.values()))
    _ = machine.report(task.id, "failed", released=True)
    assert machine.do(c.RemoveStored(SECRET, "db")) == Done()

    machine = Machine()
    _ = put(machine, "1"), machine.submit(using())
    succeed(machine)
    _ = machine.submit(job("web", {"g": group()}))
    refused(machine.do(c.RemoveStored(SECRET, "db")), RejectReason.REFUSED, "used by web")
    succeed(machine)
    assert machine.do(c.RemoveStored(SECRET, "db")) == Done()


def test_a_secret_is_used_by_so_many_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_machine, "JOBS_MAX_EACH", 2)
    machine = Machine()
    _ = put(machine, "1"), machine.submit(using("a")), machine.submit(using("b"))
    refused(machine.submit(using("c")), RejectReason.LIMIT, "secret db is used by 2 jobs")
    assert isinstance(machine.submit(using("b", other="61")), JobAccepted)


def test_no_repr_shows_a_value() -> None:
    machine = Machine()
    body = c.StoreVersion(SECRET, "db", b"sealed:canary", 6, b"f" * 32)
    _ = machine.do(body)
    assert "canary" not in repr(body) + repr(machine.state.stored["secret/db"])


def test_a_job_of_before_there_were_secrets_gets_them_when_it_is_run_again() -> None:
    machine = Machine()
    _ = put(machine, "1"), machine.submit(using())
    old = job_of(machine)
    old = structs.replace(old, versions=(structs.replace(old.versions[0], uses={}),))
    again = Machine(state=structs.replace(machine.state, jobs=machine.state.jobs.set(old.id, old)))
    outcome = again.submit(using())
    assert isinstance(outcome, JobAccepted)
    assert outcome.changed
    assert job_of(again).versions[-1].uses == {"secret/db": 1}
