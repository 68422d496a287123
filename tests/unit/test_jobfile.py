"""The job file: what is accepted, what it means, and what each mistake is answered with."""

import importlib.resources
import json
from pathlib import Path

import pytest

from cube.model.errors import BadConfig
from cube.model.jobfile import parse_json, parse_toml, parse_tree
from cube.model.jobrender import diff, render
from cube.model.resources import Resources
from cube.model.spec import (
    CheckType,
    Constraint,
    CronSpec,
    DriverName,
    JobType,
    MountSpec,
    MountType,
    Operator,
    PlacementPolicy,
    PortSpec,
    RestartCondition,
    SecretRef,
    Ulimit,
    UpdateOrder,
)
from tests.unit.jobfile_mistakes import GROUP, ONE_ERROR, PLACE, PROCESS

EXAMPLES = importlib.resources.files("cube") / "examples"

MINIMAL = """
name = "shop"
type = "service"
[groups.web]
image = "nginx"
"""

WHOLE_PAGE = (Path(__file__).parent / "whole_page.toml").read_text()


def errors_of(text: str) -> list[tuple[str, str, str]]:
    with pytest.raises(BadConfig) as caught:
        parse_toml(text.encode())
    return [(error.path, error.problem, error.hint) for error in caught.value.errors]


@pytest.mark.parametrize("name", ["hello", "shop", "batch", "everywhere", "nightly"])
def test_every_example_parses_and_survives_the_round_trip(name: str) -> None:
    spec = parse_toml((EXAMPLES / f"{name}.toml").read_bytes())
    assert parse_tree(render(spec)) == spec
    assert parse_json(json.dumps(render(spec)).encode()) == spec


def test_the_compose_example_is_there() -> None:
    assert (EXAMPLES / "compose.yaml").is_file()


def test_defaults_of_a_service() -> None:
    spec = parse_toml(MINIMAL.encode())
    group = spec.groups["web"]
    assert (spec.name, spec.type, spec.priority) == ("shop", JobType.SERVICE, 50)
    assert (group.count, group.driver) == (1, DriverName.DOCKER)
    assert group.resources == Resources(cpu_milli=100, memory_bytes=64 << 20, disk_bytes=0)
    assert (group.cpu_max_milli, group.memory_max_bytes, group.pids) == (0, 0, 1024)
    assert (group.stop_signal, group.stop_timeout_ms, group.shutdown_delay_ms) == (
        "SIGTERM", 10_000, 0,
    )  # fmt: skip
    assert (group.restart.policy, group.reschedule.attempts) == (RestartCondition.ALWAYS, 0)
    assert group.placement.policy is None


@pytest.mark.parametrize("job_type", ["batch", "cron"])
def test_defaults_of_jobs_that_end(job_type: str) -> None:
    text = MINIMAL.replace("service", job_type)
    if job_type == "cron":
        text += '[cron]\nschedule = "0 3 * * MON-FRI"\ntimezone = "Europe/Berlin"\n'
    spec = parse_toml(text.encode())
    assert spec.groups["web"].restart.policy is RestartCondition.ON_FAILURE
    assert spec.groups["web"].reschedule.attempts == 1
    if job_type == "cron":
        assert spec.cron == CronSpec("0 3 * * MON-FRI", "Europe/Berlin")


def test_ports_bring_a_shutdown_delay_and_a_process_needs_no_target() -> None:
    spec = parse_toml((EXAMPLES / "hello.toml").read_bytes())
    group = spec.groups["web"]
    assert group.shutdown_delay_ms == 2_000
    assert group.ports == {"http": PortSpec(target=0, host=0)}
    assert group.checks[0].name == "http"
    assert (group.checks[0].interval_ms, group.checks[0].timeout_ms) == (1_000, 2_000)


def test_the_whole_page() -> None:
    group = parse_toml(WHOLE_PAGE.encode()).groups["web"]
    assert group.env == {
        "LOG_LEVEL": "info",
        "DB_PASSWORD": SecretRef("db-password"),
        "N": "3",
        "F": "1.5",
        "ON": "true",
    }
    assert group.mounts[1:] == (
        MountSpec(MountType.SECRET, "/etc/tls/key.pem", "tls-key", True, 0, 0o440, 101, 0),
        MountSpec(MountType.CONFIG, "/run/configs/nginx.conf", "nginx.conf", True, 0, 0o444),
    )
    assert group.command == ("nginx", "-g", "daemon off;")
    assert group.resources == Resources(250, 128 << 20, 100 << 20)
    assert (group.cpu_max_milli, group.memory_max_bytes, group.pids) == (1000, 256 << 20, 256)
    assert group.checks[0].type is CheckType.HTTP
    assert group.checks[0].start_period_ms == 10_000
    assert group.update.order is UpdateOrder.STOP_FIRST
    assert group.ulimits == (Ulimit("core", 0, -1), Ulimit("nofile", 1024, 1024))
    assert group.docker.ulimits == (Ulimit("memlock", -1, -1),)
    assert group.docker.shm_size_bytes == 64 << 20
    assert group.placement.policy is PlacementPolicy.SPREAD
    assert group.placement.constraints[1:4] == (
        Constraint("node.arch", Operator.IN, ("amd64", "arm64")),
        Constraint("node.name", Operator.MATCHES, "^web-[0-9]+$"),
        Constraint("driver.docker.version", Operator.GE, "20"),
    )
    assert group.placement.affinities[0].weight == 50


def test_a_process_finds_secrets_by_their_names() -> None:
    mounts = """command = ["c"]
mounts = [
  { type = "secret", source = "a" }, { type = "config", source = "a" },
  { type = "secret", source = "b", target = "other", mode = "440" },
]
"""
    group = parse_toml((PROCESS + mounts).encode()).groups["g"]
    assert group.mounts == (
        MountSpec(MountType.SECRET, "a", "a", True, 0, 0o400),
        MountSpec(MountType.CONFIG, "a", "a", True, 0, 0o444),
        MountSpec(MountType.SECRET, "other", "b", True, 0, 0o440),
    )


def test_json_takes_numbers_and_null_means_not_given() -> None:
    tree = {
        "name": "a",
        "type": "service",
        "cron": None,
        "groups": {
            "g": {"image": "i", "stop_timeout": 2.5, "resources": {"memory": 1 << 26, "cpu": 1}}
        },
    }
    group = parse_json(json.dumps(tree).encode()).groups["g"]
    assert (group.stop_timeout_ms, group.resources.memory_bytes) == (2_500, 1 << 26)
    assert group.resources.cpu_milli == 1_000


def test_checks_without_a_name_take_their_type_and_a_number() -> None:
    text = MINIMAL + "ports.http.target = 80\n"
    text += '[[groups.web.checks]]\nname = "tcp-2"\ntype = "tcp"\nport = "http"\n'
    text += '[[groups.web.checks]]\ntype = "tcp"\nport = "http"\n' * 2
    checks = parse_toml(text.encode()).groups["web"].checks
    assert [check.name for check in checks] == ["tcp-2", "tcp", "tcp-3"]


def test_a_max_delay_that_is_not_given_follows_a_long_delay() -> None:
    text = MINIMAL + 'restart.delay = "5m"\n'
    assert parse_toml(text.encode()).groups["web"].restart.max_delay_ms == 300_000


@pytest.mark.parametrize(("text", "path", "words"), ONE_ERROR, ids=range(len(ONE_ERROR)))
def test_one_mistake_is_one_error_with_its_path(text: str, path: str, words: str) -> None:
    found = errors_of(text)
    mine = [error for error in found if error[0] == path]
    assert mine, found
    assert words in f"{mine[0][1]} {mine[0][2]}"
    # The only mistake that brings a second error is a key that is misspelt and required.
    assert len(found) == 1 or "secrt" in text, found


def test_all_errors_at_once() -> None:
    found = errors_of("""
nam = "x"
type = "service"
[groups.web]
count = -1
imge = "nginx"
[groups.web.ports.http]
hst = 80
""")
    assert [error[0] for error in found] == [
        "name", "groups.web.count", "groups.web.image", "groups.web.ports.http.target",
        "groups.web.ports.http.hst", "groups.web.imge", "nam",
    ]  # fmt: skip


def test_a_cycle_is_shown_as_a_path() -> None:
    text = 'name = "j"\ntype = "service"\n'
    for name, target in [("x", "a"), ("a", "b"), ("b", "j/c"), ("c", "a")]:
        text += f'[groups.{name}]\nimage = "i"\ndepends_on = ["{target}"]\n'
    assert errors_of(text) == [("groups.a.depends_on", "is a cycle: a → b → c → a", "")]


def test_static_ports_may_differ_in_protocol_and_are_one_per_job() -> None:
    two = GROUP + "ports.a = { target = 53, host = 53 }\n"
    parse_toml((two + "ports.b = { target = 53, host = 53, protocol = 'udp' }").encode())
    found = errors_of(two + '[groups.h]\nimage = "i"\nports.c = { target = 1, host = 53 }')
    assert [error[0] for error in found] == ["groups.h.ports.c.host"]


def test_a_container_on_the_hosts_network_needs_no_target() -> None:
    parse_toml((GROUP + "docker.network_mode = 'host'\nports.http.host = 0").encode())


@pytest.mark.parametrize(
    ("data", "path", "words"),
    [
        (b'{"name": ', "(file)", "line 1, column 10"),
        (b'{"a": 1}\n}', "(file)", "line 2, column 1"),
        (b"\xff", "(file)", "line 1, column 1"),
        (b'{\n"a": "\xff"}', "(file)", "line 2, column 7"),
        (b"[" * 100_000, "(file)", "nested too deeply"),
        (b'{"a":' * 50_000, "(file)", "nested too deeply"),
        (b"[]", "(file)", "must be a table, not a list"),
        (b"null", "(file)", "must be a table"),
        (b" " * 600_000, "(file)", "at most 524288"),
        (b'{"name": "a", "name": "b"}', "name", "more than once"),
        (b'{"priority": NaN}', "priority", "whole number, not nan"),
        (b'{"priority": 1e999}', "priority", "whole number, not inf"),
        (b'{"priority": -' + b"9" * 9999 + b"}", "priority", "that large"),
        (b'{"name": "\\ud800"}', "name", "control character"),
    ],
)
def test_json_that_is_wrong(data: bytes, path: str, words: str) -> None:
    with pytest.raises(BadConfig) as caught:
        parse_json(data)
    found = {error.path: f"{error.problem} {error.hint}" for error in caught.value.errors}
    assert words in found[path]


def test_a_hostile_file_gets_a_small_answer() -> None:
    text = "\n".join(f"k{number} = 1" for number in range(20_000))
    found = errors_of(text)
    assert len(found) == 201
    assert "19" in found[-1][1]
    assert len(str(found)) < 100_000


def test_a_job_that_would_not_fit_in_a_log_entry_is_refused() -> None:
    group = {"image": "i", "command": ["x" * 60_000]}
    tree = {"name": "j", "type": "service", "groups": {f"g{n}": group for n in range(6)}}
    with pytest.raises(BadConfig, match="at most 262144"):
        parse_tree(tree)


def test_byte_order_mark_and_windows_line_ends() -> None:
    parse_toml(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())


@pytest.mark.parametrize("name", ["node.kernel", "node.cores", "driver.docker", "node.labels.a/b"])
def test_attributes_beyond_the_listed_ones(name: str) -> None:
    text = PLACE + f"constraints = [ {{ attribute = '{name}', operator = 'exists' }} ]"
    parse_toml(text.encode())


def test_diff_names_each_changed_path() -> None:
    old = render(parse_toml(MINIMAL.encode()))
    new = render(parse_toml((MINIMAL + "count = 3\nenv.A = 'b'\ncommand = ['x']\n").encode()))
    assert diff(old, old) == []
    assert diff(old, new) == [
        ("groups.web.command", [], ["x"]),
        ("groups.web.count", 1, 3),
        ("groups.web.env.A", None, "b"),
    ]
