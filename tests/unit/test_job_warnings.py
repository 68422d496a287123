"""Keys that are valid and not honoured yet are answered with a warning that names them."""

import importlib.resources

import pytest

from cube.model.jobfile import parse_toml
from cube.model.warnings import warnings

EXAMPLES = importlib.resources.files("cube") / "examples"
GROUP = 'name = "j"\ntype = "service"\n[groups.g]\nimage = "i"\ncount = 1\n'


@pytest.mark.parametrize("name", ["hello", "batch", "everywhere"])
def test_defaults_do_not_warn(name: str) -> None:
    assert warnings(parse_toml((EXAMPLES / f"{name}.toml").read_bytes())) == []
    written_out = (
        'priority = 50\n' + GROUP + 'at_most_one = false\nupdate = { order = "stop-first", '
        'min_healthy = "10s", deadline = "5m", canaries = 0, on_failure = "rollback" }\n'
        'docker = { gpus = "", registry_secret = "" }\n'
    )  # fmt: skip
    with pytest.raises(Exception, match="registry_secret"):  # an empty secret is no secret
        parse_toml(written_out.encode())
    spec = parse_toml(written_out.replace(', registry_secret = ""', "").encode())
    assert warnings(spec) == []


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("priority = 60\n" + GROUP, []),
        (GROUP.replace("service", "cron") + '[cron]\nschedule = "* * * * *"', []),
        (GROUP + "at_most_one = true", ["groups.g.on_partition"]),
        (GROUP + 'on_partition = "stop"', ["groups.g.on_partition"]),
        (
            GROUP + 'update.order = "start-first"\nports.http = { host = 80, target = 80 }',
            ["groups.g.update.order"],
        ),
        (
            GROUP + 'update = { order = "start-first", canaries = 1, on_failure = "pause" }',
            [],
        ),
        (
            GROUP + 'env = { A = { secret = "a" }, "b.c" = { secret = "b" }, D = "d" }',
            ["groups.g.env.A", 'groups.g.env."b.c"'],
        ),
        (
            GROUP.replace('image = "i"', 'driver = "process"\ncommand = ["x"]')
            + "ports = { a-b = { target = 80 }, c = { target = 90, host = 90 } }",
            ["groups.g.ports.a-b.target"],
        ),
        (
            GROUP + 'user = "nginx"\nmounts = [ { type = "secret", source = "a" }, '
            '{ type = "config", source = "a" }, { type = "secret", source = "b", uid = 101 }, '
            '{ type = "secret", source = "c", mode = "0444" } ]',
            ["groups.g.mounts[0]"],
        ),
        (GROUP + 'user = "101"\nmounts = [ { type = "secret", source = "a" } ]', []),
        (
            GROUP.replace('image = "i"', 'driver = "process"\ncommand = ["x"]\nuser = "nginx"')
            + 'env = { A = { secret = "a" } }\nmounts = [ { type = "secret", source = "a" } ]',
            [],
        ),
    ],
)
def test_each_key_that_is_not_honoured(text: str, paths: list[str]) -> None:
    found = warnings(parse_toml(text.encode()))
    assert [warning.partition(": ")[0] for warning in found] == paths
    assert all(warning.partition(": ")[2] for warning in found)
    if "a-b" in text:
        assert "$CUBE_PORT_A_B" in found[-1]
