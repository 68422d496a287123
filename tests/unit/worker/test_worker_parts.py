"""Launches, restarts and checks, each by itself."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cube.model.cluster import HistoryEntry, TaskPort
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Launch, LaunchFile, LaunchValue
from cube.model.lifecycle import Health, TaskState
from cube.model.spec import (
    CheckSpec,
    CheckType,
    DockerOptions,
    JobType,
    MountSpec,
    MountType,
    Protocol,
    RestartPolicy,
    SecretRef,
)
from cube.model.stored import StoredKind, StoredRef
from cube.worker.health import CheckState, adopted_checks, changed_checks, fresh_checks, overall
from cube.worker.launch import LaunchRefused, NodeIdentity, build_launch
from cube.worker.restart import Final, RestartAfter, after_end, restart_times, spread_ms
from tests import builders
from tests.unit.worker.test_worker_machine import make_task

NODE = NodeIdentity(ClusterId("c"), NodeId("a"), "node-a", "10.0.0.1")
PORTS = (TaskPort("my-http", 20_001, 80, Protocol.TCP), TaskPort("dns", 20_002, 0, Protocol.UDP))


def launch_of(driver: str, node: NodeIdentity = NODE, **group: Any) -> Launch:
    launch = build_launch(
        make_task(driver=driver, ports=PORTS, slot=2, version=7, fence=41),
        builders.group(**group),
        3,
        node,
    )
    assert isinstance(launch, Launch)
    return launch


def test_the_environment_of_interface_md() -> None:
    env = launch_of("docker", env={"A": "b", "CUBE_SLOT": "99", "CUBE_FENCE": "99"}).env
    assert env == {
        "A": "b",
        "CUBE_JOB": "web",
        "CUBE_GROUP": "g",
        "CUBE_TASK_ID": "task-1",
        "CUBE_TASK_NAME": "web.g.2",
        "CUBE_SLOT": "2",
        "CUBE_JOB_VERSION": "7",
        "CUBE_NODE": "node-a",
        "CUBE_FENCE": "41",
        "CUBE_PORT_MY_HTTP": "80",
        "CUBE_HOST_PORT_MY_HTTP": "20001",
        "CUBE_ADDR_MY_HTTP": "10.0.0.1:20001",
        "CUBE_PORT_DNS": "20002",
        "CUBE_HOST_PORT_DNS": "20002",
        "CUBE_ADDR_DNS": "10.0.0.1:20002",
    }


def test_a_process_listens_on_its_host_port() -> None:
    launch = launch_of("process")
    assert [port.target for port in launch.ports] == [20_001, 20_002]
    assert launch.env["CUBE_PORT_MY_HTTP"] == "20001"


def test_an_ipv6_address_is_written_with_brackets() -> None:
    node = msgspec.structs.replace(NODE, advertise="fd00::1")
    assert launch_of("process", node).env["CUBE_ADDR_DNS"] == "[fd00::1]:20002"


@pytest.mark.parametrize(("most", "limit"), [(0, 64 << 20), (128 << 20, 128 << 20)])
def test_the_reservation_is_the_limit_unless_there_is_one(most: int, limit: int) -> None:
    launch = launch_of("docker", memory_max_bytes=most, cpu_max_milli=500, pids=7)
    assert (launch.memory_bytes, launch.memory_limit_bytes) == (64 << 20, limit)
    assert (launch.cpu_milli, launch.cpu_max_milli, launch.pids_limit) == (100, 500, 7)
    assert launch.attempt == 3


def test_what_the_version_of_the_job_has_not_refuses_the_launch() -> None:
    group = builders.group(env={"P": SecretRef("db")})
    for uses in ({}, {"secret/db": 0}, {"config/db": 1}):
        refused = build_launch(make_task(), group, 1, NODE, uses=uses)
        assert isinstance(refused, LaunchRefused)
        assert refused.code == "secret_missing"
        assert "no secret db; `cube secret set db`" in refused.message
    mounted = builders.group(mounts=(MountSpec(MountType.CONFIG, "/run/x", "c"),))
    refused = build_launch(make_task(), mounted, 1, NODE, uses={"secret/c": 1})
    assert isinstance(refused, LaunchRefused)
    assert refused.code == "config_missing"


def test_a_launch_says_which_values_it_needs_and_has_none() -> None:
    mounts = (
        MountSpec(MountType.SECRET, "/run/secrets/key", "tls", True, 0, 0o440, 101, 0),
        MountSpec(MountType.CONFIG, "/etc/app.toml", "app", True, 0, 0o444),
        MountSpec(MountType.VOLUME, "/data", "data"),
    )
    group = builders.group(
        env={"A": "plain", "P": SecretRef("db")},
        mounts=mounts,
        docker=DockerOptions(registry_secret="login"),
    )
    uses = {"secret/db": 2, "secret/tls": 1, "config/app": 7, "secret/login": 0}
    launch = build_launch(make_task(driver="docker"), group, 1, NODE, uses=uses)
    assert isinstance(launch, Launch)
    assert launch.env["A"] == "plain"
    assert "P" not in launch.env
    assert launch.env_from == {"P": LaunchValue(StoredRef(StoredKind.SECRET, "db"), 2)}
    assert launch.login_from == LaunchValue(StoredRef(StoredKind.SECRET, "login"), 0)
    assert launch.mounts == mounts[2:]
    assert launch.files == (
        LaunchFile(
            value=LaunchValue(StoredRef(StoredKind.SECRET, "tls"), 1),
            target="/run/secrets/key", mode=0o440, uid=101, gid=0,
        ),
        LaunchFile(
            value=LaunchValue(StoredRef(StoredKind.CONFIG, "app"), 7),
            target="/etc/app.toml", mode=0o444,
        ),
    )  # fmt: skip
    assert launch.env["CUBE_SECRETS_DIR"] == "/run/secrets"
    assert launch.env["CUBE_CONFIGS_DIR"] == "/run/configs"


def test_delays_double_are_spread_a_little_and_never_vanish() -> None:
    policy = RestartPolicy(attempts=100, delay_ms=1000, max_delay_ms=8000)
    for restarts, delay_ms in enumerate((1000, 2000, 4000, 8000, 8000)):
        verdict = after_end(policy, JobType.SERVICE, False, restarts, TaskId("t"), restarts + 1)
        assert isinstance(verdict, RestartAfter)
        assert delay_ms <= verdict.delay_ms <= delay_ms * 1.1
    hasty = RestartPolicy(delay_ms=0)
    verdict = after_end(hasty, JobType.SERVICE, False, 0, TaskId("t"), 1)
    assert isinstance(verdict, RestartAfter)
    assert verdict.delay_ms >= 100


def test_no_restarts_allowed_means_none() -> None:
    verdict = after_end(RestartPolicy(attempts=0), JobType.SERVICE, False, 0, TaskId("t"), 1)
    assert verdict == Final(TaskState.FAILED, exhausted=True)


def test_the_spread_is_the_same_each_time_and_within_its_span() -> None:
    spreads = [spread_ms(f"task-{n}", 50) for n in range(200)]
    assert spreads == [spread_ms(f"task-{n}", 50) for n in range(200)]
    assert min(spreads) >= 0
    assert max(spreads) <= 50
    assert len(set(spreads)) > 25


def test_restarts_are_read_from_the_history() -> None:
    history = tuple(
        HistoryEntry(TaskState.RUNNING, at_ms, attempt)
        for at_ms, attempt in ((1000, 1), (2000, 2), (2500, 2), (9000, 3))
    )
    assert restart_times(make_task(history=history), 10_000, 500) == [-7500, -500]


def check(**changes: Any) -> CheckSpec:
    return CheckSpec("c", CheckType.EXEC, command=("x",), **changes)


def test_the_first_counted_failures_come_at_the_interval_as_if_there_were_no_early_probes() -> None:
    state = fresh_checks(builders.group(checks=(check(interval_ms=10_000),)), 0)["c"]
    counted = []
    while state.status is Health.UNKNOWN:
        now_ms, before = state.due_ms, state.failures
        state.on_result(False, "no", now_ms, 500)
        if state.failures > before:
            counted.append(now_ms)
    assert counted == [10_000, 20_000, 30_000]
    assert state.status is Health.UNHEALTHY


def test_healthy_needs_so_many_in_a_row() -> None:
    state = fresh_checks(builders.group(checks=(check(healthy_after=3),)), 0)["c"]
    for answer in (True, True, False, True, True):
        state.on_result(answer, "", state.due_ms, 500)
    assert overall({"c": state}) is Health.UNKNOWN
    state.on_result(True, "", state.due_ms, 500)
    assert overall({"c": state}) is Health.HEALTHY


def test_unhealthy_turns_once_and_recovers() -> None:
    state = CheckState(check(unhealthy_after=2), due_ms=0, grace_until_ms=0)
    turned = [state.on_result(False, "no", n, 500) for n in range(4)]
    assert turned == [False, True, False, False]
    state.on_result(True, "", 5, 500)
    assert state.status is Health.HEALTHY


def test_adopted_checks_go_on_from_healthy_without_grace() -> None:
    group = builders.group(checks=(check(unhealthy_after=1, start_period_ms=60_000),))
    state = adopted_checks(group, Health.HEALTHY, 100)["c"]
    assert (state.status, overall({"c": state})) == (Health.HEALTHY, Health.HEALTHY)
    assert state.on_result(False, "no", 100, 500)
    assert adopted_checks(group, Health.UNHEALTHY, 100)["c"].status is Health.UNKNOWN


def test_only_changed_checks_start_afresh() -> None:
    other = msgspec.structs.replace(check(), name="d")
    checks = fresh_checks(builders.group(checks=(check(), other)), 0)
    changed = msgspec.structs.replace(other, interval_ms=1)
    after = changed_checks(checks, builders.group(checks=(check(), changed)), 5)
    assert after["c"] is checks["c"]
    assert after["d"] is not checks["d"]
    assert changed_checks(checks, builders.group(), 5) == {}


@pytest.mark.parametrize(
    ("statuses", "whole"),
    [
        ([], Health.NONE),
        ([Health.HEALTHY, Health.HEALTHY], Health.HEALTHY),
        ([Health.HEALTHY, Health.UNKNOWN], Health.UNKNOWN),
        ([Health.UNKNOWN, Health.UNHEALTHY], Health.UNHEALTHY),
    ],
)
def test_the_worst_check_counts(statuses: list[Health], whole: Health) -> None:
    checks = {
        str(n): CheckState(check(), due_ms=0, grace_until_ms=0, status=status)
        for n, status in enumerate(statuses)
    }
    assert overall(checks) is whole
