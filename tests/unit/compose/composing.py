"""What the tests of compose files share: a file as a tree in, a job or the errors out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from cube.model.compose.assemble import ComposeFile
from cube.model.compose.extends import Extending, Source
from cube.model.compose.placed import placed, plain
from cube.model.compose.project import Composed, FilesWanted, parse_compose, parse_project
from cube.model.compose.section import Surroundings
from cube.model.errors import BadConfig
from cube.model.spec import GroupSpec
from cube.model.treeread import Errors


def around(
    variables: dict[str, str] | None = None, files: Mapping[str, str | None] | None = None
) -> Surroundings:
    """The surroundings that `cube run` gives a file in /srv/shop."""
    data: dict[str, bytes | None] = {".env": None}
    for path, text in (files or {}).items():
        data[path] = None if text is None else text.encode()
    return Surroundings("/srv/shop", "/home/ann", "shop", variables or {}, data)


def composed(file: str | dict[str, Any], where: Surroundings | None = None) -> Composed:
    """The job of a file: YAML text, or a tree that is written as JSON, which is YAML too."""
    text = file if isinstance(file, str) else json.dumps(file)
    found = parse_compose(text.encode(), around() if where is None else where)
    assert not isinstance(found, FilesWanted), found
    return found


def service(tree: dict[str, Any], where: Surroundings | None = None, **top: Any) -> GroupSpec:
    """The group that one service becomes; its image is given."""
    file = {"services": {"web": {"image": "nginx", **tree}}, **top}
    return composed(file, where).spec.groups["web"]


def errors(file: str | dict[str, Any], where: Surroundings | None = None) -> dict[str, str]:
    """Each error of a file: its path, and what it says with its hint."""
    with pytest.raises(BadConfig) as caught:
        composed(file, where)
    return {one.path: f"{one.problem} ({one.hint})" for one in caught.value.errors}


def service_errors(tree: dict[str, Any], **top: Any) -> dict[str, str]:
    return errors({"services": {"web": {"image": "nginx", **tree}}, **top})


def extended(services: dict[str, Any]) -> dict[str, Any]:
    """The services of one file, each with what it extends."""
    tree: Any = placed(services, "services").value
    found = Extending(Errors()).services(Source("", "", tree), lambda _file, _asking: None)
    return {name: plain(node) for name, node in found.items()}


def read(
    named: Mapping[str, str], beside: Mapping[str, str | None] | None = None, **more: Any
) -> Composed:
    """The job of files named on the command line, the others read as they are asked for."""
    files = tuple(ComposeFile(text.encode(), name, name) for name, text in named.items())
    where = around(more.pop("variables", None), {**named, **(beside or {})})
    where = msgspec.structs.replace(where, **more)
    found = parse_project(files, where)
    while isinstance(found, FilesWanted):
        assert not set(found.paths) & set(where.files)
        where = msgspec.structs.replace(where, files={**where.files, **dict.fromkeys(found.paths)})
        found = parse_project(files, where)
    return found


def read_errors(
    named: Mapping[str, str], beside: Mapping[str, str | None] | None = None, **more: Any
) -> dict[str, str]:
    with pytest.raises(BadConfig) as caught:
        read(named, beside, **more)
    return {one.path: f"{one.problem} ({one.hint})" for one in caught.value.errors}
