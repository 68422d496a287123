"""Cron jobs through the API: what users see of runs, and of tasks that are a run's."""

from __future__ import annotations

from typing import Any

from cube.model import commands as c
from cube.model.spec import Overlap, PortSpec, ReschedulePolicy
from tests.cron_cluster import HOUR_MS, MINUTE_MS, Crontab, nightly
from tests.fakes.cluster import World, job_spec
from tests.fakes.served import read, served

Json = Any


def world_of(cluster: Crontab) -> World:
    world = World()
    world.state = cluster.state
    return world


def two_runs() -> Crontab:
    """The first has failed, the second runs."""
    cluster = Crontab("n1", "n2")
    cluster.submit(nightly("0 * * * *", reschedule=ReschedulePolicy(attempts=1, delay_ms=100)))
    cluster.after(HOUR_MS)
    cluster.settle()
    cluster.fail(cluster.state.tasks_under(cluster.job)[-1], exit_code=3)
    cluster.now_ms += 1_000
    cluster.settle()
    task = cluster.state.tasks_under(cluster.job)[-1]
    cluster.fail(task, exit_code=3)
    cluster.plan()
    cluster.after(HOUR_MS)
    cluster.settle()
    return cluster


async def test_the_history_of_runs_is_newest_first() -> None:
    cluster = two_runs()
    async with served(world_of(cluster)) as api:
        found: Json = await api.get("/v1/jobs/nightly/runs")
        assert [(run["run"], run["status"]) for run in found["items"]] == [
            (2, "running"), (1, "failed"),
        ]  # fmt: skip
        newest, first = found["items"]
        assert newest["finished_at"] is None
        assert (first["completed"], first["failed"], first["trigger"]) == (0, 1, "schedule")
        assert set(first) == {
            "run", "status", "trigger", "version", "scheduled_at", "started_at", "finished_at",
            "count", "completed", "failed", "message",
        }  # fmt: skip
        job: Json = await api.get("/v1/jobs/nightly")
        assert job["runs"] == found["items"]
        assert job["next_run_at"] == "2023-11-15T02:00:00.000Z"
        assert job["status"] == "running"
        assert job["groups"]["g"] == {
            "count": 1, "running": 1, "healthy": 1, "pending": 0, "failed": 0, "completed": 0,
        }  # fmt: skip
        cluster.finish(2)
        api.world.state = cluster.state
        job = await api.get("/v1/jobs/nightly")
        assert (job["status"], job["groups"]["g"]["completed"]) == ("completed", 1)
        jobs: Json = await api.get("/v1/jobs?status=completed")
        assert [len(one["runs"]) for one in jobs["items"]] == [1]


async def test_of_a_failed_run_the_slots_have_failed() -> None:
    cluster = two_runs()
    cluster.finish(2, exit_code=3)
    cluster.now_ms += 1_000
    cluster.settle()
    task = cluster.state.tasks_under(cluster.job)[-1]
    cluster.report(task.id, "failed", exit_code=3, reason="exited")
    cluster.plan()  # before its node has said that nothing is left of it
    cluster.report(task.id, "failed", exit_code=3, reason="exited", released=True)
    async with served(world_of(cluster)) as api:
        job: Json = await api.get("/v1/jobs/nightly")
        assert job["status"] == "failed"
        assert (job["groups"]["g"]["failed"], job["groups"]["g"]["pending"]) == (1, 0)
        assert job["runs"][0]["message"] == "nightly.g.0: exit code 3"


async def test_runs_are_no_jobs_and_their_tasks_are_the_jobs() -> None:
    cluster = two_runs()
    async with served(world_of(cluster)) as api:
        jobs: Json = await api.get("/v1/jobs")
        assert [job["name"] for job in jobs["items"]] == ["nightly"]
        tasks: Json = await api.get("/v1/tasks?job=nightly")
        assert [task["name"] for task in tasks["items"]] == ["nightly.g.0"] * 3
        task: Json = await api.get("/v1/tasks/nightly.g.0")
        assert task["state"] == "running"
        cluster.finish(2)
        api.world.state = cluster.state
        task = await api.get("/v1/tasks/nightly.g.0")
        assert (task["state"], task["exit_code"]) == ("completed", 0)
        book: Json = await api.get("/tasks")
        assert [(row["Job"], row["State"]) for row in book] == [("nightly", 3)]
        await api.problem("GET", "/v1/jobs/nightly.000001", 404)


async def test_a_slot_of_a_run_that_has_no_place_is_listed_and_found() -> None:
    cluster = Crontab()
    cluster.submit(nightly(ports={"http": PortSpec(host=99)}, count=2))
    cluster.after(MINUTE_MS)
    cluster.settle()
    async with served(world_of(cluster), node="a") as api:
        tasks: Json = await api.get("/v1/tasks?job=nightly")
        assert [(task["id"], task["state"]) for task in tasks["items"]][1] == (
            "nightly.g.1", "pending",
        )  # fmt: skip
        task: Json = await api.get("/v1/tasks/nightly.g.1")
        assert task["state"] == "pending"
        services: Json = await api.get("/v1/services")
        assert [(one["name"], len(one["endpoints"])) for one in services["items"]] == [
            ("nightly.g.http", 1)
        ]


async def test_a_run_is_begun_by_hand_once_for_a_key_and_refused_with_a_reason() -> None:
    cluster = Crontab("n1")
    cluster.submit(nightly("0 0 1 1 *", Overlap.FORBID))
    world = world_of(cluster)
    world.run(job_spec())
    async with served(world) as api:
        for _ in range(2):
            headers = {"Idempotency-Key": "k"}
            async with api.client.post("/v1/jobs/nightly/run", headers=headers) as response:
                begun: Json = await read(response, 201)
            assert (begun["name"], begun["run"]) == ("nightly", 1)
        problem = await api.problem("POST", "/v1/jobs/nightly/run", 409)
        assert problem["detail"] == "nightly: run 1 has not ended, and overlap is forbid"
        problem = await api.problem("POST", "/v1/jobs/shop/run", 409)
        assert "only cron jobs have runs" in str(problem["detail"])
        await api.problem("POST", "/v1/jobs/nothing/run", 404)
        await api.problem("GET", "/v1/jobs/nothing/runs", 404)
        none: Json = await api.get("/v1/jobs/shop/runs")
        assert none["items"] == []
        shop: Json = await api.get("/v1/jobs/shop")
        assert (shop["next_run_at"], shop["runs"]) == (None, [])


async def test_the_status_of_a_cron_job_in_one_word() -> None:
    cluster = Crontab("n1")
    cluster.submit(nightly())
    async with served(world_of(cluster)) as api:

        async def status() -> tuple[str, bool]:
            api.world.state = cluster.state
            job: Json = await api.get("/v1/jobs/nightly")
            return job["status"], job["next_run_at"] is not None

        assert await status() == ("pending", True)
        cluster.after(MINUTE_MS)
        cluster.settle()
        assert await status() == ("running", True)
        cluster.do(c.StopJob("nightly"))
        assert await status() == ("stopping", False)
        cluster.settle()
        assert await status() == ("stopped", False)
        cluster.do(c.StartJob("nightly"))
        assert await status() == ("pending", True)
        why: Json = await api.get("/v1/jobs/nightly/why")
        assert "explanations" in why
