"""One-task jobs: from `cube run`'s arguments, and from the book's own task JSON."""

import json
from typing import Any

import pytest

from cube.model.bookapi import (
    BOOK_ID,
    BOOK_STATES,
    COMPLETED,
    FAILED,
    GROUP,
    PENDING,
    RUNNING,
    SCHEDULED,
    book_state,
    book_task,
    safe_name,
    simple_job,
)
from cube.model.errors import BadConfig
from cube.model.jobfile import parse_tree
from cube.model.jobrender import render
from cube.model.lifecycle import TaskState
from cube.model.resources import Resources
from cube.model.spec import (
    CheckType,
    DriverName,
    JobType,
    PortSpec,
    Protocol,
    RestartCondition,
)

TASK: dict[str, Any] = {
    "ID": "21b23589-5d2d-4731-b5c9-a97e9832d021",
    "Name": "test-chapter-9.1",
    "Image": "timboring/echo-server:latest",
    "Cpu": 0.1,
    "Memory": 64 << 20,
    "Disk": 1024,
    "ExposedPorts": {"7777/tcp": {}},
    "PortBindings": {"7777/tcp": "7777"},
    "RestartPolicy": "always",
    "HealthCheck": "/health",
}


def problems(task: dict[str, Any] | object) -> dict[str, str]:
    with pytest.raises(BadConfig) as caught:
        book_task(task)
    return {error.path: f"{error.problem} {error.hint}" for error in caught.value.errors}


def test_the_books_task() -> None:
    event = {"ID": "6be4cb6b-61d1-40cb-bc7b-9cacefefa60c", "State": 2, "Task": TASK}
    spec = book_task(json.dumps(event).encode())
    assert (spec.name, spec.type) == ("test-chapter-9-1", JobType.SERVICE)
    assert spec.meta == {BOOK_ID: TASK["ID"]}
    group = spec.groups[GROUP]
    assert group.image == "timboring/echo-server:latest"
    assert group.resources == Resources(100, 64 << 20, 1024)
    assert group.ports == {"7777": PortSpec(7777, 7777)}
    assert group.restart.policy is RestartCondition.ALWAYS
    check = group.checks[0]
    assert (check.type, check.path, check.port) == (CheckType.HTTP, "/health", "7777")
    assert book_task(TASK) == spec  # the bare task, without its event
    assert parse_tree(render(spec)) == spec


@pytest.mark.parametrize(
    ("policy", "job_type", "restart"),
    [
        ("always", JobType.SERVICE, RestartCondition.ALWAYS),
        ("unless-stopped", JobType.SERVICE, RestartCondition.ALWAYS),
        ("on-failure", JobType.BATCH, RestartCondition.ON_FAILURE),
        ("no", JobType.BATCH, RestartCondition.NEVER),
        ("", JobType.BATCH, RestartCondition.NEVER),
    ],
)
def test_restart_policies(policy: str, job_type: JobType, restart: RestartCondition) -> None:
    spec = book_task({"Task": {"Name": "x", "Image": "i", "RestartPolicy": policy}})
    assert (spec.type, spec.groups[GROUP].restart.policy) == (job_type, restart)


def test_the_least_that_the_book_may_send() -> None:
    spec = book_task({"ID": "7", "Image": "i", "Cpu": 0, "Memory": 0, "Disk": 0, "State": 0})
    assert spec.name == "task-7"
    assert spec.groups[GROUP].resources == Resources(100, 64 << 20, 0)
    spec = book_task({"Name": "x", "Image": "i", "ExposedPorts": {"53/udp": {}, "80": {}}})
    assert spec.groups[GROUP].ports == {
        "53-udp": PortSpec(53, 0, Protocol.UDP),
        "80": PortSpec(80, 0),
    }


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"Image": None}, "Image", "is required"),
        ({"Image": "a b"}, "Image", "not accepted"),
        ({"Imge": "x"}, "Imge", "did you mean `Image`?"),
        ({"Name": None, "ID": None}, "Name", "a Name or an ID"),
        ({"ID": "../x"}, "ID", "letters, digits and -"),
        ({"Cpu": "much"}, "Cpu", "must be a number"),
        ({"Cpu": -1}, "Cpu", "between 0"),
        ({"Memory": 1024}, "Memory", "6MiB"),
        ({"RestartPolicy": "sometimes"}, "RestartPolicy", "unless-stopped"),
        ({"ExposedPorts": {"http": {}}}, 'ExposedPorts.http', "is not a port"),
        ({"PortBindings": {"7777/tcp": "x"}}, 'PortBindings."7777/tcp"', "is not bound"),
        ({"PortBindings": {"7777/tcp": "70000"}}, "PortBindings", "65535"),
        ({"ExposedPorts": {"70000/tcp": {}}}, "ExposedPorts", "65535"),
        ({"HealthCheck": "health"}, "HealthCheck", "not accepted"),
        ({"ExposedPorts": {}, "PortBindings": {}}, "HealthCheck", "needs a tcp port"),
        ({"State": 3}, "State", "DELETE /tasks/{id}"),
    ],
)  # fmt: skip
def test_mistakes_in_the_books_words(change: dict[str, Any], path: str, words: str) -> None:
    found = problems({**TASK, **change})
    assert set(found) == {path}
    assert words in found[path]


def test_every_state_has_the_books_number() -> None:
    assert set(BOOK_STATES) == {state.value for state in TaskState}
    for state, number in [
        ("pending", PENDING), ("starting", SCHEDULED), ("running", RUNNING),
        ("completed", COMPLETED), ("lost", FAILED),
    ]:  # fmt: skip
        assert book_state(state) == number
    assert (PENDING, SCHEDULED, RUNNING, COMPLETED, FAILED) == (0, 1, 2, 3, 4)


def test_run_an_image() -> None:
    spec = simple_job(
        image="docker.io/library/nginx:1.27",
        count=3,
        publish=["8080:80", "443", "53/udp"],
        env=["K=V=W", "E="],
        command=["nginx", "-g", "daemon off;"],
    )
    group = spec.groups[GROUP]
    assert (spec.name, spec.type, group.count) == ("nginx", JobType.SERVICE, 3)
    assert (group.driver, group.image) == (DriverName.DOCKER, "docker.io/library/nginx:1.27")
    assert group.command == ("nginx", "-g", "daemon off;")
    assert group.env == {"K": "V=W", "E": ""}
    assert group.ports == {
        "80": PortSpec(80, 8080),
        "443": PortSpec(443, 0),
        "53-udp": PortSpec(53, 0, Protocol.UDP),
    }


def test_run_a_process() -> None:
    spec = simple_job(command=["/usr/bin/python3.11", "x.py"], publish=["8080", "http"])
    group = spec.groups[GROUP]
    assert (spec.name, group.driver) == ("python3-11", DriverName.PROCESS)
    assert group.ports == {"8080": PortSpec(8080, 8080), "http": PortSpec(0, 0)}
    assert simple_job(command=["..."], name="mine").name == "mine"
    assert simple_job(command=["..."]).name == "job"


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({}, "command"),
        ({"image": "i", "publish": ["x"]}, "publish"),
        ({"image": "i", "publish": ["1:2:3"]}, "publish"),
        ({"image": "i", "publish": ["1:80", "2:80"]}, "publish"),
        ({"image": "i", "publish": ["0:70000"]}, "groups.main.ports.70000.target"),
        ({"image": "i", "env": ["K"]}, "env"),
        ({"image": "i", "env": ["=V"]}, "env"),
        ({"image": "i", "name": "A B"}, "name"),
        ({"image": "i", "count": -1}, "groups.main.count"),
    ],
)
def test_arguments_that_mean_nothing(arguments: dict[str, Any], path: str) -> None:
    with pytest.raises(BadConfig) as caught:
        simple_job(**arguments)
    assert [error.path for error in caught.value.errors] == [path]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Test Chapter-9.1", "test-chapter-9-1"),
        ("../../etc", "etc"),
        ("Ümlaut", "mlaut"),
        ("---", ""),
        ("a" * 62 + "-b", "a" * 62),
    ],
)
def test_names_made_safe(text: str, name: str) -> None:
    assert safe_name(text) == name
