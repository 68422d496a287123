"""Job files with one mistake each: the text, the path that is told, words of the sentence."""

from __future__ import annotations

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
