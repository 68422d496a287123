"""The agent's configuration: the example file, precedence, relations, and every error at once."""

import tomllib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from cube.adapters.raft.settings import RaftSettings
from cube.config import Config, LogLevel, Switch, build, load, parse_address
from cube.config.load import SECTIONS, keys_of
from cube.config.settings import BindSettings, RaftValues
from cube.model.cluster import ClusterSettings
from cube.model.errors import BadConfig
from cube.model.places import default_data_dir
from cube.model.resources import Resources
from cube.model.spec import PlacementPolicy

EXAMPLE = Path(__file__).parents[2] / "cluster.example.toml"
DEFAULT = build({}, {}, {})
TOKEN = f"CUBE-1-{'a' * 64}-{'b' * 32}"


def errors_of(
    tree: object, env: dict[str, str] | None = None, flags: dict[str, Any] | None = None
) -> dict[str, str]:
    with pytest.raises(BadConfig) as caught:
        build(tree, env or {}, flags or {})
    return {error.path: f"{error.problem} ({error.hint})" for error in caught.value.errors}


def test_the_example_is_the_defaults() -> None:
    from_example = load(EXAMPLE, {"HOME": "/h"}, {})
    assert from_example == load(None, {"HOME": "/h"}, {})
    assert from_example.node.data_dir in ("/var/lib/cube", "/h/.local/share/cube")
    assert msgspec.structs.replace(from_example, node=DEFAULT.node) == DEFAULT


def test_the_example_has_every_key_and_no_other() -> None:
    tree: Any = tomllib.loads(EXAMPLE.read_text())
    for path in SECTIONS:
        section = tree
        for part in path.split("."):
            section = section[part]
        mine = {f"{path}.{key}" for key in section} - set(SECTIONS)
        assert mine == {f"{path}.{key}" for key in keys_of(path)}
    assert {path.partition(".")[0] for path in SECTIONS} == set(tree)


def test_the_defaults() -> None:
    bind = BindSettings(advertise="127.0.0.1")
    assert Config(bind=bind) == DEFAULT
    assert (bind.http, bind.raft, bind.gossip) == (7700, 7701, 7702)
    assert (DEFAULT.cluster.node_grace_ms, DEFAULT.cluster.dead_voter_grace_ms) == (5_000, 10_000)
    assert (DEFAULT.cluster.write_timeout_ms, DEFAULT.raft.voters) == (5_000, 5)
    assert DEFAULT.scheduler.policy is PlacementPolicy.EPVM
    assert not DEFAULT.insecure


def test_what_is_kept_twice_is_equal() -> None:
    theirs, ours = RaftSettings(), RaftValues()
    for field in ("heartbeat_ms", "election_min_ms", "election_max_ms", "snapshot_every"):
        assert getattr(theirs, field) == getattr(ours, field)


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "cube.toml"
    file.write_text(
        "[bind]\nhttp = 1001\nraft = 1002\ngossip = 1003\n"
        '[node]\ndata_dir = "/file"\nlabels = { zone = "a", rack = 7 }\n'
    )
    env = {"CUBE_BIND_RAFT": "2002", "CUBE_BIND_GOSSIP": "2003", "CUBE_DATA_DIR": "/env"}
    flags = {"gossip": 3003, "http": None, "join": (), "label": ("zone=b", "disk=ssd")}
    config = load(file, env, flags)
    assert (config.bind.http, config.bind.raft, config.bind.gossip) == (1001, 2002, 3003)
    assert config.node.data_dir == "/env"
    assert config.node.labels == {"zone": "b", "rack": "7", "disk": "ssd"}


def test_every_kind_of_value_from_the_environment() -> None:
    config = build(
        {},
        {
            "CUBE_JOIN": "10.0.0.1, 10.0.0.2:8800,",
            "CUBE_NODE_LABELS": "zone=a,disk=ssd",
            "CUBE_NODE_CPU": "1.5",
            "CUBE_NODE_RESERVED_MEMORY": "256MiB",
            "CUBE_CLUSTER_NODE_GRACE": "7s",
            "CUBE_GOSSIP_SUSPICION_MULT": "2.5",
            "CUBE_DRIVERS_DOCKER_ENABLED": "false",
            "CUBE_DRIVERS_PROCESS_ENABLED": "ON",
            "CUBE_SCHEDULER_PREEMPTION": "no",
            "CUBE_LOGS_LEVEL": "debug",
            "CUBE_JOIN_TOKEN": TOKEN,
            "CUBE_RAFT_VOTERS": "",
            "CUBE_ADDR": "http://127.0.0.1:7700",
            "CUBE_NODE": "n1",
            "HOME": "/root",
        },
        {},
    )
    assert config.cluster.join == ("10.0.0.1:7700", "10.0.0.2:8800")
    assert config.node.labels == {"zone": "a", "disk": "ssd"}
    assert config.node.cpu_milli == 1_500
    assert config.node.reserved == Resources(memory_bytes=256 << 20)
    assert config.cluster.node_grace_ms == 7_000
    assert config.gossip.suspicion_mult == 2.5
    assert (config.drivers.docker.enabled, config.drivers.process.enabled) == (
        Switch.OFF, Switch.ON,
    )  # fmt: skip
    assert config.logs.level is LogLevel.DEBUG
    assert config.auth.join_token == TOKEN
    assert config.raft.voters == 5


def test_every_flag_of_cube_agent() -> None:
    flags = {
        "insecure": True, "data_dir": "D1", "join": ("h1", "[::1]:9"), "name": "n1",
        "bind": "127.0.0.2", "advertise": "localhost", "http": 1, "raft": 2, "gossip": 3,
        "label": ("a=b=c",), "token": TOKEN,
    }  # fmt: skip
    config = build({}, {}, flags)
    assert config.insecure
    assert (config.node.data_dir, config.node.name, config.node.labels) == (
        "D1", "n1", {"a": "b=c"},
    )  # fmt: skip
    assert config.cluster.join == ("h1:7700", "[::1]:9")
    assert config.bind == BindSettings(
        address="127.0.0.2", advertise="localhost", http=1, raft=2, gossip=3
    )
    assert config.auth.join_token == TOKEN


@pytest.mark.parametrize(
    ("tree", "path", "words"),
    [
        ({"nod": {}}, "nod", "did you mean `node`?"),
        ({"insecure": True}, "insecure", "--insecure"),
        ({"node": 3}, "node", "must be a table"),
        ({"node": {"nme": "x"}}, "node.nme", "did you mean `name`?"),
        ({"node": {"name": "a b"}}, "node.name", "not a name"),
        ({"node": {"labels": {"a b": "c"}}}, 'node.labels."a b"', "not a name for a label"),
        ({"node": {"labels": {"a": [1]}}}, "node.labels.a", "must be text"),
        ({"node": {"cpu": 2, "reserved": {"cpu": 2}}}, "node.reserved.cpu", "leaves no cpu"),
        ({"node": {"reserved": {"cpus": 2}}}, "node.reserved.cpus", "did you mean `cpu`?"),
        ({"bind": {"http": 0}}, "bind.http", "between 1 and 65535, not 0"),
        ({"bind": {"http": 70000}}, "bind.http", "between 1 and 65535"),
        ({"bind": {"http": "80"}}, "bind.http", "whole number, not text"),
        ({"bind": {"raft": 7700}}, "bind.raft", "is the port of http too"),
        ({"bind": {"address": "a:1"}}, "bind.address", "without port"),
        ({"bind": {"address": "0.0.0.0"}}, "bind.advertise", "is required with 0.0.0.0"),
        ({"bind": {"advertise": "::"}}, "bind.advertise", "others can reach"),
        ({"bind": {"port_range": "30000-20000"}}, "bind.port_range", "no range of ports"),
        ({"bind": {"port_range": "80-90"}}, "bind.port_range", "1024-65535"),
        ({"cluster": {"name": ""}}, "cluster.name", "not a name"),
        ({"cluster": {"join": "10.0.0.1"}}, "cluster.join", "list of texts"),
        ({"cluster": {"join": ["http://x:1"]}}, "cluster.join", "HOST or HOST:PORT"),
        ({"cluster": {"join": ["7700"]}}, "cluster.join", "HOST or HOST:PORT"),
        ({"cluster": {"join": ["h:0"]}}, "cluster.join", "HOST or HOST:PORT"),
        (
            {"cluster": {"bootstrap_expect": 3, "join": ["a", "b"], "secret_file": "s"}},
            "cluster.bootstrap_expect",
            "join names 2",
        ),
        (
            {"cluster": {"bootstrap_expect": 1, "join": ["a"]}},
            "cluster.secret_file",
            "is required with bootstrap_expect",
        ),
        ({"cluster": {"node_grace": "10ms"}}, "cluster.node_grace", "at least 1s"),
        ({"raft": {"voters": 4}}, "raft.voters", "must be odd"),
        ({"raft": {"heartbeat": "200ms"}}, "raft.election_min", "three times heartbeat"),
        ({"raft": {"election_max": "600ms"}}, "raft.election_max", "more than election_min"),
        ({"raft": {"election_max": "1h"}}, "raft.election_max", "at most 3s"),
        ({"gossip": {"probe_ms": 1}}, "gossip.probe_ms", "did you mean `probe`?"),
        ({"gossip": {"probe_timeout": "900ms"}}, "gossip.probe_timeout", "two thirds of probe"),
        ({"gossip": {"suspicion_mult": True}}, "gossip.suspicion_mult", "must be a number"),
        ({"gossip": {"suspicion_mult": 1e999}}, "gossip.suspicion_mult", "out of range"),
        ({"drivers": {"docker": {"enabled": "maybe"}}}, "drivers.docker.enabled", "auto, on, off"),
        ({"drivers": {"docker": {"allow": ["root"]}}}, "drivers.docker.allow", "privileged"),
        ({"drivers": {"process": {"allow": ["bind"]}}}, "drivers.process.allow", "root"),
        ({"drivers": {"process": {"allow": "root"}}}, "drivers.process.allow", "list of texts"),
        ({"drivers": {"process": {"user": "a b"}}}, "drivers.process.user", "user:group"),
        ({"drivers": {"process": {"users": "alice"}}}, "drivers.process.users", "list of texts"),
        ({"drivers": {"process": {"users": ["a,b"]}}}, "drivers.process.users", "user:group"),
        ({"drivers": {"process": {"users": [""]}}}, "drivers.process.users", "user:group"),
        ({"drivers": {"process": {"users": ["root"]}}}, "drivers.process.users", "allow = "),
        ({"drivers": {"process": {"users": ["a:0"]}}}, "drivers.process.users", "allow = "),
        ({"drivers": {"podman": {}}}, "drivers.podman", "accepted: docker, process"),
        ({"scheduler": {"policy": "best"}}, "scheduler.policy", "epvm"),
        ({"scheduler": {"preemption": "on"}}, "scheduler.preemption", "true or false"),
        ({"logs": {"files": 0}}, "logs.files", "between 1 and 100"),
        ({"gc": {"x": 1}}, "gc.x", "unknown key"),
        ({"gc": {"disk_free_min": "a bit"}}, "gc.disk_free_min", "is not a size"),
        ({"gc": {"image_disk_percent": 101}}, "gc.image_disk_percent", "between 0 and 100"),
        ({"gc": {"image_disk_percent": "80%"}}, "gc.image_disk_percent", "whole number, not text"),
        ({"gc": {"image_unused_for": "a day"}}, "gc.image_unused_for", "is not a duration"),
        ({"gc": {"finished_per_slot": 0}}, "gc.finished_per_slot", "between 1 and 100"),
        ({"gc": {"finished_per_slot": "5"}}, "gc.finished_per_slot", "whole number, not text"),
        ({"gc": {"finished_for": "1m"}}, "gc.finished_for", "at least 5m"),
        ({"gc": {"finished_beyond": "-1s"}}, "gc.finished_beyond", "is not a duration"),
        ({"gc": {"finished_after": "1h"}}, "gc.finished_after", "did you mean `finished_for`?"),
    ],
)
def test_one_mistake_is_one_error(tree: object, path: str, words: str) -> None:
    found = errors_of(tree)
    assert set(found) == {path}
    assert words in found[path]


def test_errors_name_the_place_that_the_value_came_from() -> None:
    env = {"CUBE_RAFT_VOTERS": "four", "CUBE_RAFT_VOTER": "3", "CUBE_DATA_DIR": "a\x00b"}
    flags = {"http": 0, "label": ("nonsense",), "advertise": "10.0.0.1", "insecure": True}
    found = errors_of({"raft": {"voters": 4}, "bind": {"raft": 0}}, env, flags)
    assert set(found) == {
        "CUBE_RAFT_VOTERS", "CUBE_RAFT_VOTER", "CUBE_DATA_DIR", "--http", "--label",
        "--advertise", "bind.raft",
    }  # fmt: skip
    assert "did you mean `CUBE_RAFT_VOTERS`?" in found["CUBE_RAFT_VOTER"]
    assert "--insecure is for loopback only, not 10.0.0.1" in found["--advertise"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_insecure_on_loopback(host: str) -> None:
    assert build({}, {}, {"insecure": True, "bind": host}).bind.advertise == host


@pytest.mark.parametrize("host", ["10.0.0.1", "example.org", "::", "localhost.evil.org"])
def test_insecure_elsewhere_is_refused(host: str) -> None:
    found = errors_of({}, flags={"insecure": True, "bind": host, "advertise": "127.0.0.1"})
    assert set(found) == {"--bind"}
    found = errors_of({}, flags={"insecure": True, "advertise": host})
    assert set(found) == {"--advertise"}


def test_who_is_told_where_to_be_reached_listens_there() -> None:
    bind = build({}, {}, {"advertise": "10.0.0.5"}).bind
    assert (bind.address, bind.advertise) == ("10.0.0.5", "10.0.0.5")
    bind = build({}, {}, {"advertise": "10.0.0.5", "bind": "127.0.0.1"}).bind
    assert (bind.address, bind.advertise) == ("127.0.0.1", "10.0.0.5")
    assert build({}, {}, {"advertise": "host.example"}).bind.address == "127.0.0.1"


@pytest.mark.parametrize("token", ["T", "CUBE-1-x", "cube_00000000_" + "a" * 64])
def test_a_join_token_that_is_none_is_told_without_repeating_it(token: str) -> None:
    (problem,) = errors_of({}, flags={"token": token}).items()
    assert problem[0] == "--token"
    assert token not in problem[1] or len(token) == 1


def test_bootstrap_without_secret_only_when_insecure() -> None:
    tree = {"cluster": {"bootstrap_expect": 2, "join": ["a", "b:7700", "a:7700"]}}
    config = build(tree, {}, {"insecure": True})
    assert config.cluster.join == ("a:7700", "b:7700")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("h", "h:7700"), ("h:1", "h:1"), ("10.0.0.1:09", "10.0.0.1:9"), ("::1", "[::1]:7700"),
        ("[::1]", "[::1]:7700"), ("[::1]:5", "[::1]:5"), (" h ", "h:7700"),
        ("", ""), (":1", ""), ("h:", ""), ("h:x", ""), ("h:99999", ""), ("a/b", ""), ("[x]:1", ""),
    ],
)  # fmt: skip
def test_addresses(text: str, address: str) -> None:
    assert parse_address(text) == address


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"[node]\nname = ")
    for path, words in [
        (tmp_path / "none.toml", "No such file"), (tmp_path, "directory"), (bad, "line 2, column 8"),
    ]:  # fmt: skip
        with pytest.raises(BadConfig, match=words) as caught:
            load(path, {}, {})
        assert caught.value.errors[0].path == str(path)


def test_where_the_state_is_kept() -> None:
    assert default_data_dir({"HOME": "/home/u"}, is_root=False) == "/home/u/.local/share/cube"
    assert default_data_dir({"XDG_DATA_HOME": "/x/"}, is_root=False) == "/x/cube"
    assert default_data_dir({"HOME": "/root"}, is_root=True) == "/var/lib/cube"


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.just(10**400), st.sampled_from(["auto", "10s", "1MiB", "127.0.0.1", "20000-29999"]),
)  # fmt: skip
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3))
PATHS = st.sampled_from([f"{path}.{key}" for path in SECTIONS for key in keys_of(path)])


@given(st.dictionaries(PATHS, VALUES, max_size=6), st.dictionaries(PATHS, st.text(max_size=8)))
@settings(max_examples=300, deadline=None)
def test_any_configuration_is_a_config_or_bad(
    values: dict[str, object], env: dict[str, str]
) -> None:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        node = tree
        *parents, key = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    variables = {f"CUBE_{path.replace('.', '_').upper()}": text for path, text in env.items()}
    try:
        config = build(tree, variables, {})
    except BadConfig as bad:
        paths = [error.path for error in bad.errors]
        allowed = (*SECTIONS, "CUBE_", "drivers")
        if stray := [path for path in paths if not path.startswith(allowed)]:
            pytest.fail(str(stray))
    else:
        assert config.raft.election_min_ms > 3 * config.raft.heartbeat_ms
        assert config.bind.advertise


def test_what_a_new_cluster_keeps_is_what_the_state_says_by_default() -> None:
    kept, agreed = DEFAULT.gc, ClusterSettings()
    for name in ("finished_per_slot", "finished_for_ms", "finished_beyond_ms"):
        assert getattr(kept, name) == getattr(agreed, name)
