"""Any bytes are a job or BadConfig with errors a person can read, and what is a job survives as TOML."""

import copy
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from cube.model.compose.assemble import ComposeFile
from cube.model.compose.keys import SECTIONS
from cube.model.compose.project import Composed, FilesWanted, parse_project
from cube.model.compose.section import Surroundings
from cube.model.compose.yamltext import yaml_tree
from cube.model.errors import BadConfig
from cube.model.jobfile import parse_toml, parse_tree
from cube.model.jobrender import render
from cube.model.jobtoml import job_toml

FILES = sorted((Path(__file__).parents[1] / "unit" / "compose" / "files").glob("*.yaml"))
TREES: list[Any] = [yaml_tree(path.read_bytes()) for path in FILES]
WORDS = sorted({key for keys in SECTIONS.values() for key in keys})
TEXTS = st.one_of(
    st.sampled_from(
        ["${A}", "${A:-b}", "$", "80:80", "1-2", "/a:/b:ro", "a:b", "10s", "64m", "host", "all", "web",
         "global", "node.id==a", "on-failure:3", "-1", "true", "NONE", "service:x", "~", "../x"]
    ),
    st.text(max_size=8),
)  # fmt: skip
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), TEXTS), inner, max_size=4),
    ),
    max_leaves=12,
)
AROUND = Surroundings("/srv", "/home/x", "shop", {"A": "a"}, {".env": None})


def judge(data: bytes, *others: bytes, around: Surroundings | None = None) -> None:
    files = tuple(
        ComposeFile(one, name, name) for one, name in zip((data, *others), "abc", strict=False)
    )
    for where in (AROUND, Surroundings()) if around is None else (around,):
        judge_files(files, where)


def judge_files(files: tuple[ComposeFile, ...], around: Surroundings) -> None:
    try:
        found = parse_project(files, around)
    except BadConfig as bad:
        for error in bad.errors:
            assert error.path
            assert error.problem
            assert len(str(error)) < 2_000
            assert "\n" not in str(error)
            assert str(error).encode()
        return
    if isinstance(found, FilesWanted):
        assert around.directory
        return
    assert isinstance(found, Composed)
    assert parse_tree(render(found.spec)) == found.spec
    assert parse_toml(job_toml(found.spec).encode()) == found.spec
    assert all(": " in note and len(note) < 2_000 for note in found.notes)


@given(st.sampled_from(TREES), st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_file_with_anything_anywhere_is_a_job_or_bad(tree: Any, data: Any) -> None:
    tree = copy.deepcopy(tree)
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys)) if keys else None
        if key is None or not isinstance(node[key], dict | list) or data.draw(st.booleans()):
            break
        node = node[key]
    if isinstance(node, dict) and (key is None or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(WORDS))
    if key is not None:
        node[key] = data.draw(ANYTHING)
    judge(json.dumps(tree).encode())


@given(ANYTHING)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_service_is_a_group_or_bad(tree: object) -> None:
    judge(json.dumps({"services": {"web": tree}, "networks": tree}).encode())


@given(
    st.one_of(st.binary(max_size=200), st.text(alphabet="[]{}:-&*!|>'\"#,\n ab<0$", max_size=80))
)
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_a_job_or_bad(data: bytes | str) -> None:
    judge(data if isinstance(data, bytes) else data.encode())


TAGS = st.sampled_from(["", "", "", "!reset ", "!override "])


@given(
    st.sampled_from(TREES), st.sampled_from(WORDS), ANYTHING, TAGS, ANYTHING,
    st.sampled_from(["o.yaml", "./o.yaml", "c", 1]),
)  # fmt: skip
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_anything_over_a_file_beside_it_and_beneath_it_is_a_job_or_bad(
    tree: Any, word: str, value: Any, tag: str, other: Any, file: Any
) -> None:
    name = next(iter(tree["services"]))
    asked = {"include": [file, {"path": [file], "env_file": file}], **tree}
    hole: Any = {
        "services": {name: {word: "HOLE"}, "new": {"extends": {"service": "web", "file": file}}}
    }
    over = json.dumps({**hole, word: "HOLE"}).replace('"HOLE"', f"{tag}{json.dumps(value)}")
    beneath = json.dumps({"services": {"web": value, "x": other}, word: other}).encode()
    beside = {".env": None, "o.yaml": beneath, "./o.yaml": beneath, "c": b"A=b", "sub/.env": None}
    around = Surroundings("/srv", "/home/x", "shop", {"A": "a"}, beside)
    for first in (tree, asked):
        judge(json.dumps(first).encode(), over.encode(), around=around)
