"""Several files as one project: extends with file, include, files merged, what is reset, and profiles."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cube.model.compose.assemble import DEPTH_MAX, INCLUDES_MAX, ComposeFile
from cube.model.compose.extends import CHAIN_MAX
from cube.model.compose.project import API, FILES_MAX, FilesWanted, parse_project
from cube.model.compose.yamltext import NODES_MAX
from cube.model.errors import BadConfig
from cube.model.spec import GroupSpec
from tests.unit.compose.composing import around, composed, errors, read, read_errors

MAIN = "compose.yaml"


def text(services: dict[str, Any], **top: Any) -> str:
    return yaml.safe_dump({**top, "services": services}, sort_keys=False)


def over(base: str, *others: str) -> GroupSpec:
    """The service `web` of files that are merged, each over those before it. Their image is given."""
    head = "services:\n  web:\n    image: nginx\n"
    named = {MAIN: head + base}
    for number, other in enumerate(others):
        named[f"over{number}.yaml"] = "services:\n  web:\n" + other
    return read(named).spec.groups["web"]


# -- extends with file ----------------------------------------------------------------------------


def test_extends_a_service_of_another_file_with_paths_of_that_file() -> None:
    found = read(
        {
            MAIN: text(
                {"web": {"extends": {"file": "common/web.yaml", "service": "web"}, "user": "u"}},
                volumes={"name": None},
            )
        },
        {
            "common/web.yaml": text(
                {
                    "web": {
                        "extends": {"file": "../deep/root.yaml", "service": "root"},
                        "env_file": ["web.env", {"path": "./gone.env", "required": False}],
                        "volumes": ["./data:/data", "/abs:/abs", "name:/name",
                                    {"type": "bind", "source": "conf", "target": "/conf"}],
                    },
                    "other": {"image": "${NOT_SET:?never asked for}"},
                }
            ),
            "deep/root.yaml": text(
                {"base": {"image": "nginx:${TAG}", "label_file": "labels"}, "root": {"extends": "base"}}
            ),
            "common/web.env": "A=web", "common/gone.env": None, "deep/labels": "l=deep",
        },
        variables={"TAG": "7"},
    )  # fmt: skip
    group = found.spec.groups["web"]
    assert (group.image, group.user, group.env) == ("nginx:7", "u", {"A": "web"})
    assert group.docker.labels == {"l": "deep"}
    assert [(mount.source, mount.target) for mount in group.mounts if mount.source] == [
        ("/srv/shop/common/data", "/data"), ("/abs", "/abs"), ("shop_name", "/name"),
        ("/srv/shop/common/conf", "/conf"),
    ]  # fmt: skip


CYCLE = {
    MAIN: "services: { a: { extends: { file: b.yaml, service: b } } }",
    "b.yaml": "services: { b: { extends: { file: compose.yaml, service: a } } }",
}


@pytest.mark.parametrize(
    ("extends", "path", "problem"),
    [
        ({"file": "gone.yaml", "service": "b"}, "services.web.extends.file", 'no file "gone.yaml"'),
        (
            {"file": "b.yaml", "service": "c"},
            "services.web.extends",
            'no service "c" in b.yaml (did you',
        ),
        ({"file": 1, "service": "b"}, "services.web.extends.file", "must be the path of a file"),
        ({"file": "", "service": "b"}, "services.web.extends.file", "must be the path of a file"),
        ({"file": ["b.yaml"], "service": "b"}, "services.web.extends.file", "must be the path"),
        ({"file": "a\0b", "service": "b"}, "services.web.extends.file", "must be the path"),
        ({"file": "https://x/y.yaml", "service": "b"}, "services.web.extends.file", "is elsewhere"),
        ({"file": "b.yaml"}, "services.web.extends", "must name a service"),
        ({"file": "list.yaml", "service": "b"}, "list.yaml", "is not a compose file"),
        ({"file": "not.yaml", "service": "b"}, "not.yaml", "is not YAML"),
        ({"file": "twice.yaml", "service": "b"}, "twice.yaml: services.b", "given more than once"),
        ({"file": "empty.yaml", "service": "b"}, "empty.yaml: services", "must be a map"),
        (
            {"file": "b.yaml", "service": "bad"},
            "b.yaml: services.bad.cpus",
            "is not a number of cores",
        ),
        (
            {"file": "b.yaml", "service": "loop"},
            "b.yaml: services.loop.extends",
            "→ b.yaml: loop → b.yaml: loop",
        ),
        (
            {"file": "b.yaml", "service": "unset"},
            "b.yaml: services.unset.image",
            "X is not set: why",
        ),
    ],
)
def test_extends_that_cannot_be_followed(extends: Any, path: str, problem: str) -> None:
    beside = {
        "b.yaml": "services:\n  b: {image: b}\n  cc: {image: c}\n  bad: {image: b, cpus: many}\n"
        "  loop: {extends: {service: loop, file: b.yaml}}\n  unset: {image: '${X:?why}'}\n",
        "list.yaml": "- a", "not.yaml": "a: [", "empty.yaml": "name: a",
        "twice.yaml": "services: {b: {image: a}, b: {image: c}}",
    }  # fmt: skip
    found = read_errors({MAIN: text({"web": {"image": "a", "extends": extends}})}, beside)
    assert problem in found[path]


def test_a_cycle_of_files_is_told_with_its_way() -> None:
    found = read_errors({MAIN: CYCLE[MAIN]}, CYCLE)
    ways = " ".join(found.values())
    assert "is a cycle: compose.yaml: a → b.yaml: b → compose.yaml: a" in ways


def test_a_chain_of_files_and_their_number_are_bounded() -> None:
    def chain(length: int) -> dict[str, str]:
        return {
            f"f{n}.yaml": text({"s": {"extends": {"file": f"f{n + 1}.yaml", "service": "s"}}})
            for n in range(length)
        } | {f"f{length}.yaml": text({"s": {"image": "end"}})}  # fmt: skip

    main = text({"s": {"extends": {"file": "f0.yaml", "service": "s"}}})
    assert read({MAIN: main}, chain(CHAIN_MAX - 2)).spec.groups["s"].image == "end"
    found = read_errors({MAIN: main}, chain(CHAIN_MAX + 1))
    assert any("is a chain of more than" in problem for problem in found.values())
    many = {f"s{n}": {"extends": {"file": f"f{n}.yaml", "service": "s"}} for n in range(64)}
    with pytest.raises(BadConfig, match=f"names more than {FILES_MAX} other files"):
        parse_project((ComposeFile(text(many).encode()),), around())


def test_all_files_together_are_bounded() -> None:
    long = {f"x-{n}": list(range(500)) for n in range(NODES_MAX // 520)}
    beside = {f"f{n}.yaml": text({"s": {"image": "a"}}, **long) for n in range(8)}
    found = read_errors(
        {
            MAIN: text(
                {f"s{n}": {"extends": {"file": f"f{n}.yaml", "service": "s"}} for n in range(8)}
            )
        },
        beside,
    )
    assert "all files together are too large" in found["f5.yaml"]
    assert "f1.yaml" not in found


def test_an_error_of_a_base_is_told_once_and_where_it_stands() -> None:
    bad = {"image": "a", "tty": True, "ports": ["80", "x"]}
    services = {"base": bad, "a": {"extends": "base"}, "b": {"extends": "base", "ports": ["y"]}}
    with pytest.raises(BadConfig) as caught:
        composed({"services": services})
    assert sorted(one.path for one in caught.value.errors) == [
        "services.b.ports[0]", "services.base.ports[1]", "services.base.tty",
    ]  # fmt: skip


# -- include --------------------------------------------------------------------------------------


def test_include_brings_another_project_along() -> None:
    found = read(
        {
            MAIN: text(
                {"web": {"image": "nginx:${TAG}", "depends_on": ["db", "cache"]}},
                include=["db/compose.yaml", {"path": "${DIR}/cache.yaml"}],
                volumes={"data": None},
            )
        },
        {
            ".env": "TAG=main\nDIR=deep/cache",
            "db/compose.yaml": text(
                {
                    "db": {
                        "image": "db:${TAG}-${OWN}", "env_file": "a.env",
                        "volumes": ["./d:/d", "data:/e"],
                    }
                },
                volumes={"data": None}, name="ignored", version="3",
            ),
            "db/.env": "TAG=loses\nOWN=own", "db/a.env": "A=db",
            "deep/cache/cache.yaml": text({}, include=["../more.yaml"]),
            "deep/more.yaml": text({"cache": {"image": "cache", "volumes": ["./x:/x"]}}),
        },
    )  # fmt: skip
    groups = found.spec.groups
    assert groups["db"].image == "db:main-own"
    assert groups["db"].env == {"A": "db"}
    assert groups["db"].mounts[0].source == "/srv/shop/db/d"
    assert groups["db"].mounts[1].source == "shop_data"
    assert groups["cache"].mounts[0].source == "/srv/shop/deep/x"
    assert groups["web"].depends_on == ("db", "cache")
    assert found.spec.name == "shop"
    assert "db/compose.yaml: name: of a file that is included says nothing" in found.notes


def test_include_in_its_long_form() -> None:
    include = [
        {
            "path": ["a/one.yaml", "b/two.yaml"],
            "project_directory": "proj",
            "env_file": ["envs/1.env", "envs/2.env"],
        }
    ]
    found = read(
        {MAIN: text({"web": {"image": "nginx"}}, include=include)},
        {
            "a/one.yaml": text({"db": {"image": "db:${ONE}${TWO}", "volumes": ["./d:/d"], "user": "one"}}),
            "b/two.yaml": text({"db": {"user": "${USED}", "env_file": "x.env"}}),
            "proj/.env": "ONE=never", "proj/x.env": "A=proj",
            "envs/1.env": "ONE=1\nTWO=1\nUSED=file", "envs/2.env": "TWO=2",
        },
        variables={"USED": "shell"},
    )  # fmt: skip
    db = found.spec.groups["db"]
    assert (db.image, db.user, db.env) == ("db:12", "shell", {"A": "proj"})
    assert db.mounts[0].source == "/srv/shop/proj/d"


INCLUDED = {
    "db.yaml": "services:\n  db: {image: db}\nnonsense: 1\nx-cube: {priority: 1}\n",
    "same.yaml": "services:\n  web: {image: nginx}\n", "other.yaml": "services:\n  web: {image: other}\n",
    "vol.yaml": "volumes: {data: {name: other}}\n", "self.yaml": "include: [self.yaml]\n",
    "back.yaml": "include: [compose.yaml]\n", "list.yaml": "services: []\n", "bad.yaml": "a: [",
    "unset.yaml": "services:\n  db: {image: '${X:?why}'}\n",
    "tty.yaml": "services:\n  db: {image: a, tty: true}\n",
    "bad.env": "1 x\n",
}  # fmt: skip


@pytest.mark.parametrize(
    ("include", "path", "problem"),
    [
        ("db.yaml", "include", "must be a list, not text (- other.yaml)"),
        ({"path": "db.yaml"}, "include", "must be a list, not a table"),
        ([1], "include[0]", "must be the path of a file, not a number"),
        ([None], "include[0]", "must be the path of a file"),
        ([{}], "include[0]", "must name a file (write path: other.yaml)"),
        ([{"path": []}], "include[0].path", "must name a file"),
        ([{"path": [["db.yaml"]]}], "include[0].path[0]", "must be the path of a file, not a list"),
        ([{"path": "db.yaml", "pth": 1}], "include[0].pth", "unknown key (did you mean `path`?)"),
        (
            [{"path": "same.yaml", "env_file": 1}],
            "include[0].env_file",
            "must be the path of a file",
        ),
        (
            [{"path": "same.yaml", "env_file": "gone.env"}],
            "include[0].env_file",
            'no file "gone.env"',
        ),
        ([{"path": "same.yaml", "env_file": ["bad.env"]}], "bad.env:1", "is not NAME=VALUE"),
        (
            [{"path": "same.yaml", "project_directory": []}],
            "include[0].project_directory",
            "must be",
        ),
        (["oci://x/y"], "include[0]", "is elsewhere"),
        (["gone.yaml"], "include[0]", 'there is no file "gone.yaml"'),
        (["bad.yaml"], "bad.yaml", "is not YAML"),
        (["db.yaml"], "db.yaml: nonsense", "unknown key"),
        (["list.yaml"], "list.yaml: services", "must be a map, not a list"),
        (["same.yaml", "other.yaml"], "other.yaml: services.web", "services.web is there already"),
        (
            ["vol.yaml"],
            "vol.yaml: volumes.data",
            "volumes.data is there already, at volumes.data, and",
        ),
        (
            ["self.yaml"],
            "self.yaml: include[0]",
            "is a cycle: compose.yaml → self.yaml → self.yaml",
        ),
        (
            ["back.yaml"],
            "back.yaml: include[0]",
            "is a cycle: compose.yaml → back.yaml → compose.yaml",
        ),
        (["unset.yaml"], "unset.yaml: services.db.image", "X is not set: why"),
        (["tty.yaml"], "tty.yaml: services.db.tty", "tasks have no terminal"),
    ],
)
def test_include_that_cannot_be(include: Any, path: str, problem: str) -> None:
    main = text({"web": {"image": "nginx"}}, include=include, volumes={"data": {"name": "mine"}})
    assert problem in read_errors({MAIN: main}, INCLUDED)[path]


def test_a_file_that_cannot_be_read_has_no_echo() -> None:
    main = text(
        {
            "web": {"image": "a", "depends_on": ["db"]},
            "x": {"extends": {"file": "g.yaml", "service": "x"}},
        },
        include=["gone.yaml", "bad.yaml"],
    )
    assert sorted(read_errors({MAIN: main}, INCLUDED)) == [
        "bad.yaml", "include[0]", "services.x.extends.file",
    ]  # fmt: skip


def test_what_is_the_same_twice_is_no_conflict() -> None:
    main = text({"web": {"image": "nginx"}}, include=["same.yaml", "./same.yaml"])
    assert list(
        read({MAIN: main}, {**INCLUDED, "./same.yaml": INCLUDED["same.yaml"]}).spec.groups
    ) == ["web"]


def test_how_deep_and_how_much_is_included_is_bounded() -> None:
    def deep(length: int) -> dict[str, str]:
        found = {f"f{n}.yaml": f"include: [f{n + 1}.yaml]\n" for n in range(length)}
        return found | {f"f{length}.yaml": text({"s": {"image": "end"}})}

    main = "include: [f0.yaml]\n"
    assert list(read({MAIN: main}, deep(DEPTH_MAX - 1)).spec.groups) == ["s"]
    found = read_errors({MAIN: main}, deep(DEPTH_MAX))
    assert (
        f"is included more than {DEPTH_MAX} files deep"
        in found[f"f{DEPTH_MAX - 1}.yaml: include[0]"]
    )
    double = {f"f{n}.yaml": f"include: [f{n + 1}.yaml, f{n + 1}.yaml]\n" for n in range(7)}
    found = read_errors({MAIN: main}, {**double, "f7.yaml": text({"s": {"image": "end"}})})
    assert [one for one in found.values() if f"more than {INCLUDES_MAX} files are included" in one]


def test_the_api_reads_no_files_and_says_who_does() -> None:
    both = {
        "include": ["a.yaml"],
        "services": {"web": {"depends_on": ["d"], "extends": {"file": "b.yaml", "service": "c"}}},
    }
    found = errors(both, API)
    assert sorted(found) == ["include", "services.web.extends.file"], (
        "and nothing that follows of it"
    )
    for path in found:
        assert "and the API reads none (the command line resolves it: cube run FILE" in found[path]


# -- files merged ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "other", "expected"),
    [
        ("    environment: [A=1, B=2]\n", "    environment: {B: 3, C: 4}\n",
         {"env": {"A": "1", "B": "3", "C": "4"}}),
        ("    command: [a, b]\n", "    command: [c]\n", {"command": ("c",)}),
        ("    entrypoint: [a]\n", "    entrypoint: b c\n", {"entrypoint": ("b", "c")}),
        ("    command: [a]\n", "    command: !reset null\n", {"command": ()}),
        ("    environment: {A: 1, B: 2}\n", "    environment: {A: !reset null}\n", {"env": {"B": "2"}}),
        ("    environment: [A=1, B=2]\n", "    environment: [!reset A]\n", {"env": {"B": "2"}}),
        ("    environment: {A: 1}\n", "    environment: !override {B: 2}\n", {"env": {"B": "2"}}),
        ("    environment: {A: 1}\n", "    environment:\n", {"env": {"A": "1"}}),
        ("    depends_on: []\n", "    user: u\n", {"user": "u"}),
        ("    deploy: {replicas: 2, update_config: {order: start-first}}\n", "    deploy: {replicas: 3}\n",
         {"count": 3}),
        ("    user: a\n", "    user: !override b\n", {"user": "b"}),
        ("    user: a\n", "    user: !reset b\n", {"user": ""}),
    ],
)  # fmt: skip
def test_a_file_over_another(base: str, other: str, expected: dict[str, object]) -> None:
    found = over(base, other)
    assert {key: getattr(found, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("base", "other", "ports"),
    [
        ('["80:8080"]', '["81:8081"]', {80: 8080, 81: 8081}),
        ('["80:8080"]', '["81:8080"]', None),  # two: the published port is a part of what a port is
        ('["80:8080"]', '["80:8080/tcp"]', {80: 8080}),
        ('["80:8080"]', "[{target: 8080, published: 80}]", {80: 8080}),
        ('["80:8080"]', '!override ["81:8080"]', {81: 8080}),
        ('["80:8080"]', "!reset []", {}),
    ],
)  # fmt: skip
def test_ports_of_two_files(base: str, other: str, ports: dict[int, int] | None) -> None:
    def read_ports() -> dict[int, int]:
        found = over(f"    ports: {base}\n", f"    ports: {other}\n")
        return {port.host: port.target for port in found.ports.values()}

    if ports is None:
        assert len(read_ports()) == 2
    else:
        assert read_ports() == ports


def test_lists_are_appended_and_what_means_the_same_is_replaced_in_its_place() -> None:
    found = over(
        "    cap_add: [A_A]\n    dns: 10.0.0.1\n    tmpfs: /a\n"
        "    extra_hosts: ['h:10.0.0.1', 'i:10.0.0.2']\n"
        "    volumes: ['/a:/x', '/b:/y']\n    devices: ['/dev/a:/dev/x']\n"
        "    healthcheck: {test: [CMD, a], retries: 9}\n    labels: [a=1]\n",
        "    cap_add: [A_B, A_A]\n    dns: [10.0.0.2]\n    tmpfs: [/b]\n    extra_hosts: {h: 10.0.0.9}\n"
        "    volumes: [{type: bind, source: /c, target: /x}, '/d:/z']\n    devices: ['/dev/b:/dev/x']\n"
        "    healthcheck: {test: [CMD, b]}\n    labels: {b: 2}\n",
    )
    docker = found.docker
    assert docker.cap_add == ("A_A", "A_B")
    assert docker.dns == ("10.0.0.1", "10.0.0.2")
    assert docker.extra_hosts == ("h:10.0.0.9", "i:10.0.0.2")
    assert [(one.source, one.target) for one in found.mounts] == [
        ("/c", "/x"), ("/b", "/y"), ("/d", "/z"), ("", "/a"), ("", "/b"),
    ]  # fmt: skip
    assert len(docker.devices) == 1
    assert docker.devices[0].startswith("/dev/b:")
    assert (found.checks[0].command, found.checks[0].unhealthy_after) == (("b",), 9)
    assert docker.labels == {"a": "1", "b": "2"}


def test_a_third_file_goes_over_what_the_second_one_reset() -> None:
    found = over("    command: [a]\n", "    command: !reset null\n", "    command: [c]\n")
    assert found.command == ("c",)


def test_what_a_service_resets_is_gone_from_what_it_extends_too() -> None:
    found = read(
        {
            MAIN: "services:\n  base: {image: a, command: [x], ports: ['80']}\n"
            "  web: {extends: base, command: !reset null, ports: !override ['81']}\n"
        }
    ).spec.groups
    assert (found["web"].command, list(found["web"].ports)) == ((), ["81"])
    assert (found["base"].command, list(found["base"].ports)) == (("x",), ["80"])


def test_what_a_base_resets_is_gone_from_the_base_alone() -> None:
    found = read(
        {
            MAIN: "services:\n  base: {image: a, ports: ['80']}\n  web: {image: a, ports: ['81']}\n",
            "o.yaml": "services:\n  base: {ports: !reset []}\n  web: {extends: base, user: u}\n",
        }
    ).spec.groups
    assert (list(found["base"].ports), list(found["web"].ports)) == ([], ["81"])


def test_secrets_configs_env_files_and_logging_of_two_files() -> None:
    head = "secrets: {s: {external: true}, t: {external: true}}\n"
    head += "configs: {c: {external: true}, d: {external: true}}\nservices:\n  web:\n    image: a\n"
    found = read(
        {
            MAIN: f"{head}    secrets: [s]\n    configs: [c]\n    env_file: [a.env, b.env]\n"
            "    logging: {driver: gelf, options: {a: b}}\n",
            "o.yaml": "services:\n  web:\n    secrets: [{source: t, target: s}, t]\n"
            "    configs: [{source: d, target: /c}]\n    logging: {driver: local}\n"
            "    env_file: {path: a.env, format: raw}\n",
        },
        {"a.env": "A='q'\nX=a", "b.env": "B=b\nX=b"},
    )
    group = found.spec.groups["web"]
    assert [(one.type, one.source, one.target) for one in group.mounts] == [
        ("secret", "t", "/run/secrets/s"), ("secret", "t", "/run/secrets/t"), ("config", "d", "/c"),
    ]  # fmt: skip
    assert group.env == {"A": "'q'", "B": "b", "X": "b"}
    assert not [note for note in found.notes if "logging.options" in note]


def test_names_are_no_keys_however_they_read() -> None:
    found = read(
        {
            MAIN: "services:\n  command: {image: a, user: u}\n  labels: {image: b}\n"
            "volumes: {ports: {name: a}}\n",
            "o.yaml": "services:\n  command: {image: c}\n  labels:\n  new: {image: d}\n"
            "volumes: {ports: }\n",
        }
    ).spec.groups
    assert (found["command"].image, found["command"].user) == ("c", "u")
    assert list(found) == ["command", "labels", "new"]
    gone = read(
        {MAIN: "services: {a: {image: a}, b: {image: b}}", "o.yaml": "services: {a: !reset null}"}
    )
    assert list(gone.spec.groups) == ["b"]


def test_paths_and_includes_of_all_files_are_those_of_the_first_ones_directory() -> None:
    found = read(
        {
            MAIN: text({"web": {"image": "a"}}, include=["a.yaml"]),
            "sub/over.yaml": text(
                {"web": {"volumes": ["./d:/d"], "env_file": "x.env"}}, include=["b.yaml"]
            ),
        },
        {
            "x.env": "A=first", "a.yaml": text({"a": {"image": "a"}}),
            "b.yaml": text({"b": {"image": "b"}}),
        },
    )  # fmt: skip
    assert found.spec.groups["web"].mounts[0].source == "/srv/shop/d"
    assert found.spec.groups["web"].env == {"A": "first"}
    assert sorted(found.spec.groups) == ["a", "b", "web"]


def test_errors_are_at_the_path_of_the_file_that_says_it() -> None:
    found = read_errors(
        {
            MAIN: "services:\n  web:\n    image: a\n    ports: ['80', nope]\n    cpus: many\n",
            "over.yaml": "services:\n  web:\n    ports: [neither]\n    tty: true\n    environment: [A=$]\n"
            "  db: {}\nvolumes: {v: 1}\n",
            "last.yaml": "services:\n  web:\n    cpus: none\n    nonsense: 1\n    x-cube: {cuont: 1}\n",
        }
    )
    assert sorted(found) == [
        "last.yaml: services.web.cpus", "last.yaml: services.web.nonsense",
        "last.yaml: services.web.x-cube.cuont", "over.yaml: services.db.image",
        "over.yaml: services.web.environment[0]", "over.yaml: services.web.ports[0]",
        "over.yaml: services.web.tty", "over.yaml: volumes.v", "services.web.ports[1]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("other", "path", "problem"),
    [
        ("- a", "o.yaml", "is not a compose file: it holds a list"),
        ("", "o.yaml", "is not a compose file: it holds nothing"),
        ("a: [", "o.yaml", "is not YAML"),
        ("services: []", "o.yaml: services", "must be a map, not a list"),
        ("services: {web: []}", "o.yaml: services.web", "must be a map, not a list"),
        ("services: {web: {image: [a]}}", "o.yaml: services.web.image", "must be text"),
        ("services: {web: !rest {}}", "o.yaml", "has a tag"),
        ("services: !reset {}", "services", "at least one is required"),
        ("services: {web: {volumes: {a: b}}}", "o.yaml: services.web.volumes", "must be a list"),
    ],
)
def test_what_cannot_be_merged(other: str, path: str, problem: str) -> None:
    found = read_errors({MAIN: "services: {web: {image: a, volumes: ['/a:/b']}}", "o.yaml": other})
    assert problem in found[path]


# -- profiles -------------------------------------------------------------------------------------

PROFILES = text(
    {
        "a": {"image": "a"},
        "b": {"image": "b", "profiles": ["x", "y"]},
        "c": {"image": "c", "profiles": ["z"], "depends_on": ["b"]},
    }
)


@pytest.mark.parametrize(
    ("profiles", "variable", "groups"),
    [
        ((), "", ["a"]),
        (("x",), "", ["a", "b"]),
        (("y", "z"), "", ["a", "b", "c"]),
        (("*",), "", ["a", "b", "c"]),
        (("x",), "y,z", ["a", "b"]),  # what is named on the command line is all
        ((), "y, z", ["a", "b", "c"]),
    ],
)
def test_profiles(profiles: tuple[str, ...], variable: str, groups: list[str]) -> None:
    found = read({MAIN: PROFILES}, profiles=profiles, variables={"COMPOSE_PROFILES": variable})
    assert list(found.spec.groups) == groups


def test_what_is_left_out_says_which_profiles_it_has() -> None:
    found = read_errors({MAIN: PROFILES}, profiles=("z",))
    assert found["services.c.depends_on.b"] == (
        "is left out: none of its profiles (x, y) is active (--profile x (or COMPOSE_PROFILES) makes it "
        "active; required: false does without it)"
    )
    notes = read({MAIN: PROFILES}, profiles=("w",)).notes
    assert "services.b: is left out: none of its profiles (x, y) is active" in notes
    assert 'profiles: no service has the profile "w"; there are x, y, z' in notes
    assert 'profiles: no service has the profile "w"; there are none' in read(
        {MAIN: text({"a": {"image": "a"}})}, profiles=("w",)
    ).notes  # fmt: skip


def test_one_file_is_what_it_was() -> None:
    file = text({"a": {"image": "a", "mem_limit": "64m"}})
    assert read({MAIN: file}) == composed(file)
    found = parse_project((ComposeFile(file.encode()),), around(files={".env": None}))
    assert not isinstance(found, FilesWanted)
