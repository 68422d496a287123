"""Any bytes and any tree are a JobSpec or BadConfig, and a JobSpec survives render and parse."""

import copy
import json
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import HealthCheck, given, settings

from cube.model.bookapi import book_task
from cube.model.errors import BadConfig, ConfigError
from cube.model.jobfile import parse_json, parse_toml, parse_tree
from cube.model.jobrender import diff, render
from cube.model.jobtoml import job_toml
from cube.model.spec import (
    CheckType,
    JobSpec,
    JobType,
    MountType,
    OnCheckFailure,
    OnPartition,
    OnUpdateFailure,
    Operator,
    Overlap,
    PlacementPolicy,
    Protocol,
    RestartCondition,
    UpdateOrder,
)
from cube.model.warnings import warnings

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
LINES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
MS = st.integers(0, 10 * 365 * 86_400_000)
DURATIONS = st.one_of(
    MS.map(lambda ms: ms / 1000), st.integers(0, 3600), st.sampled_from(["0s", "1h30m", "250ms"])
)
BYTES = st.one_of(st.integers(0, 1 << 50), st.sampled_from(["64KiB", "1.5GiB", "7"]))
ATTRIBUTES = st.sampled_from(["node.id", "node.os", "node.labels.a-b", "driver.docker.version"])


def words(values: Any) -> st.SearchStrategy[str]:
    return st.sampled_from([value.value for value in values])


def optional(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


@st.composite
def conditions(draw: st.DrawFn, /, **more: st.SearchStrategy[Any]) -> dict[str, Any]:
    operator = draw(words(Operator))
    tree: dict[str, Any] = {"attribute": draw(ATTRIBUTES), "operator": operator}
    if operator in ("in", "not_in"):
        tree["value"] = draw(st.lists(LINES, min_size=1, max_size=3))
    elif operator == "matches":
        tree["value"] = draw(st.sampled_from(["^a+$", ".*", "x|y"]))
    elif operator not in ("exists", "not_exists"):
        tree["value"] = draw(st.one_of(LINES, st.integers(0, 99), st.booleans()))
    return tree | draw(optional(**more))


@st.composite
def checks(draw: st.DrawFn, ports: list[str]) -> dict[str, Any]:
    kinds = list(CheckType) if ports else [CheckType.EXEC]
    kind = draw(st.sampled_from(kinds))
    tree: dict[str, Any] = {"type": kind.value}
    if kind is CheckType.EXEC:
        tree["command"] = ["x", draw(WORDS)]
    else:
        tree["port"] = draw(st.sampled_from(ports))
    if kind is CheckType.HTTP:
        tree["path"] = "/" + draw(st.from_regex(r"[a-z/?=]{0,9}", fullmatch=True))
    return tree | draw(
        optional(
            interval=st.integers(1, 99),
            timeout=st.integers(1, 99),
            start_period=DURATIONS,
            healthy_after=st.integers(1, 9),
            unhealthy_after=st.integers(1, 9),
            on_failure=words(OnCheckFailure),
        )
    )


@st.composite
def mounts(draw: st.DrawFn, number: int, process: bool) -> dict[str, Any]:
    stored = [MountType.SECRET, MountType.CONFIG]
    kind = draw(st.sampled_from(stored if process else list(MountType)))
    tree: dict[str, Any] = {"type": kind.value, "target": f"/mnt/{number}"}
    if kind in (MountType.SECRET, MountType.CONFIG):
        if process or draw(st.booleans()):
            tree["target"] = f"file-{number}"
        ids = st.integers(0, (1 << 32) - 2)
        modes = st.sampled_from(["0400", "444", "0777"])
        tree |= draw(optional(mode=modes, uid=ids, gid=ids, read_only=st.just(True)))
        return tree | {"source": draw(NAMES)}
    if kind is MountType.VOLUME:
        tree["source"] = draw(NAMES)
    elif kind is MountType.BIND:
        tree["source"] = "/" + draw(NAMES)
    else:
        tree["size"] = draw(BYTES)
    return tree | draw(optional(read_only=st.booleans()))


def ulimits(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(
        st.sampled_from(names),
        st.one_of(
            st.integers(-1, 99), st.just({"soft": 1, "hard": -1}), st.just({"soft": 1, "hard": 2})
        ),
    )


DOCKER = optional(
    init=st.booleans(), privileged=st.booleans(), read_only=st.booleans(),
    network_mode=st.sampled_from(["bridge", "none", "host", "container:x"]),
    cap_add=st.just(["NET_ADMIN"]), cap_drop=st.just(["ALL"]), devices=st.just(["/dev/null"]),
    gpus=st.one_of(st.just("all"), st.integers(0, 8)),
    ulimits=ulimits("memlock", "locks"),
    shm_size=BYTES, memory_swap=BYTES, security_opt=st.lists(LINES, max_size=2),
    dns=st.just(["10.0.0.1", "::1"]),
    extra_hosts=st.just(["a:10.0.0.1"]), hostname=st.just("web.local"),
    labels=st.dictionaries(st.sampled_from(["a", "com.example/x", "é"]), WORDS),
    pull=st.sampled_from(["missing", "always", "never"]), registry_secret=st.just("reg"),
)  # fmt: skip


@st.composite
def groups(
    draw: st.DrawFn, job_type: str, others: list[str], static: Callable[[], int]
) -> dict[str, Any]:
    process = draw(st.booleans())
    names = draw(st.lists(NAMES, max_size=3, unique=True))
    ports = {}
    for name in names:
        port = {"target": draw(st.integers(1, 65535))}
        if draw(st.booleans()):
            port["host"] = static()
        ports[name] = port
    memory = draw(st.integers(6 << 20, 1 << 40))
    cpu = draw(st.integers(0, 1000))
    tree: dict[str, Any] = {
        "ports": {name: {**port, "protocol": "tcp"} for name, port in ports.items()},
        "mounts": [draw(mounts(number, process)) for number in range(draw(st.integers(0, 2)))],
        "ulimits": draw(ulimits("nofile", "core", "nproc")),
        "checks": draw(st.lists(checks(names), max_size=3)),
        "resources": {
            "memory": memory,
            "memory_max": draw(st.sampled_from([None, memory, memory + 1])),
            "cpu": cpu / 1000,
            "cpu_max": draw(st.sampled_from([None, 1000])),
            "disk": draw(BYTES),
            "pids": draw(st.integers(1, 9999)),
        },
        "depends_on": draw(st.lists(st.sampled_from(others), unique=True, max_size=2)),
    }
    if process:
        tree |= {"driver": "process", "command": ["x", *draw(st.lists(WORDS, max_size=2))]}
    else:
        tree |= {"image": "busybox:1", "docker": draw(DOCKER)}
        if names and tree["docker"].get("network_mode") in ("none", "container:x"):
            tree["docker"]["network_mode"] = "front"
        tree |= draw(optional(command=st.lists(WORDS, max_size=2), entrypoint=st.just(["a"])))
    if job_type != "system":
        tree["count"] = draw(st.integers(0, 9))
        tree["at_most_one"] = tree["count"] < 2 and draw(st.booleans())
    tree["on_partition"] = "stop" if tree.get("at_most_one") else draw(words(OnPartition))
    if tree["on_partition"] == "stop":
        tree["lost_after"] = draw(st.sampled_from(["2s", 30, "1h"]))
    more = draw(
        optional(
            env=st.dictionaries(
                st.sampled_from(["A", "b.c", "É"]),
                st.one_of(
                    WORDS,
                    st.integers(-9, 9),
                    st.floats(allow_nan=False, allow_infinity=False),
                    st.booleans(),
                    st.just({"secret": "db"}),
                ),
            ),
            user=st.sampled_from(["101", "a:b"]),
            working_dir=st.just("/srv"),
            stop_signal=st.sampled_from(["SIGTERM", "INT"]),
            stop_timeout=DURATIONS,
            shutdown_delay=DURATIONS,
            restart=optional(
                policy=words(RestartCondition),
                attempts=st.integers(0, 9),
                delay=DURATIONS,
                max_delay=st.just("3650d"),
                window=st.integers(1, 9),
            ),
            reschedule=optional(
                attempts=st.integers(0, 9), delay=DURATIONS, max_delay=st.just("3650d")
            ),
            update=optional(
                parallelism=st.integers(1, 9),
                order=words(UpdateOrder),
                min_healthy=st.integers(0, 59),
                deadline=st.integers(60, 99),
                on_failure=words(OnUpdateFailure),
                canaries=st.integers(0, tree.get("count", 1)),
            ),
            placement=optional(
                policy=words(PlacementPolicy),
                spread_over=st.lists(ATTRIBUTES, max_size=2),
                max_per_node=st.integers(0, 9),
                constraints=st.lists(conditions(), max_size=3),
                affinities=st.lists(conditions(weight=st.integers(-100, 100)), max_size=3),
            ),
        )
    )
    if tree.get("at_most_one"):
        more.get("update", {}).pop("order", None)  # start-first is at odds with it
    return tree | more


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Trees that are right by construction."""
    job_type = draw(words(JobType))
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    used = iter(range(1024, 2048))
    tree: dict[str, Any] = {"name": draw(NAMES), "type": job_type, "groups": {}}
    others = ["other-job/db"]
    for name in names:
        tree["groups"][name] = draw(groups(job_type, others, lambda: next(used)))
        others = [*others, name]
    if job_type == "cron":
        tree["cron"] = {"schedule": "*/5 0-6 * * MON", "overlap": draw(words(Overlap))}
        if any(group.get("at_most_one") for group in tree["groups"].values()):
            tree["cron"]["overlap"] = draw(st.sampled_from(["forbid", "replace"]))
    return tree | draw(
        optional(priority=st.integers(1, 100), meta=st.dictionaries(LINES, WORDS, max_size=2))
    )


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9),
    st.integers(min_value=10**400, max_value=10**401), st.dates(), st.binary(max_size=3),
    st.sampled_from(["docker", "http", "10s", "a", "==", "in", "matches", "(" * 50, "\ud800"]),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(["name", "type", "groups", "web", "command", "checks", "ports", "env", "cron"]),
    st.text(max_size=5),
    st.integers(),
    st.none(),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=20,
)


def outcome(parse: Callable[[Any], JobSpec], source: object) -> JobSpec | list[ConfigError]:
    try:
        return parse(source)
    except BadConfig as bad:
        return bad.errors


def judge(tree: object) -> None:
    spec = outcome(parse_tree, tree)
    if isinstance(spec, JobSpec):
        assert parse_tree(render(spec)) == spec
        assert parse_toml(job_toml(spec).encode()) == spec
        warnings(spec)
        return
    assert spec
    for error in spec:
        assert error.path and error.problem
        assert len(str(error)) < 2_000
        assert "\n" not in str(error)
        assert str(error).encode()


@given(jobs())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_right_job_survives_every_round_trip(tree: dict[str, Any]) -> None:
    spec = parse_tree(tree)
    assert parse_tree(render(spec)) == spec
    assert parse_json(json.dumps(render(spec)).encode()) == spec
    assert parse_toml(job_toml(spec).encode()) == spec
    assert diff(render(spec), render(spec)) == []
    packed = msgspec.msgpack.encode(spec)  # what the log carries
    assert msgspec.msgpack.decode(packed, type=JobSpec) == spec


@given(jobs(), st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_job_with_anything_anywhere_is_a_spec_or_bad(tree: dict[str, Any], data: Any) -> None:
    tree = copy.deepcopy(tree)
    node: Any = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys)) if keys else None
        if key is None or not isinstance(node[key], dict | list) or data.draw(st.booleans()):
            break
        node = node[key]
    if isinstance(node, dict) and (key is None or data.draw(st.booleans())):
        key = data.draw(KEYS)
    if key is not None:
        node[key] = data.draw(ANYTHING)
    judge(tree)


@given(ANYTHING)
@settings(max_examples=200, deadline=None)
def test_any_tree_is_a_spec_or_bad(tree: object) -> None:
    judge(tree)
    judge({"name": "a", "type": "service", "groups": tree})
    judge({"name": "a", "type": "cron", "cron": tree, "groups": {"web": tree}})


@given(st.one_of(st.binary(max_size=200), st.text(alphabet="[]{}\".=,#\n\\'ab0", max_size=80)))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_a_spec_or_bad(data: bytes | str) -> None:
    raw = data if isinstance(data, bytes) else data.encode()
    for parse in (parse_toml, parse_json, book_task):
        assert outcome(parse, raw)


@given(
    st.fixed_dictionaries({"Task": st.fixed_dictionaries({}, optional={
        "ID": SCALARS, "Name": SCALARS, "Image": st.one_of(st.just("img"), SCALARS),
        "Cpu": SCALARS, "Memory": SCALARS, "ExposedPorts": ANYTHING, "RestartPolicy": SCALARS,
        "PortBindings": st.one_of(st.just({"80/tcp": "80"}), ANYTHING), "HealthCheck": SCALARS,
    })})
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_any_book_task_is_a_spec_or_bad(tree: object) -> None:
    spec = outcome(book_task, tree)
    if isinstance(spec, JobSpec):
        assert parse_tree(render(spec)) == spec
    else:
        assert not [error.path for error in spec if error.path.startswith("groups.")]


def test_protocols_and_ports_round_trip() -> None:
    port = {"target": 53, "host": 53, "protocol": Protocol.UDP.value}
    tree = {"name": "a", "type": "service", "groups": {"g": {"image": "i", "ports": {"d": port}}}}
    spec = parse_tree(tree)
    assert parse_tree(render(spec)) == spec
