"""Whether a task is healthy, and what follows from it."""

from __future__ import annotations

from cube.model.lifecycle import Health, TaskState
from cube.model.spec import (
    CheckSpec,
    CheckType,
    OnCheckFailure,
    PortSpec,
)
from tests.virtual_time import VirtualClock
from tests.worker_world import PORTS, World, in_world, tcp_check

S = TaskState
# Health


def test_healthy_soon_after_it_answers_whatever_the_interval() -> None:
    async def scenario(world: World) -> None:
        world.prober.bad.add(20_001)
        [id_] = world.run(host_ports=(20_001,), ports=PORTS, checks=(tcp_check(),))
        task = await world.until_state(id_, S.RUNNING)
        assert task.health is Health.UNKNOWN
        await world.pass_ms(3000)
        world.prober.bad.clear()
        await world.until(lambda: world.task(id_).health is Health.HEALTHY, 600)
        assert set(world.prober.asked) == {("host-a", 20_001)}

    in_world(scenario)


def test_unhealthy_after_so_many_failures_at_its_interval_restarts_it() -> None:
    async def scenario(world: World) -> None:
        check = tcp_check(interval_ms=5000, start_period_ms=20_000, unhealthy_after=3)
        [id_] = world.run(host_ports=(20_001,), ports=PORTS, checks=(check,))
        await world.until(lambda: world.task(id_).health is Health.HEALTHY)
        at_ms = VirtualClock().monotonic_ms()
        world.prober.bad.add(20_001)
        task = await world.until_state(id_, S.PENDING)
        assert 10_000 <= VirtualClock().monotonic_ms() - at_ms <= 15_100
        assert (task.attempt, task.reason) == (2, "unhealthy")
        assert task.message.startswith("check c: refused")
        world.prober.bad.clear()
        await world.until_state(id_, S.RUNNING, attempt=2)
        await world.until(lambda: world.task(id_).health is Health.HEALTHY)
        assert world.starts(id_) == 2

    in_world(scenario)


def test_a_task_that_never_answers_gets_its_start_period() -> None:
    async def scenario(world: World) -> None:
        world.prober.bad.add(20_001)
        check = tcp_check(interval_ms=1000, start_period_ms=30_000, unhealthy_after=3)
        [id_] = world.run(host_ports=(20_001,), ports=PORTS, checks=(check,))
        await world.until_state(id_, S.PENDING)
        assert 32_000 <= VirtualClock().monotonic_ms() <= 32_200

    in_world(scenario)


def test_a_check_that_is_only_watched_restarts_nothing() -> None:
    async def scenario(world: World) -> None:
        world.prober.bad.add(20_001)
        check = tcp_check(interval_ms=1000, on_failure=OnCheckFailure.IGNORE)
        [id_] = world.run(host_ports=(20_001,), ports=PORTS, checks=(check,))
        await world.until(lambda: world.task(id_).health is Health.UNHEALTHY)
        assert world.task(id_).message == "check c: refused"
        await world.pass_ms(60_000)
        assert world.starts(id_) == 1
        world.prober.bad.clear()
        await world.until(lambda: world.task(id_).health is Health.HEALTHY)
        assert world.task(id_).message == ""

    in_world(scenario)


def test_checks_that_hang_delay_no_other() -> None:
    async def scenario(world: World) -> None:
        ports = {f"p{n}": PortSpec(80 + n) for n in range(8)}
        hanging = tuple(
            CheckSpec(f"h{n}", CheckType.TCP, port=f"p{n}", timeout_ms=60_000) for n in range(7)
        )
        good = CheckSpec("good", CheckType.TCP, port="p7", interval_ms=1000)
        world.prober.hangs |= {20_000 + n for n in range(7)}
        world.run(
            host_ports=tuple(20_000 + n for n in range(8)), ports=ports, checks=(*hanging, good)
        )
        await world.pass_ms(20_500)
        assert world.prober.asked.count(("host-a", 20_007)) >= 20
        assert world.prober.asked.count(("host-a", 20_000)) == 1

    in_world(scenario)


def test_exec_checks_run_in_the_task_and_an_engine_that_is_away_is_not_its_fault() -> None:
    async def scenario(world: World) -> None:
        check = CheckSpec("x", CheckType.EXEC, command=("say", "no", "0"), interval_ms=1000)
        [id_] = world.run(checks=(check,))
        await world.until(lambda: world.task(id_).health is Health.HEALTHY)
        world.host.engine_down = True
        await world.pass_ms(60_000)
        assert world.task(id_).health is Health.HEALTHY
        world.host.engine_down = False
        await world.pass_ms(5000)
        assert (world.task(id_).health, world.starts(id_)) == (Health.HEALTHY, 1)

    in_world(scenario)


def test_an_exec_check_that_says_no_is_quoted() -> None:
    async def scenario(world: World) -> None:
        check = CheckSpec(
            "x",
            CheckType.EXEC,
            command=("say", "disk full", "2"),
            interval_ms=1000,
            on_failure=OnCheckFailure.IGNORE,
        )
        [id_] = world.run(checks=(check,))
        await world.until(lambda: world.task(id_).health is Health.UNHEALTHY)
        assert world.task(id_).message == "check x: exit code 2: disk full"

    in_world(scenario)
