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


ROOT = 'type = "service"\n[groups.g]\nimage = "i"\n'
GROUP = 'name = "j"\ntype = "service"\n[groups.g]\nimage = "i"\n'
PORT = GROUP + "ports.http.target = 80\n"
LEASED = GROUP + 'on_partition = "stop"\n'
CHECK = PORT + "[[groups.g.checks]]\n"
MOUNT = GROUP + "[[groups.g.mounts]]\n"
PLACE = GROUP + "[groups.g.placement]\n"
PROCESS = 'name = "j"\ntype = "service"\n[groups.g]\ndriver = "process"\n'

# text, path of the one error, words that its problem or hint must contain
ONE_ERROR = [
    # -- the file as a whole
    ("name = ", "(file)", "line 1, column 8"),
    ("a = 1\na = 2", "(file)", "line 2"),
    ("x = " + "[" * 5000, "(file)", "nested too deeply"),
    ("x = " + "9" * 5000, "(file)", "out of range"),
    (".".join("a" * 40) + " = 1", "(file)", "dotted key"),
    # -- the job
    (ROOT, "name", "is required"),
    ('name = ""\n' + ROOT, "name", "must not be empty"),
    ('name = "../etc"\n' + ROOT, "name", "a-z, 0-9 and -"),
    ('name = "a.b"\n' + ROOT, "name", "not accepted"),
    ('name = "-a"\n' + ROOT, "name", "not accepted"),
    ('name = "a\\n"\n' + ROOT, "name", "control character"),
    (f'name = "{"a" * 64}"\n' + ROOT, "name", "not accepted"),
    ("name = 3\n" + ROOT, "name", "must be text, not a number"),
    ('name = "j"\n[groups.g]\nimage = "i"', "type", "service, batch, system, cron"),
    ('name = "j"\ntype = "servce"\n[groups.g]\nimage = "i"', "type", "did you mean `service`?"),
    ('name = "j"\ntype = "service"', "groups", "at least one"),
    ('name = "j"\ntype = "service"\ngroups = {}', "groups", "at least one"),
    ('name = "j"\ntype = "service"\ngroups = []', "groups", "must be a table, not a list"),
    ("priority = 0\n" + GROUP, "priority", "between 1 and 100"),
    ("priority = true\n" + GROUP, "priority", "whole number, not true or false"),
    ("priority = 50.0\n" + GROUP, "priority", "whole number, not 50.0"),
    ("priority = 0x" + "f" * 5000 + "\n" + GROUP, "priority", "that large"),
    ("prioritty = 1\n" + GROUP, "prioritty", "did you mean `priority`?"),
    ("meta.x = 1979-05-27\n" + GROUP, "meta.x", "not a date"),
    # -- cron
    ('cron.schedule = "* * * * *"\n' + GROUP, "cron", 'only jobs of type = "cron"'),
    (GROUP.replace("service", "cron"), "cron", "is required"),
    *[
        (f'cron.schedule = "{schedule}"\n' + GROUP.replace("service", "cron"), "cron.schedule", why)
        for schedule, why in [
            ("* * * *", "4 fields"),
            ("* * * * * *", "6 fields"),
            ("61 * * * *", 'its minute cannot be "61"'),
            ("0 24 * * *", 'its hour cannot be "24"'),
            ("0 0 1L,2 * *", 'its day of the month cannot be "1L,2"'),
            ("0 0 1 JANUARY *", 'its month cannot be "JANUARY"'),
            ("* * * * 5L/2", 'its day of the week cannot be "5L/2"'),
            ("0 0 30 2 *", "no month has such a day"),
            ("nightly", "1 fields, not 5 write minute hour day month weekday: 0 3 * * MON"),
            ("", "must not be empty"),
        ]
    ],
    *[
        (
            f'cron = {{ schedule = "* * * * *", timezone = "{zone}" }}\n'
            + GROUP.replace("service", "cron"),
            "cron.timezone",
            words,
        )
        for zone, words in [
            ("Mars/Olympus", "not known write UTC, Europe/Berlin"),
            ("../../etc/passwd", "not known"),
            ("America", "not known"),
            ("/etc/localtime", "not known"),
            ("", "not known"),
            ("Europe/Belin", "did you mean `Europe/Berlin`?"),
            ("berlin", "did you mean `Europe/Berlin`?"),
        ]
    ],
    (
        'cron = { schedule = "* * * * *", overlap = "never" }\n' + GROUP.replace("service", "cron"),
        "cron.overlap",
        "allow, forbid, replace",
    ),
    (
        'cron = { schedule = "* * * * *", overlap = "allow" }\n'
        + GROUP.replace("service", "cron")
        + "at_most_one = true",
        "groups.g.at_most_one",
        'at odds with cron.overlap = "allow"',
    ),
    (
        'cron = { schedule = "* * * * *", time_zone = "UTC" }\n' + GROUP.replace("service", "cron"),
        "cron.time_zone",
        "did you mean `timezone`?",
    ),
    # -- the group
    (GROUP.replace("groups.g", "groups.G"), "groups.G", "not a name for a group"),
    (GROUP + "count = -1", "groups.g.count", "between 0 and 100000"),
    (GROUP + "count = 100001", "groups.g.count", "between 0 and 100000"),
    (GROUP + "replicas = 3", "groups.g.replicas", "did you mean `count`?"),
    (GROUP + 'memory = "1GiB"', "groups.g.memory", "`resources.memory`"),
    (GROUP + "zzz = 1", "groups.g.zzz", "accepted: count, driver"),
    (GROUP + '"a\\u0000b.c" = 1', 'groups.g."a\ufffdb.c"', "unknown key"),
    (GROUP.replace("service", "system") + "count = 2", "groups.g.count", "every node"),
    (GROUP + 'driver = "fake"', "groups.g.driver", "docker, process"),
    (GROUP.replace('image = "i"', ""), "groups.g.image", "is required by the docker driver"),
    (GROUP.replace('image = "i"', 'command = ["x"]'), "groups.g.image", 'driver = "process"'),
    (GROUP.replace('"i"', '"a b"'), "groups.g.image", "nginx:1.27"),
    (PROCESS, "groups.g.command", "is required by the process driver"),
    (PROCESS + "command = []", "groups.g.command", "is required"),
    (PROCESS + 'command = [""]', "groups.g.command", "is required"),
    (PROCESS + 'command = "sh -c x"', "groups.g.command", "list of texts"),
    (PROCESS + 'command = ["a", 1]', "groups.g.command[1]", "must be text, not a number"),
    (PROCESS + 'command = ["a\\u0000"]', "groups.g.command[0]", "NUL"),
    (PROCESS + 'command = ["a"]\nimage = "i"', "groups.g.image", "not an image"),
    (PROCESS + 'command = ["a"]\nentrypoint = ["i"]', "groups.g.entrypoint", "only images"),
    (PROCESS + 'command = ["a"]\ndocker.init = true', "groups.g.docker", "process driver"),
    (
        PROCESS + 'command = ["a"]\ndocker.ulimits = { nofile = 1 }',
        "groups.g.docker",
        "ulimits in the group itself",
    ),
    (
        PROCESS + 'command = ["a"]\nmounts = [ { type = "tmpfs", target = "/x" } ]',
        "groups.g.mounts[0].type",
        'write driver = "docker"',
    ),
    (GROUP + 'env = { "A=B" = "x" }', 'groups.g.env."A=B"', "not a name"),
    (GROUP + 'env = { "" = "x" }', 'groups.g.env.""', "not a name"),
    (GROUP + 'env = { A = "\\u0000" }', "groups.g.env.A", "NUL"),
    (GROUP + "env = { A = nan }", "groups.g.env.A", "must be text"),
    (GROUP + "env = { A = [1] }", "groups.g.env.A", "must be text"),
    (GROUP + "env = { A = { secrt = 'x' } }", "groups.g.env.A.secret", "is required"),
    (GROUP + "env = { CUBE_TASK_NAME = 'x' }", "groups.g.env.CUBE_TASK_NAME", "Cube itself"),
    (GROUP + "env = { CUBE_FENCE = '1' }", "groups.g.env.CUBE_FENCE", "Cube itself"),
    (GROUP + f"env = {{ A = '{'x' * 65000}', B = '{'x' * 65000}' }}", "groups.g.env", "65536"),
    (GROUP + 'user = "a b"', "groups.g.user", "user:group"),
    (GROUP + 'working_dir = "data"', "groups.g.working_dir", "absolute path"),
    (GROUP + 'working_dir = "/a/../b"', "groups.g.working_dir", ".."),
    (GROUP + 'stop_signal = "SIGFOO"', "groups.g.stop_signal", "no signal"),
    (GROUP + 'stop_timeout = "10 parsecs"', "groups.g.stop_timeout", "is not a duration"),
    (GROUP + "stop_timeout = inf", "groups.g.stop_timeout", "finite"),
    (GROUP + "stop_timeout = -1", "groups.g.stop_timeout", "between 0 and ten years"),
    (GROUP + "stop_timeout = 0x" + "f" * 999, "groups.g.stop_timeout", "out of range"),
    (GROUP + 'depends_on = ["a/b/c"]', "groups.g.depends_on[0]", "job/group"),
    (GROUP + 'depends_on = ["g"]', "groups.g.depends_on", "the group itself"),
    (GROUP + 'depends_on = ["j/g"]', "groups.g.depends_on", "the group itself"),
    (GROUP + 'depends_on = ["nope"]', "groups.g.depends_on", "no group called nope"),
    (
        GROUP + 'depends_on = ["cahce"]\n[groups.cache]\nimage = "i"',
        "groups.g.depends_on",
        "no group called cahce did you mean `cache`?",
    ),
    (GROUP + 'depends_on = ["o/x", "o/x"]', "groups.g.depends_on", "more than once"),
    (GROUP + "at_most_one = true\ncount = 2", "groups.g.at_most_one", "requires count = 1"),
    (GROUP + 'at_most_one = true\nupdate.order = "start-first"', "groups.g.at_most_one", "odds"),
    (GROUP.replace("service", "system") + "at_most_one = true", "groups.g.at_most_one", "every"),
    (
        GROUP + 'at_most_one = true\non_partition = "keep"',
        "groups.g.on_partition",
        "odds with at_most_one",
    ),
    (GROUP + 'on_partition = "halt"', "groups.g.on_partition", "keep"),
    (GROUP + "on_partition = true", "groups.g.on_partition", "text"),
    (GROUP + 'lost_after = "30s"', "groups.g.lost_after", 'without on_partition = "stop"'),
    (
        GROUP + 'on_partition = "keep"\nlost_after = "30s"',
        "groups.g.lost_after",
        'without on_partition = "stop"',
    ),
    (LEASED + 'lost_after = "1s"', "groups.g.lost_after", "at least 2s"),
    (LEASED + 'lost_after = "0s"', "groups.g.lost_after", "at least 2s"),
    (LEASED + 'lost_after = "2h"', "groups.g.lost_after", "at most 1h"),
    (LEASED + 'lost_after = "soon"', "groups.g.lost_after", "is not a duration"),
    (LEASED + "lost_after = nan", "groups.g.lost_after", "finite"),
    (LEASED + 'lost_aftr = "5s"', "groups.g.lost_aftr", "`lost_after`"),
    # -- resources
    (GROUP + "resources.cpu = -1", "groups.g.resources.cpu", "between 0"),
    (GROUP + "resources.cpu = nan", "groups.g.resources.cpu", "between 0"),
    (GROUP + "resources = { cpu = 2, cpu_max = 1 }", "groups.g.resources.cpu_max", "less than"),
    (
        GROUP + "resources = { memory = '2GiB', memory_max = '1GiB' }",
        "groups.g.resources.memory_max",
        "less than memory",
    ),
    (GROUP + "resources.memory = '1MiB'", "groups.g.resources.memory", "6MiB"),
    (GROUP + "resources.memory = '12 apples'", "groups.g.resources.memory", "is not a size"),
    (GROUP + "resources.pids = 0", "groups.g.resources.pids", "between 1"),
    (GROUP + "resources.memory_mx = 1", "groups.g.resources.memory_mx", "`memory_max`"),
    # -- ports
    (GROUP + "ports.http.hst = 1\nports.http.target = 1", "groups.g.ports.http.hst", "`host`"),
    (GROUP + "ports.http.target = 65536", "groups.g.ports.http.target", "65535"),
    (GROUP + "ports.http = 80", "groups.g.ports.http", "must be a table, not a number"),
    (GROUP + "ports.http.host = 0", "groups.g.ports.http.target", "is required by the docker"),
    (GROUP + "ports.A_B.target = 1", "groups.g.ports.A_B", "not a name for a port"),
    (
        GROUP + "ports = { a = { target = 1, host = 80 }, b = { target = 2, host = 80 } }",
        "groups.g.ports.b.host",
        "80/tcp is taken by groups.g.a",
    ),
    # -- checks
    (CHECK + 'port = "http"', "groups.g.checks[0].type", "is required"),
    (CHECK + 'type = "http"', "groups.g.checks[0].port", "is required by a http check"),
    (CHECK + 'type = "http"\nport = "htp"', "groups.g.checks[0].port", "did you mean `http`?"),
    (CHECK + 'type = "exec"', "groups.g.checks[0].command", "is required by an exec"),
    (
        CHECK + 'type = "exec"\ncommand = ["x"]\nport = "http"',
        "groups.g.checks[0].port",
        "runs a command",
    ),
    (
        CHECK + 'type = "tcp"\nport = "http"\ncommand = ["x"]',
        "groups.g.checks[0].command",
        "only exec",
    ),
    (CHECK + 'type = "tcp"\nport = "http"\npath = "/"', "groups.g.checks[0].path", "only http"),
    (CHECK + 'type = "http"\nport = "http"\npath = "x"', "groups.g.checks[0].path", "/health"),
    (
        CHECK + 'type = "http"\nport = "http"\ninterval = 0',
        "groups.g.checks[0].interval",
        "at least 100ms",
    ),
    (
        CHECK + 'type = "tcp"\nport = "http"\nhealthy_after = 0',
        "groups.g.checks[0].healthy_after",
        "between 1",
    ),
    (
        CHECK.replace("target = 80", "protocol = 'udp'\nports.http.target = 80")
        + 'type = "tcp"\nport = "http"',
        "groups.g.checks[0].port",
        "needs a tcp port",
    ),
    (
        CHECK + 'type = "tcp"\nport = "http"\nname = "a"\n'
        '[[groups.g.checks]]\ntype = "tcp"\nport = "http"\nname = "a"',
        "groups.g.checks[1].name",
        "another check",
    ),
    (GROUP + "checks.type = 'http'", "groups.g.checks", "list of tables"),
    # -- mounts
    (MOUNT + 'target = "/d"\nsource = "s"', "groups.g.mounts[0].type", "is required"),
    (MOUNT + 'type = "volume"\nsource = "s"', "groups.g.mounts[0].target", "is required"),
    (MOUNT + 'type = "volume"\ntarget = "d"\nsource = "s"', "groups.g.mounts[0].target", "absol"),
    (MOUNT + 'type = "volume"\ntarget = "/d"', "groups.g.mounts[0].source", "is required"),
    (
        MOUNT + 'type = "volume"\ntarget = "/d"\nsource = "/etc"',
        "groups.g.mounts[0].source",
        'type = "bind"',
    ),
    (MOUNT + 'type = "bind"\ntarget = "/d"\nsource = "etc"', "groups.g.mounts[0].source", "absol"),
    (
        MOUNT + 'type = "bind"\ntarget = "/d"\nsource = "/a/../etc"',
        "groups.g.mounts[0].source",
        "..",
    ),
    (MOUNT + 'type = "tmpfs"\ntarget = "/d"\nsource = "x"', "groups.g.mounts[0].source", "none"),
    (
        MOUNT + 'type = "bind"\ntarget = "/d"\nsource = "/x"\nsize = 1',
        "groups.g.mounts[0].size",
        "only tmpfs",
    ),
    (
        MOUNT + 'type = "tmpfs"\ntarget = "/d"\n[[groups.g.mounts]]\ntype = "tmpfs"\ntarget = "/d"',
        "groups.g.mounts[1].target",
        "another mount",
    ),
    # -- restart, reschedule, update
    (
        GROUP + 'restart = { delay = "2m", max_delay = "1m" }',
        "groups.g.restart.max_delay",
        "less than delay",
    ),
    (GROUP + 'restart.policy = "allways"', "groups.g.restart.policy", "did you mean `always`?"),
    (GROUP + "restart.window = 0", "groups.g.restart.window", "at least 1s"),
    (GROUP + "update.parallelism = 0", "groups.g.update.parallelism", "between 1"),
    (GROUP + "update.canaries = 2", "groups.g.update.canaries", "more than count = 1"),
    (
        GROUP + 'update = { min_healthy = "5m", deadline = "1m" }',
        "groups.g.update.min_healthy",
        "less than deadline",
    ),
    # -- ulimits
    (GROUP + "rlimits.nofile = 1", "groups.g.rlimits", "did you mean `ulimits`?"),
    (GROUP + "ulimits = 5", "groups.g.ulimits", "must be a table"),
    (GROUP + "ulimits.files = 5", "groups.g.ulimits.files", "did you mean `nofile`?"),
    (GROUP + "ulimits.zzz = 5", "groups.g.ulimits.zzz", "nofile, nproc"),
    (GROUP + "ulimits.as = 5", "groups.g.ulimits.as", "no limit of the docker driver"),
    (PROCESS + 'command = ["a"]\nulimits.locks = 5', "groups.g.ulimits.locks", "of the process"),
    (GROUP + "ulimits.nofile = -2", "groups.g.ulimits.nofile", "between -1"),
    (GROUP + "ulimits.nofile = 'many'", "groups.g.ulimits.nofile", "whole number"),
    (GROUP + "ulimits.nofile = { hard = 1 }", "groups.g.ulimits.nofile.soft", "is required"),
    (
        GROUP + "ulimits.nofile = { soft = 2, hard = 1 }",
        "groups.g.ulimits.nofile.soft",
        "more than",
    ),
    (
        GROUP + "ulimits.nofile = { soft = 1, max = 1 }",
        "groups.g.ulimits.nofile.max",
        "unknown key",
    ),
    (
        GROUP + "ulimits.nofile = 1\ndocker.ulimits.nofile = 1",
        "groups.g.docker.ulimits.nofile",
        "own ulimits too",
    ),
    # -- docker
    (GROUP + "docker.ulimits.files = 1", "groups.g.docker.ulimits.files", "nofile"),
    (GROUP + "docker.privilegd = true", "groups.g.docker.privilegd", "`privileged`"),
    (GROUP + "docker = []", "groups.g.docker", "must be a table, not a list"),
    (PROCESS + 'command = ["a"]\ndocker = 0', "groups.g.docker", "process driver"),
    (GROUP + "placement = 0", "groups.g.placement", "must be a table, not a number"),
    (GROUP + "docker.init = 'yes'", "groups.g.docker.init", "true or false, not text"),
    (GROUP + "docker.pull = 'sometimes'", "groups.g.docker.pull", "missing, always, never"),
    (GROUP + "docker.memory_swap = -1", "groups.g.docker.memory_swap", "between 0"),
    (GROUP + "docker.swap = 1", "groups.g.docker.swap", "`memory_swap`"),
    (
        GROUP + "docker.memory_swap = 1\nresources.memory = 0",
        "groups.g.docker.memory_swap",
        "without a limit",
    ),
    (
        GROUP + "docker.network_mode = 'none'\nports.http.target = 80",
        "groups.g.docker.network_mode",
        "publishes no ports",
    ),
    (
        GROUP + "docker.network_mode = 'container:db'\nports.http.target = 80",
        "groups.g.docker.network_mode",
        "publishes no ports",
    ),
    (GROUP + "docker.dns = ['dns.example']", "groups.g.docker.dns", "not an IP address"),
    (GROUP + "docker.cap_add = ['NET ADMIN']", "groups.g.docker.cap_add[0]", "NET_ADMIN"),
    (GROUP + "docker.devices = ['null']", "groups.g.docker.devices[0]", "/dev/ttyUSB0"),
    (GROUP + "docker.ulimits.nofile = 'many'", "groups.g.docker.ulimits.nofile", "whole number"),
    (
        GROUP + "docker.ulimits.nofile = { soft = 2, hard = 1 }",
        "groups.g.docker.ulimits.nofile.soft",
        "more than hard",
    ),
    (GROUP + 'docker.labels = { "cube.task" = "x" }', 'groups.g.docker.labels."cube.task"', "Cube"),
    *[
        (MOUNT + rest, f"groups.g.mounts[0].{key}", words)
        for rest, key, words in [
            ('type = "secret"', "source", "is required: the name of a secret"),
            ('type = "config"\ntarget = "/a"', "source", "is required: the name of a config"),
            ('type = "secret"\nsource = "a/b"', "source", "letters, digits, . _ and -"),
            ('type = "secret"\nsource = ""', "source", "letters, digits, . _ and -"),
            ('type = "secret"\nname = "a"\nsource = "a"', "name", "`source`"),
            ('type = "secret"\nsource = "a"\ntarget = "a/b"', "target", "plain name"),
            ('type = "secret"\nsource = "a"\ntarget = ".."', "target", "plain name"),
            ('type = "secret"\nsource = "a"\ntarget = "/"', "target", "path of a file"),
            ('type = "secret"\nsource = "a"\ntarget = "/a/../b"', "target", "without .."),
            ('type = "secret"\nsource = "a"\ntarget = "/a/"', "target", "path of a file"),
            ('type = "secret"\nsource = "a"\nmode = 0o400', "mode", 'as chmod takes it: "0400"'),
            ('type = "secret"\nsource = "a"\nmode = "4755"', "mode", 'as chmod takes it: "0400"'),
            ('type = "secret"\nsource = "a"\nmode = "r--"', "mode", "is not accepted"),
            ('type = "secret"\nsource = "a"\nmode = "0200"', "mode", "nobody read it"),
            ('type = "config"\nsource = "a"\nuid = -1', "uid", "between 0"),
            ('type = "config"\nsource = "a"\ngid = 4294967295', "gid", "between 0"),
            ('type = "config"\nsource = "a"\nuid = "web"', "uid", "whole number"),
            ('type = "config"\nsource = "a"\nread_only = false', "read_only", "always"),
            ('type = "config"\nsource = "a"\nsize = 4096', "size", "only tmpfs"),
            ('type = "volume"\nsource = "a"\ntarget = "/a"\nmode = "0400"', "mode", "secrets and"),
            ('type = "bind"\nsource = "/a"\ntarget = "/a"\nuid = 0', "uid", "secrets and"),
        ]
    ],
    (
        MOUNT + 'type = "secret"\nsource = "a"\n[[groups.g.mounts]]\ntype = "config"\n'
        'source = "b"\ntarget = "/run/secrets/a"',
        "groups.g.mounts[1].target",
        "another mount",
    ),
    (
        PROCESS + 'command = ["a"]\nmounts = [{type = "secret", source = "a", target = "/a"}]',
        "groups.g.mounts[0].target",
        "in $CUBE_SECRETS_DIR",
    ),
    (GROUP + "env = { A = { secret = 'a b' } }", "groups.g.env.A.secret", "letters, digits"),
    (GROUP + "env = { CUBE_SECRETS_DIR = 'x' }", "groups.g.env.CUBE_SECRETS_DIR", "Cube itself"),
    # -- placement
    (PLACE + 'policy = "bestfit"', "groups.g.placement.policy", "spread, binpack, epvm"),
    (PLACE + "max_per_node = -1", "groups.g.placement.max_per_node", "between 0"),
    (PLACE + 'spread_over = ["zone"]', "groups.g.placement.spread_over", "no attribute"),
    *[
        (
            PLACE + f"constraints = [ {{ {condition} }} ]",
            f"groups.g.placement.constraints[0].{key}",
            w,
        )
        for condition, key, w in [
            ("value = 'x'", "attribute", "is required"),
            ("attribute = 'node.nmae', value = 'x'", "attribute", "node.name"),
            ("attribute = 'node.labels', value = 'x'", "attribute", "no attribute"),
            ("attribute = 'node.os'", "value", "is required by =="),
            ("attribute = 'node.os', operator = '=', value = 'x'", "operator", "=="),
            ("attribute = 'node.os', value = ['x']", "value", 'operator = "in"'),
            ("attribute = 'node.os', operator = 'in', value = 'x'", "value", "must be a list"),
            ("attribute = 'node.os', operator = 'in', value = []", "value", "at least one"),
            ("attribute = 'node.os', operator = 'matches', value = '('", "value", "regular expr"),
            ("attribute = 'node.os', operator = 'exists', value = 'x'", "value", "takes none"),
        ]
    ],
    (
        PLACE + "affinities = [ { attribute = 'node.os', value = 'x', weight = 101 } ]",
        "groups.g.placement.affinities[0].weight",
        "between -100 and 100",
    ),
]


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
