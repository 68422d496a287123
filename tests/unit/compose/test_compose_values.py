"""Variables, files of variables, extends: what they become, and what is wrong with them by path."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from cube.model.compose.dotenv import FILE_BYTES_MAX, read_dotenv
from cube.model.compose.interpolate import CHARS_MAX, VALUE_CHARS_MAX, Interpolation
from cube.model.compose.project import API, Composed, FilesWanted, parse_compose
from cube.model.compose.section import Surroundings
from cube.model.treeread import Errors
from tests.unit.compose.composing import around, composed, errors, extended, service

VARIABLES = {"A": "a", "EMPTY": "", "_x1": "under", "LONG": "x" * 1000}


def replaced(text: str) -> str:
    found = Errors()
    value = Interpolation(found, VARIABLES).text("p", text)
    assert not found.found
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$A", "a"), ("${A}", "a"), ("x$A.y", "xa.y"), ("$Ay", ""), ("$_x1", "under"), ("$$A", "$A"),
        ("$$$$", "$$"), ("$$$A", "$a"), ("${A:-d}", "a"), ("${B:-d}", "d"), ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""), ("${B-d}", "d"), ("${B:-}", ""), ("${A:+o}", "o"), ("${EMPTY:+o}", ""),
        ("${EMPTY+o}", "o"), ("${B+o}", ""), ("${A:?e}", "a"), ("${EMPTY?e}", ""), ("${B:-$A}", "a"),
        ("${B:-${C-${A}}}", "a"), ("${B:-x}y}", "xy}"), ("${B:-{}}", "{}"), ("${B:-a-b:c}", "a-b:c"),
        ("${B:-$$}", "$"), ("$B", ""), ("${B:-:?-+}", ":?-+"),
    ],
)  # fmt: skip
def test_variables(text: str, value: str) -> None:
    assert replaced(text) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("$", "has a $ that begins no variable (write $$ for a dollar sign)"),
        ("cost $5", "has a $ that begins no variable"),
        ("${}", "has a $ that begins no variable"),
        ("${1A}", "has a $ that begins no variable"),
        ("${A", "has a ${ without its }"),
        ("${B:-${A}", "has a ${ without its }"),
        ("${A!x}", "is no variable (accepted: ${VAR} ${VAR:-default}"),
        ("${A:x}", "is no variable"),
        ("${A/x/y}", "is no variable"),
        ("${B:?}", "B is not set: a value is required (set B, or write it into .env)"),
        ("${EMPTY:?why $A}", "EMPTY is not set: why a"),
        ("${B?x}", "B is not set: x"),
        ("${B:-" * 9 + "}" * 9, "defaults nested more than 8 deep"),
        ("$A" + "x" * VALUE_CHARS_MAX, "characters long"),
    ],
)  # fmt: skip
def test_variables_that_are_wrong(text: str, problem: str) -> None:
    file = {"services": {"web": {"image": "nginx", "environment": {"V": text}}}}
    found = errors(file, around(VARIABLES))
    assert problem in found["services.web.environment.V"]


def test_what_is_replaced_is_bounded_in_all() -> None:
    tree = {"services": {"web": {"image": "x", "labels": ["$LONG" * 1000, "$LONG" * 1000]}}}
    where = around(VARIABLES)
    assert "too long once variables are replaced" in " ".join(errors(tree, where).values())


class Counting(Mapping[str, str]):
    """One variable, A, that counts how often it is asked for."""

    def __init__(self, value: str) -> None:
        self.value, self.asked = value, 0

    def __getitem__(self, key: str) -> str:
        self.asked += 1
        return {"A": self.value}[key]

    def __iter__(self) -> Iterator[str]:
        return iter("A")

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("text", ["$A" * 30_000, "${A:-x}" * 9_000])
def test_one_value_is_not_made_larger_than_what_is_accepted_in_all(text: str) -> None:
    found, variables = Errors(), Counting("x" * (CHARS_MAX // 4))
    assert Interpolation(found, variables).text("v", text) == text
    assert [one.problem for one in found.found] == ["is too long once its variables are replaced"]
    assert variables.asked <= 20


def test_variables_that_are_not_set_are_told_once_each() -> None:
    tree = {"services": {"web": {"image": "x$NOPE", "user": "u$NOPE", "mem_limit": "64m"}}}
    assert composed(tree).notes == (
        "services.web.image and 1 more: NOPE is not set, and is taken as empty",
    )


def test_keys_are_not_replaced() -> None:
    assert service({"environment": {"$A": "x"}}).env == {"$A": "x"}


def test_types_are_read_from_text_too() -> None:
    group = service(
        {"read_only": "${RO}", "scale": "${N}", "init": "on", "ulimits": {"nofile": "${N}"}},
        around({"RO": "TRUE", "N": "4"}),
    )
    assert (group.docker.read_only, group.docker.init, group.count) == (True, True, 4)
    assert group.ulimits[0].soft == 4


def test_the_api_has_no_environment_and_no_files() -> None:
    text = b"""
name: shop
services:
  web:
    image: nginx:${TAG}
    env_file: [a.env]
    label_file: labels
    environment: [HOME, "A=${B:-d}"]
    volumes: ["./x:/x", "~/y:/y"]
"""
    beside = around({}, {"a.env": "", "labels": ""})
    assert composed(text.replace(b"${TAG}", b"1").decode(), beside).spec.name == "shop"
    found = errors(text.decode(), API)
    assert set(found) == {
        "services.web.image",
        "services.web.env_file[0]",
        "services.web.label_file",
        "services.web.environment",
        "services.web.volumes[0]",
        "services.web.volumes[1]",
    }
    assert "TAG is not set: the API knows no environment" in found["services.web.image"]
    assert "let `cube run` read the file" in found["services.web.env_file[0]"]
    assert errors("services: {web: {image: x}}", API)["name"].startswith("is required by the API")


def test_files_are_asked_for_before_the_job_is_told() -> None:
    data = b"services: {web: {image: 'x:$T', env_file: ['$F'], mem_limit: 9m}}"
    where = Surroundings("/srv", "", "shop", {})
    assert parse_compose(data, where) == FilesWanted((".env",))
    files: dict[str, bytes | None] = {".env": b"F=a.env\nT=1\n"}
    where = Surroundings("/srv", "", "shop", {"T": "2"}, files)
    assert parse_compose(data, where) == FilesWanted(("a.env",))
    found = parse_compose(
        data, Surroundings("/srv", "", "shop", {"T": "2"}, {**files, "a.env": b"X=${F}\n"})
    )
    assert isinstance(found, Composed)
    assert found.spec.groups["web"].env == {"X": "a.env"}
    assert found.spec.groups["web"].image == "x:2", "the environment wins over .env"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A", None),
        ("A B=c", 'a.env:1: "A B=c" is not NAME=VALUE'),
        ("\n=x", 'a.env:2: "=x" is not NAME=VALUE'),
        ("1A=x", "is not NAME=VALUE"),
        ("A='x", "a.env:1: has a ' without its end"),
        ('A="x\ny', 'a.env:1: has a " without its end'),
        ('A="x" y', 'goes on behind its closing "'),
        ("A=${", "a.env:1: "),
        ("A=$ 1", "begins no variable"),
        ("A=x\n" * 30_000, "bytes long"),
        ("\xff".encode("latin-1").decode("latin-1"), "is not NAME=VALUE"),
    ],
)  # fmt: skip
def test_lines_of_an_env_file_that_are_wrong(text: str, problem: str | None) -> None:
    found = Errors()
    values = read_dotenv("a.env", text.encode(), {"A": "set"}, found)
    if problem is None:
        assert values == {"A": "set"}
        assert not found.found
    else:
        assert any(problem in str(error) for error in found.found)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=", ""), ("A= x y ", "x y"), ("A=x#y", "x#y"), ("A=x #y", "x"), ("A='#'", "#"),
        ("A='a\nb'", "a\nb"), ("A=\"a\nb\"", "a\nb"), (r'A="a\nb\t\"q\" \\ \$A"', 'a\nb\t"q" \\ $A'),
        (r"A='a\nb'", r"a\nb"), ("A=\"$S\"", "s"), ("A='$S'", "$S"), ("A=${S}$S", "ss"),
        ("export A=x", "x"),
        ("A: x", "x"), ("A = x", "x"), ("A=x=y", "x=y"), ("A='x' # why", "x"), ("\ufeffA=x", "x"),
        ("A=${N:-d}", "d"), ("a.b-c=1\nA=$S", "s"), ("A=x\r\nB=y\r\n", "x"),
    ],
)  # fmt: skip
def test_lines_of_an_env_file(line: str, value: str) -> None:
    found = Errors()
    assert read_dotenv("a.env", line.encode(), {"S": "s"}, found)["A"] == value
    assert not found.found


def test_long_quoted_values_are_read_in_one_go() -> None:
    body = "x\n" * ((FILE_BYTES_MAX - 10) // 2)
    found = Errors()
    assert read_dotenv("a.env", f"A='{body}'".encode(), {}, found) == {"A": body}
    assert not found.found


def test_extends() -> None:
    spec = composed(
        {
            "services": {
                "base": {
                    "image": "base", "command": ["a"], "environment": ["A=1", "B=2"], "ports": ["80"],
                    "mem_limit": "64m", "volumes": ["v:/d", "v:/e"], "cap_add": ["X_A"],
                    "healthcheck": {"test": ["CMD", "t"], "retries": 9}, "depends_on": ["db"],
                    "deploy": {"resources": {"limits": {"cpus": 1}}}, "labels": {"x": "1"},
                },
                "mid": {"extends": "base", "environment": {"B": "3"}, "command": ["b"]},
                "web": {
                    "extends": {"service": "mid"}, "environment": ["C=4"], "ports": ["80", "81"],
                    "volumes": ["w:/e:ro"], "cap_add": ["X_B"], "healthcheck": {"test": "u"},
                    "depends_on": {"other": {"condition": "service_healthy"}},
                    "deploy": {"replicas": 2}, "labels": ["y=2"],                 },
                "db": {"image": "db"}, "other": {"image": "other"},
            },
            "volumes": {"v": None, "w": None},
        }
    ).spec  # fmt: skip
    group = spec.groups["web"]
    assert group.env == {"A": "1", "B": "3", "C": "4"}
    assert group.command == ("b",)
    assert sorted(group.ports) == ["80", "81"]
    assert [(m.source, m.target, m.read_only) for m in group.mounts] == [
        ("shop_v", "/d", False), ("shop_w", "/e", True),
    ]  # fmt: skip
    assert group.docker.cap_add == ("X_A", "X_B")
    assert group.checks[0].command == ("/bin/sh", "-c", "u")
    assert group.checks[0].unhealthy_after == 9
    assert group.depends_on == ("db", "other")
    assert (group.cpu_max_milli, group.count) == (1000, 2)
    assert group.docker.labels == {"x": "1", "y": "2"}


def test_extends_that_cannot_be_followed() -> None:
    found = errors(
        {
            "services": {
                "a": {"image": "x", "extends": "b"},
                "b": {"image": "x", "extends": {"service": "a"}},
                "c": {"image": "x", "extends": "c"},
                "d": {"image": "x", "extends": "bb"},
                "e": {"image": "x", "extends": {"service": "b", "file": "other.yaml"}},
                "f": {"image": "x", "extends": {}},
                "g": {"image": "x", "extends": {"service": "d", "fill": 1}},
                "bbb": {"image": "x"},
            }
        },
        around(files={"other.yaml": None}),
    )
    assert "is a cycle: c → c" in found["services.c.extends"]
    assert "is a cycle: a → b → a" in " ".join(found.values())
    assert found["services.d.extends"] == 'there is no service "bb" (did you mean `bbb`?)'
    assert 'there is no file "other.yaml"' in found["services.e.extends.file"]
    assert "must name a service" in found["services.f.extends"]
    assert found["services.g.extends.fill"] == "unknown key (accepted: service, file)"


def test_many_services_that_extend_a_long_one_are_refused_early() -> None:
    words = [f"w{n}" for n in range(512)]
    long = {f"x-{n}": words for n in range(16)}
    services: dict[str, Any] = {
        "base": {"image": "x", **long},
        "mid": {"extends": "base"},
        # What is thrown away again has been merged as well.
        **{f"s{n}": {"image": "x", "extends": "mid", **dict.fromkeys(long)} for n in range(60)},
    }
    found = errors({"services": services})
    assert list(found.values()) == [
        "the file is too large once what services extend is written out ()"
    ]


class Told(str):
    """Counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Told.compared += 1
        return str.__eq__(self, other)


@pytest.mark.parametrize("key", ["cap_add", "volumes"])
def test_what_is_merged_is_compared_about_once_each(key: str) -> None:
    def items(word: str) -> list[object]:
        words = [Told(f"{word}{n}") for n in range(500)]
        return [{"target": one} for one in words] if key == "volumes" else list(words)

    services: dict[str, object] = {
        "a": {key: items("a")},
        "b": {"extends": "a", key: [*items("b"), *items("a")]},
    }
    Told.compared = 0
    merged: Any = extended(services)["b"]
    assert Told.compared < 5_000
    assert len(merged[key]) == 1_000


def test_equal_maps_are_merged_once() -> None:
    services: dict[str, object] = {
        "a": {"ports": [{"target": 80, "x": ["1"]}]},
        "b": {"extends": "a", "ports": [{"x": ["1"], "target": 80}, {"target": 81}]},
    }
    merged: Any = extended(services)["b"]
    assert [port["target"] for port in merged["ports"]] == [80, 81]


def test_a_long_chain_of_extends_is_refused() -> None:
    services = {f"s{n}": {"image": "x", "extends": f"s{n + 1}"} for n in range(40)}
    services["s40"] = {"image": "x"}
    assert any(
        "is a chain of more than" in text for text in errors({"services": services}).values()
    )
