"""Services: what each form becomes, and what each mistake is answered with, by path."""

from typing import Any

import pytest

from cube.model.spec import CheckType, DriverName, JobType, RestartCondition
from tests.unit.compose.composing import composed, errors, service, service_errors

WEB: dict[str, Any] = {"image": "nginx", "mem_limit": "64m"}


@pytest.mark.parametrize(
    ("tree", "path", "problem"),
    [
        ({"image": ["a"]}, "image", "must be text, not a list"),
        ({"image": "a b"}, "image", "is not accepted"),
        ({"command": "a 'b"}, "command", "cannot be split into words"),
        ({"command": {"a": 1}}, "command", "must be a list, not a table"),
        ({"command": [["a"]]}, "command[0]", "must be text, not a list"),
        ({"command": []}, "command", "cannot take away what the image has"),
        ({"entrypoint": ""}, "entrypoint", "cannot take away what the image has"),
        ({"environment": ["=x"]}, "environment", "has a variable without a name"),
        ({"environment": {"A": [1]}}, "environment.A", "must be text or a number"),
        ({"environment": [1]}, "environment[0]", "must be NAME=VALUE"),
        ({"environment": "A=b"}, "environment", "must be a list, not text"),
        ({"environment": {"CUBE_JOB": "x"}}, "environment.CUBE_JOB", "is set by Cube itself"),
        ({"env_file": [1]}, "env_file[0]", "must be a map"),
        ({"env_file": [{}]}, "env_file[0].path", "is required"),
        ({"user": "a b"}, "user", "is not accepted"),
        ({"working_dir": "x"}, "working_dir", "is not accepted"),
        ({"stop_signal": "SIGNOPE"}, "stop_signal", "is no signal"),
        ({"stop_grace_period": 10}, "stop_grace_period", "is not a duration (write 1m30s"),
        ({"stop_grace_period": "10"}, "stop_grace_period", "is not a duration"),
        ({"stop_grace_period": "5y"}, "stop_grace_period", "is not a duration"),
        ({"stop_grace_period": "99999999999h"}, "stop_grace_period", "is not a duration"),
        ({"privileged": "maybe"}, "privileged", "must be true or false"),
        ({"init": 3}, "init", "must be true or false"),
        ({"cap_add": ["a b"]}, "cap_add[0]", "is not accepted"),
        ({"dns": "nowhere"}, "dns", "is not an IP address"),
        ({"shm_size": "1x"}, "shm_size", "is not a size (write bytes, 64m or 1gb)"),
        ({"shm_size": -1}, "shm_size", "is not a size"),
        ({"mem_limit": "1m"}, "mem_limit", "is below 6MiB"),
        ({"mem_limit": "10m", "mem_reservation": "20m"}, "mem_limit", "are less than memory"),
        ({"memswap_limit": -1}, "memswap_limit", "every task has a limit"),
        ({"memswap_limit": "20m"}, "memswap_limit", "must be at least mem_limit"),
        ({"mem_limit": "30m", "memswap_limit": "20m"}, "memswap_limit", "must be at least mem_limit"),
        ({"secrets": ["nope"]}, "secrets[0]", 'there is no "nope" under secrets at the top level'),
        ({"configs": [{"target": "/a"}]}, "configs[0].source", "under configs at the top level"),
        ({"secrets": [1]}, "secrets[0]", "must be a map"),
        ({"secrets": "db"}, "secrets", "must be a list"),
        ({"pull_policy": "build"}, "pull_policy", "builds nothing"),
        ({"pull_policy": "daily"}, "pull_policy", "by age"),
        ({"extra_hosts": ["a"]}, "extra_hosts[0]", "is not accepted"),
        ({"labels": {"cube.x": "y"}}, 'labels."cube.x"', "is set by Cube itself"),
        ({"depends_on": ["wep"]}, "depends_on.wep", "there is no such service (did you mean `web`?)"),
        ({"depends_on": ["web"]}, "depends_on", "names the group itself"),
        ({"depends_on": [[1]]}, "depends_on[0]", "must name a service"),
        ({"depends_on": {"web": {"condition": "x"}}}, "depends_on.web.condition", "is not accepted"),
        ({"healthcheck": {"test": []}}, "healthcheck.test", "is required"),
        ({"healthcheck": {"interval": "1s"}}, "healthcheck.test", "is required"),
        ({"healthcheck": {"test": ["curl", "x"]}}, "healthcheck.test", '"curl" does not begin a test'),
        ({"healthcheck": {"test": ["CMD-SHELL"]}}, "healthcheck.test", "does not begin a test"),
        ({"healthcheck": {"test": "a", "interval": "1ms"}}, "healthcheck.interval", "must be at least"),
        ({"healthcheck": {"test": "a", "retries": -1}}, "healthcheck.retries", "must be between"),
        ({"healthcheck": []}, "healthcheck", "must be a map, not a list"),
        ({"restart": "sometimes"}, "restart", 'accepted: "no", always'),
        ({"restart": "on-failure:x"}, "restart", "is not accepted"),
        ({"logging": {"driver": "syslog"}}, "logging.driver", "cube logs reads from any node"),
        ({"deploy": {"replicas": -1}}, "deploy.replicas", "must be between"),
        ({"deploy": {"replicas": "many"}}, "deploy.replicas", "must be a whole number"),
        ({"deploy": {"replicas": 2}, "scale": 3}, "scale", "is at odds with deploy.replicas = 2"),
        ({"deploy": {"mode": "globall"}}, "deploy.mode", "is not accepted"),
        ({"deploy": {"mode": "global", "replicas": 2}}, "deploy.replicas", "one task on every node"),
        ({"deploy": {"restart_policy": {"condition": "x"}}}, "deploy.restart_policy.condition", "any"),
        ({"deploy": {"update_config": {"failure_action": "continue"}}},
         "deploy.update_config.failure_action", "does not go on"),
        ({"deploy": {"update_config": {"order": "x"}}}, "deploy.update_config.order", "is not accepted"),
        ({"deploy": {"placement": {"constraints": ["node.role==manager"]}}},
         "deploy.placement.constraints[0]", "may run tasks and may lead"),
        ({"deploy": {"placement": {"constraints": ["engine.labels.a==b"]}}},
         "deploy.placement.constraints[0]", "label nodes"),
        ({"deploy": {"placement": {"constraints": ["node.colour==red"]}}},
         "deploy.placement.constraints[0]", "is no attribute"),
        ({"deploy": {"placement": {"constraints": ["node.id ~ x"]}}},
         "deploy.placement.constraints[0]", "is no constraint"),
        ({"deploy": {"placement": {"constraints": [{"a": 1}]}}},
         "deploy.placement.constraints[0]", "is no constraint"),
        ({"deploy": {"resources": {"limits": {"cpus": "x"}}}},
         "deploy.resources.limits.cpus", "is not a number of cores"),
        ({"deploy": {"resources": {"limits": {"cpus": 0.1}, "reservations": {"cpus": 0.2}}}},
         "deploy.resources.limits.cpus", "is less than cpu"),
        ({"deploy": {"resources": {"limits": {"pids": -1}}}},
         "deploy.resources.limits.pids", "every task has a limit"),
        ({"deploy": {"resources": {"reservations": {"devices": [{"capabilities": ["tpu"]}]}}}},
         "deploy.resources.reservations.devices[0].capabilities", "must name gpu"),
        ({"gpus": [{"count": 1}, {"count": 2}]}, "gpus[1].count", "is a second request"),
        ({"cpu_period": 100_000}, "cpu_period", "means nothing without cpu_quota"),
        ({"cpu_period": 1, "cpu_quota": 1}, "cpu_period", "must be between 1000 and 1000000"),
        ({"platform": "windows/amd64"}, "platform", "nodes of Cube run Linux"),
        ({"ports": ["http"]}, "ports[0]", '"http" is no port'),
        ({"ports": ["80:90:100"]}, "ports[0]", "on the address that its node advertises"),
        ({"ports": ["127.0.0.1:80:80"]}, "ports[0]", "on the address that its node advertises"),
        ({"ports": ["[::1]:80:80"]}, "ports[0]", "on the address that its node advertises"),
        ({"ports": ["1-100"]}, "ports[0]", "no range of at most 64 ports"),
        ({"ports": ["9-8"]}, "ports[0]", "no range"),
        ({"ports": ["8000-8009:80"]}, "ports[0]", "leaves the port to chance"),
        ({"ports": ["8000-8001:80-82"]}, "ports[0]", "are not equally many"),
        ({"ports": ["80/sctp"]}, "ports[0].protocol", "is not accepted"),
        ({"ports": ["70000"]}, "ports[0].target", "must be between 1 and 65535"),
        ({"ports": [{"published": 1}]}, "ports[0].target", "is required"),
        ({"ports": [{"target": 1, "mode": "x"}]}, "ports[0].mode", "accepted: host, ingress"),
        ({"ports": [{"target": 1, "host_ip": "10.0.0.1"}]}, "ports[0].host_ip", "advertises"),
        ({"ports": ["80:80", "80:81"]}, "ports[1].host", "is taken by"),
        ({"ports": "80"}, "ports", "must be a list, not text"),
        ({"volumes": ["/a"]}, "volumes[0]", "is a volume without a name"),
        ({"volumes": [{"type": "volume", "target": "/a"}]}, "volumes[0]", "without a name"),
        ({"volumes": ["a:/b"]}, "volumes[0]", 'there is no volume "a" at the top level'),
        ({"volumes": ["/a:/b:z"]}, "volumes[0]", 'the option "z" is not honoured'),
        ({"volumes": ["/a:/b:c:d"]}, "volumes[0]", "is no volume"),
        ({"volumes": ["/a:b"]}, "volumes[0].target", "is not accepted"),
        ({"volumes": ["/a:/b", "/c:/b"]}, "volumes[1].target", "another mount of the group"),
        ({"volumes": [{"type": "npipe", "source": "a", "target": "/b"}]}, "volumes[0].type", "accepted"),
        ({"volumes": [1]}, "volumes[0]", "must be a map, not a number"),
        ({"tmpfs": "/x:mode=700"}, "tmpfs", 'the option "mode=700" is not honoured'),
        ({"tmpfs": "/x:size=lots"}, "tmpfs.size", "is not a size"),
        ({"tmpfs": "x"}, "tmpfs.target", "is not accepted"),
        ({"devices": ["a"]}, "devices[0]", "is not accepted"),
        ({"devices": [{"target": "/a"}]}, "devices[0].source", "is required"),
        ({"ulimits": {"nofile": {"soft": 9, "hard": 1}}}, "ulimits.nofile.soft", "is more than hard"),
        ({"ulimits": {"nofile": [1]}}, "ulimits.nofile", "must be a number"),
        ({"ulimits": {"nofile": "x"}}, "ulimits.soft", "must be a whole number"),
        ({"network_mode": "service:db"}, "network_mode", "do not share a network"),
        ({"network_mode": "host", "networks": ["default"]}, "networks", "is at odds with network_mode"),
        ({"networks": ["nope"]}, "networks", 'there is no network "nope"'),
        ({"profiles": "a"}, "profiles", "must be a list"),
        ({"x-cube": []}, "x-cube", "must be a map, not a list"),
        ({"x-cube": {"cuont": 2}}, "x-cube.cuont", "unknown key (did you mean `count`?)"),
        ({"x-cube": {"update": {"canaries": 9}}}, "x-cube.update.canaries", "are more than count"),
        ({"x-cube": {"checks": [{"type": "tcp", "port": "x"}]}}, "x-cube.checks[0].port", "no port called"),
    ],
)  # fmt: skip
def test_mistakes(tree: dict[str, Any], path: str, problem: str) -> None:
    found = service_errors(tree)
    assert f"services.web.{path}" in found
    assert problem in found[f"services.web.{path}"]


@pytest.mark.parametrize(
    ("top", "path", "problem"),
    [
        ({"services": []}, "services", "must be a map, not a list"),
        ({"services": {}}, "services", "at least one is required"),
        ({"services": {"a": None}}, "services.a", "is empty"),
        ({"services": {"a": []}}, "services.a", "must be a map"),
        ({"services": {"a": {}}}, "services.a.image", "is required"),
        ({"services": {"a": {"build": "."}}}, "services.a.image", "Cube builds nothing"),
        ({"services": {"a.b": WEB, "a_b": WEB}}, "services.a_b", "would be called a-b in Cube"),
        ({"services": {"a": {**WEB, "profiles": ["x"]}}}, "services", "left out by its profiles"),
        ({"services": {f"s{n}": WEB for n in range(65)}}, "services", "at most 64 are accepted"),
        ({"services": {"a": WEB, "b": {**WEB, "deploy": {"mode": "global"}}}},
         "services.b.deploy.mode", "a job has one type"),
        ({"services": {"a": {**WEB, "deploy": {"mode": ["global"]}}}},
         "services.a.deploy.mode", "is not accepted"),
        ({"services": {"a": {**WEB, "deploy": {"mode": "global"}}}, "x-cube": {"type": "batch"}},
         "x-cube.type", "is at odds with deploy.mode"),
        ({"services": {"a": {**WEB, "depends_on": ["b"]}, "b": {**WEB, "profiles": ["x"]}}},
         "services.a.depends_on.b", "is left out"),
        ({"services": {"a": {**WEB, "depends_on": ["b"]}, "b": {**WEB, "depends_on": ["a"]}}},
         "services.a.depends_on", "is a cycle"),
        ({"services": {"a": {**WEB, "depends_on": {"b": {"condition": "service_completed_successfully"}}},
                       "b": WEB}},
         "services.a.depends_on.b.condition", "x-cube: { type: batch }"),
        ({"services": {"a": WEB}, "name": "***"}, "name", "is not a name for a job"),
        ({"services": {"a": WEB}, "x-cube": {"groups": {}}}, "x-cube.groups", "unknown key"),
        ({"services": {"a": WEB}, "x-cube": {"priority": 101}}, "x-cube.priority", "must be between"),
        ({"services": {"a": WEB}, "x-cube": {"type": "cron"}}, "cron", "is required by type"),
        ({"services": {"a": WEB}, "x-cube": 1}, "x-cube", "must be a map"),
        ({"services": {"a": WEB}, "volumes": {"v": 1}}, "volumes.v", "must be a map"),
        ({"services": {"a": WEB}, "secrets": {"s": {"file": "x"}}},
         "secrets.s.file", "cube secret set NAME"),
        ({"services": {"a": WEB}, "configs": {"c": {"content": "x"}}},
         "configs.c.content", "external: true"),
        ({"services": {"a": WEB}, "secrets": {"s": None}}, "secrets.s.external", "keeps secrets"),
        ({"services": {"a": {**WEB, "secrets": [{"source": "s", "mode": "9"}]}},
          "secrets": {"s": {"external": True}}},
         "services.a.secrets[0].mode", "is not accepted"),
        ({"services": {"a": WEB}, "volumes": []}, "volumes", "must be a map"),
        ({"services": {"a": WEB}, "servces": {}}, "servces", "did you mean `services`?"),
        ({"services": {"a": {**WEB, "networks": ["n", "m"]}},
          "networks": {"n": {"external": True}, "m": None}},
         "services.a.networks", "names an external network beside others"),
        ({"services": {"a": {**WEB, "volumes": ["../x:/y"], "ports": [{"target": 1, "x": 2}]}}},
         "services.a.ports[0].x", "unknown key"),
    ],
)  # fmt: skip
def test_mistakes_of_the_whole_file(top: dict[str, Any], path: str, problem: str) -> None:
    assert problem in errors(top)[path]


@pytest.mark.parametrize("text", ["[]", "text", "", "1", "null", "- a"])
def test_what_is_no_map_is_no_compose_file(text: str) -> None:
    assert "is not a compose file" in errors(text)["(file)"]


def test_every_error_comes_at_once() -> None:
    found = errors(
        {
            "services": {
                "a": {"image": "x", "tty": True, "user": "a b", "mem_limit": "1m"},
                "b": {"command": "x", "links": ["a"], "ports": ["x"]},
            },
            "configs": {"c": {"file": "x"}},
        }
    )
    assert {
        "services.a.tty", "services.a.user", "services.a.mem_limit", "services.b.image",
        "services.b.links", "services.b.ports[0]",
    } <= set(found)  # fmt: skip


def test_forms_of_commands_and_checks() -> None:
    assert service({"command": "a 'b c' --d=\"e\""}).command == ("a", "b c", "--d=e")
    assert service({"entrypoint": ["a", 1, True, 2.5], "command": []}).entrypoint == (
        "a", "1", "true", "2.5",
    )  # fmt: skip
    assert service({"command": None}).command == ()
    for test, command in (
        ("curl -f localhost || exit 1", ("/bin/sh", "-c", "curl -f localhost || exit 1")),
        (["CMD-SHELL", "a | b"], ("/bin/sh", "-c", "a | b")),
        (["CMD", "a", "b"], ("a", "b")),
    ):
        (check,) = service({"healthcheck": {"test": test}}).checks
        assert (check.type, check.command) == (CheckType.EXEC, command)
        assert (check.interval_ms, check.timeout_ms, check.unhealthy_after) == (30_000, 30_000, 3)
    assert service({"healthcheck": {"test": ["NONE"]}}).checks == ()
    assert service({"healthcheck": {"disable": True}}).checks == ()
    assert service({"healthcheck": {"disable": True, "test": "a"}}).checks == ()


@pytest.mark.parametrize(
    ("restart", "policy", "attempts"),
    [
        ("no", RestartCondition.NEVER, 3), (False, RestartCondition.NEVER, 3),
        ("always", RestartCondition.ALWAYS, 3), ("unless-stopped", RestartCondition.ALWAYS, 3),
        ("on-failure", RestartCondition.ON_FAILURE, 3), ("on-failure:7", RestartCondition.ON_FAILURE, 7),
        (None, RestartCondition.ALWAYS, 3),
    ],
)  # fmt: skip
def test_restart(restart: object, policy: RestartCondition, attempts: int) -> None:
    found = service({"restart": restart}).restart
    assert (found.policy, found.attempts) == (policy, attempts)


@pytest.mark.parametrize(
    ("text", "size"),
    [(64, 64), ("64", 64), ("2k", 2048), ("2kb", 2048), ("2KiB", 2048), ("1.5m", 1_572_864),
     ("1gb", 1 << 30), ("1G", 1 << 30), ("10 mb", 10 << 20), ("7b", 7), (1e3, 1000)],
)  # fmt: skip
def test_sizes_are_powers_of_two(text: object, size: int) -> None:
    assert service({"shm_size": text}).docker.shm_size_bytes == size


@pytest.mark.parametrize(
    ("text", "ms"),
    [("10s", 10_000), ("1m30s", 90_000), ("1h5m30s20ms", 3_930_020), ("1.5s", 1_500), ("2500us", 2),
     ("0", 0), (0, 0), ("1d", 86_400_000), ("1w", 604_800_000)],
)  # fmt: skip
def test_durations(text: object, ms: int) -> None:
    assert service({"stop_grace_period": text}).stop_timeout_ms == ms


def test_memory_and_cores() -> None:
    def resources(**tree: Any) -> tuple[int, int, int, int]:
        found = service(tree)
        return (
            found.resources.memory_bytes >> 20,
            found.memory_max_bytes >> 20,
            found.resources.cpu_milli,
            found.cpu_max_milli,
        )

    def deploy(limits: dict[str, Any], reserved: dict[str, Any]) -> dict[str, Any]:
        return {"deploy": {"resources": {"limits": limits, "reservations": reserved}}}

    assert resources() == (64, 0, 100, 0)
    assert resources(mem_limit="32m") == (32, 0, 100, 0)
    swapping = service({"mem_limit": "32m", "memswap_limit": "48m"})
    assert swapping.docker.memory_swap_bytes == 16 << 20
    assert resources(mem_limit="32m", memswap_limit="32m") == (32, 0, 100, 0)
    assert resources(mem_reservation="80m") == (80, 0, 100, 0)
    assert resources(mem_limit="90m", mem_reservation="80m") == (80, 90, 100, 0)
    assert resources(cpus=2) == (64, 0, 100, 2000)
    assert resources(cpus="0.05") == (64, 0, 50, 50)
    assert resources(cpu_quota=50_000) == (64, 0, 100, 500)
    assert resources(cpu_quota=50_000, cpu_period=25_000) == (64, 0, 100, 2000)
    assert resources(cpu_quota=-1) == (64, 0, 100, 0)
    assert resources(**deploy({"memory": "1G", "cpus": "1.5"}, {"memory": "512M", "cpus": 0.5})) == (
        512, 1024, 500, 1500,
    )  # fmt: skip
    assert resources(mem_limit="32m", **deploy({"memory": "33m"}, {})) == (33, 0, 100, 0)


def test_modes_are_the_type_of_the_job() -> None:
    def type_of(*modes: str | None, **x_cube: Any) -> JobType:
        services = {f"s{n}": {**WEB, "deploy": {"mode": mode}} for n, mode in enumerate(modes)}
        return composed({"services": services, "x-cube": x_cube}).spec.type

    assert type_of("replicated", None) is JobType.SERVICE
    assert type_of("global", "global") is JobType.SYSTEM
    assert type_of("global", type="system") is JobType.SYSTEM
    assert type_of("replicated-job") is JobType.BATCH
    assert type_of(None, type="batch") is JobType.BATCH
    assert type_of(None, type="cron", cron={"schedule": "0 3 * * *"}) is JobType.CRON


def test_x_cube_wins_and_is_merged() -> None:
    group = service(
        {
            "mem_limit": "64m",
            "environment": {"A": "1", "B": "2"},
            "ports": ["80"],
            "x-cube": {
                "env": {"B": "3", "C": {"secret": "c"}},
                "resources": {"disk": "1GiB"},
                "ports": {"80": {"host": 8080}},
                "placement": {"policy": "binpack"},
            },
        }
    )
    assert group.env["A"] == "1"
    assert group.env["B"] == "3"
    assert group.resources.memory_bytes == 64 << 20
    assert group.resources.disk_bytes == 1 << 30
    assert (group.ports["80"].target, group.ports["80"].host) == (80, 8080)
    job = composed({"services": {"a": {"command": "x", "x-cube": {"driver": "process"}}},
                    "x-cube": {"name": "other", "priority": 3, "meta": {"a": "b"}}}).spec  # fmt: skip
    assert (job.name, job.priority, job.meta) == ("other", 3, {"a": "b"})
    assert job.groups["a"].driver is DriverName.PROCESS


def test_the_name_of_the_job() -> None:
    from tests.unit.compose.composing import around

    web = {"services": {"a": WEB}}
    assert composed(web).spec.name == "shop"
    assert composed(web, around({"COMPOSE_PROJECT_NAME": "Other_One"})).spec.name == "other-one"
    assert composed({**web, "name": "My App"}, around()).spec.name == "my-app"


def test_profiles_that_are_on() -> None:
    from tests.unit.compose.composing import around

    file = {
        "services": {
            "a": WEB,
            "b": {**WEB, "profiles": ["x", "y"]},
            "c": {**WEB, "profiles": ["z"]},
        }
    }
    assert list(composed(file).spec.groups) == ["a"]
    assert list(composed(file, around({"COMPOSE_PROFILES": "w, y"})).spec.groups) == ["a", "b"]
    assert list(composed(file, around({"COMPOSE_PROFILES": "*"})).spec.groups) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"environment": {"DB_URL": "postgres://u:p@db:5432/x"}}, "environment.DB_URL"),
        ({"environment": {"DB_URL": "postgres://db/x"}}, "environment.DB_URL"),
        ({"environment": {"DB_HOST": "db"}}, "environment.DB_HOST"),
        ({"environment": {"SEEDS": "a:1,db:9042"}}, "environment.SEEDS"),
        ({"command": ["run", "--db=db:5432"]}, "command"),
    ],
)
def test_names_of_other_services_are_warned_of(tree: dict[str, Any], path: str) -> None:
    file = {"services": {"web": {**WEB, **tree}, "db": WEB}}
    assert composed(file).notes == (
        f"services.web.{path}: db is no host name in Cube: cube service resolve shop.db.PORT says at "
        "which addresses it answers",
    )


@pytest.mark.parametrize("value", ["dbx:5432", "a.db:1", "the db", "db", "adb:5", "http://x/db"])
def test_words_that_only_look_like_a_service_are_not(value: str) -> None:
    file = {"services": {"web": {**WEB, "environment": {"MODE": value}}, "db": WEB}}
    assert composed(file).notes == ()


def test_an_external_network_is_that_of_the_node() -> None:
    networks = {"n": {"external": True, "name": "lan"}, "m": None}
    assert service({**WEB, "networks": ["n"]}, networks=networks).docker.network_mode == "lan"
    assert service({**WEB, "networks": ["m"]}, networks=networks).docker.network_mode == ""
    old = {"n": {"external": {"name": "old"}}}
    assert service({**WEB, "networks": {"n": None}}, networks=old).docker.network_mode == "old"


def test_depends_on_what_a_profile_leaves_out() -> None:
    file = {
        "services": {
            "a": {**WEB, "depends_on": {"b": {"required": False}, "c": None}},
            "b": {**WEB, "profiles": ["x"]},
            "c": WEB,
        }
    }
    assert composed(file).spec.groups["a"].depends_on == ("c",)


def test_secrets_and_configs_are_files_that_the_cluster_keeps() -> None:
    group = service(
        {
            "secrets": [
                "db",
                {"source": "key", "target": "/etc/key.pem", "mode": 0o440, "uid": "7"},
            ],
            "configs": [
                "site",
                {"source": "site", "target": "/etc/site", "gid": 9, "mode": "0400"},
            ],
        },
        secrets={"db": {"external": True}, "key": {"external": True, "name": "tls-key"}},
        configs={"site": {"external": {"name": "nginx.conf"}}},
    )
    assert [(m.type.value, m.source, m.target, m.mode, m.uid, m.gid) for m in group.mounts] == [
        ("secret", "db", "/run/secrets/db", 0o400, None, None),
        ("secret", "tls-key", "/etc/key.pem", 0o440, 7, None),
        ("config", "nginx.conf", "/site", 0o444, None, None),
        ("config", "nginx.conf", "/etc/site", 0o400, None, 9),
    ]
