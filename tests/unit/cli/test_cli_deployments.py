"""`cube run` of an update waits for its deployment, and says what became of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cube.cli import rollout
from cube.cli.exits import FAILED, CommandError
from cube.cli.rollout import Watch
from cube.model.deployviews import DeploymentView
from cube.model.views import GroupCounts, JobView, TaskView

JOB = JobView(
    name="j", type="service", version=2, status="running", spec={}, created_at=None,
    groups={"g": GroupCounts(0)}, modified_index=1,
)  # fmt: skip
ROLLOUT = DeploymentView(
    id="j.v2", job="j", from_version=1, version=2, status="running", groups={}, deadline_at=None,
    message="", created_at=None, replaces=True,
)  # fmt: skip


class Agent:
    """What it says of the deployment, one answer after the other; the last again and again."""

    def __init__(self, *answers: dict[str, Any], newest: dict[str, Any] | None = None) -> None:
        self.answers = [msgspec.structs.replace(ROLLOUT, **changes) for changes in answers]
        self.newest = msgspec.structs.replace(ROLLOUT, **(newest or {}))

    def job(self, name: str) -> JobView:
        return JOB

    def tasks(self, job: str) -> list[TaskView]:
        return []

    def deployment(self, name: str) -> DeploymentView:
        if name == "j":
            return self.newest
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "POLL_S", 0)


def watch(agent: Agent) -> Watch:
    made = Watch(agent, "j", 2, None, "j.v2")  # type: ignore[arg-type]
    made.until_done()
    return made


def test_an_update_is_done_when_its_deployment_is() -> None:
    agent = Agent({}, {}, {"status": "successful"})
    watch(agent)
    assert len(agent.answers) == 1, "not before"


def test_one_that_replaces_nothing_is_done_when_all_serve() -> None:
    watch(Agent({"replaces": False}))


def test_canaries_that_wait_for_a_person_end_the_wait() -> None:
    assert watch(Agent({}, {"awaits_promotion": True})).awaits_promotion


@pytest.mark.parametrize(
    ("answers", "newest", "what"),
    [
        (
            [{"status": "failed"}, {"status": "failed"}, {"status": "rolled_back"}],
            {"version": 3, "rolls_back": 2},
            "j v2 failed; v1 is back",
        ),
        ([{"status": "failed", "message": "superseded by version 3"}], {"version": 3}, "failed"),
        ([{"status": "paused"}], None, "j v2 is paused"),
    ],
)
def test_a_version_that_is_given_up(
    answers: list[dict[str, Any]], newest: dict[str, Any] | None, what: str
) -> None:
    with pytest.raises(CommandError) as raised:
        watch(Agent(*answers, newest=newest))
    assert raised.value.code == FAILED
    assert what in str(raised.value)
