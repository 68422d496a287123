"""Hostile and odd YAML: a tree, or BadConfig, within bounds. Never an object, never a surprise."""

import sys

import pytest

from cube.model.compose import yamltext
from cube.model.compose.yamltext import DEPTH_MAX, NODES_MAX, yaml_tree
from cube.model.errors import BadConfig
from cube.model.treetext import TEXT_BYTES_MAX


def problems(text: str | bytes) -> list[tuple[str, str]]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(BadConfig) as caught:
        yaml_tree(data)
    return [(error.path, error.problem) for error in caught.value.errors]


def tree(text: str) -> object:
    return yaml_tree(text.encode())


@pytest.fixture(params=["libyaml", "python"], autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parsers: a wheel may lack libyaml."""
    import yaml

    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    elif not yaml.__with_libyaml__:
        pytest.skip("this PyYAML has no libyaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: yes", "yes"), ("a: on", "on"), ("a: NO", "NO"), ("a: true", True), ("a: False", False),
        ("a: 22:22", "22:22"), ("a: 8080:80", "8080:80"), ("a: 1_000", "1_000"), ("a: ~", None),
        ("a:", None), ("a: null", None), ("a: 'null'", "null"), ('a: "1"', "1"), ("a: 12", 12),
        ("a: -3", -3), ("a: 0o17", 15), ("a: 0777", 511), ("a: 08", 8.0), ("a: 0x1f", 31),
        ("a: 1.10", 1.1), ("a: 1e3", 1000.0), ("a: .5", 0.5), ("a: 2024-01-01", "2024-01-01"),
        ("a: !!str 12", "12"), ("a: !!int '12'", 12), ("a: ! 12", "12"), ("a: =", "="),
        ("a: <<", "<<"), ("a: |\n  x\n  y\n", "x\ny\n"), ("a: >-\n  x\n  y\n", "x y"),
        ("a: 1.2.3", "1.2.3"), ("a: 0b11", 3), ("a: .inf", float("inf")), ("a: -.INF", float("-inf")),
    ],
)  # fmt: skip
def test_scalars_are_read_as_compose_reads_them(text: str, value: object) -> None:
    found = tree(text)
    assert found == {"a": value}
    assert isinstance(found, dict)
    assert type(found["a"]) is type(value)


def test_not_a_number_is_a_float_and_nothing_else() -> None:
    found = tree("a: .nan")
    assert isinstance(found, dict)
    assert found["a"] != found["a"]


def test_keys_are_text_as_they_stand() -> None:
    assert tree("1: a\ntrue: b\n'x y': c\n") == {"1": "a", "true": "b", "x y": "c"}


def test_anchors_and_merge_keys() -> None:
    text = """
base: &base {a: 1, b: 2}
more: &more {b: 3, c: 4}
one: {<<: *base, a: 5}
two: {<<: [*base, *more], d: 6}
three: *base
four: {"<<": text}
"""
    found = tree(text)
    assert isinstance(found, dict)
    assert found["one"] == {"a": 5, "b": 2}
    assert found["two"] == {"a": 1, "b": 2, "c": 4, "d": 6}, "what is merged first wins"
    assert found["three"] == {"a": 1, "b": 2}
    assert found["four"] == {"<<": "text"}, "a key in quotes merges nothing"


def test_an_anchor_may_be_set_anew() -> None:
    assert tree("a: &x 1\nb: *x\nc: &x 2\nd: *x\n") == {"a": 1, "b": 1, "c": 2, "d": 2}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !rest null", 'has a tag, "!rest", that is not read (at line 1, column 4)'),
        ("!reset {a: b}", 'has a tag, "!reset", that is not read (at line 1, column 1)'),
        ("!override a", 'has a tag, "!override", that is not read (at line 1, column 1)'),
        ("!reset a: b", "has !reset on a key: it belongs before the value (at line 1, column 1)"),
        ("a: !!python/object/apply:os.system ['true']", "has a tag"),
        ("a: !!binary aGk=", "has a tag"),
        ("a: !!timestamp 2024-01-01", "has a tag"),
        ("a: !!set {x}", "has a tag"),
        ("a: *b", 'names an anchor, "*b", that is not set before (at line 1, column 4)'),
        ("a: &a [*a]", "that is not set before"),
        ("a: &a {b: *a}", "that is not set before"),
        ("? [a]\n: b", "has a list or a map as a key"),
        ("? {a: b}\n: c", "has a list or a map as a key"),
        ("a: &x k\n*x : b", "has an alias as a key"),
        ("&x a: b", "has an anchor on a key"),
        ("~: a", "has an empty key"),
        ("a: b\n---\nc: d", "has more than one document"),
        ("a: [b", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("\tb", "is not YAML"),
        ("a: \x01", "is not YAML"),
        ("%YAML 3.0\n---\na: b", "is not YAML"),
        (b"a: \xff", "is not UTF-8"),
        (b"a" * (TEXT_BYTES_MAX + 1), "bytes long"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str | bytes, problem: str) -> None:
    found = problems(text)
    assert [path for path, _ in found] == ["(file)"]
    assert problem in found[0][1]
    assert len(found[0][1]) < 400


def test_repeated_keys_are_told_by_path_all_at_once() -> None:
    text = "a:\n  b: 1\n  b: 2\nc: [{d: 1, d: 2}]\na: 3\ne:\n  <<: {x: 1}\n  <<: {y: 2}\n"
    assert problems(text) == [
        ("a.b", "is given more than once (at line 3, column 3)"),
        ("c[0].d", "is given more than once (at line 4, column 12)"),
        ("a", "is given more than once (at line 5, column 1)"),
        ('e."<<"', "is given more than once (at line 8, column 3)"),
    ]


def test_only_maps_are_merged() -> None:
    assert problems("a: {<<: text}")[0][1].startswith("merges maps, and this is none")
    assert problems("a: {<<: [1, {b: c}]}")[0][1].startswith("merges maps, and this is none")


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LAUGHS, "too large once its aliases are written out"),
        ("a: &a " + "x" * 200_000 + "\nb: [" + "*a," * 9 + "]", "too large once"),
        ("a: &a {x: y}\nb: {<<: [" + "*a," * NODES_MAX + "]}", "too large once"),
        ("a: [" + "1," * NODES_MAX + "]", "too large once"),
        ("[" * 100_000, "nest"),
        ("- " * 100_000, "levels deep"),
        ("{a: " * 100_000, "levels deep"),
        ("a: " + "[" * DEPTH_MAX + "]" * DEPTH_MAX, f"more than {DEPTH_MAX} levels deep"),
    ],
    ids=["laughs", "long-alias", "merges", "numbers", "brackets", "dashes", "braces", "just-too-deep"],
)  # fmt: skip
def test_files_that_grow_are_refused(text: str, problem: str) -> None:
    assert problem in problems(text)[0][1]


def test_what_is_just_within_the_bounds_is_read() -> None:
    deep = "a: " + "[" * (DEPTH_MAX - 1) + "]" * (DEPTH_MAX - 1)
    assert isinstance(tree(deep), dict)
    wide = tree("a: [" + "1," * (NODES_MAX - 4) + "]")
    assert isinstance(wide, dict)


@pytest.mark.parametrize(
    "digits", ["9" * 10_000, "-" + "9" * 10_000, "0x" + "f" * 10_000, "0" + "7" * 9_999]
)
def test_huge_numbers_stay_out_of_range_and_cost_nothing(digits: str) -> None:
    found = tree(f"a: {digits}")
    assert isinstance(found, dict)
    assert isinstance(found["a"], int)
    assert abs(found["a"]) > 1 << 64


def test_yaml_is_imported_in_one_place() -> None:
    assert yamltext.__name__ in sys.modules
