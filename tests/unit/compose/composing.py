"""What the tests of compose files share: a file as a tree in, a job or the errors out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cube.model.compose.project import Composed, FilesWanted, parse_compose
from cube.model.compose.section import Surroundings
from cube.model.errors import BadConfig
from cube.model.spec import GroupSpec


def around(
    variables: dict[str, str] | None = None, files: dict[str, str] | None = None
) -> Surroundings:
    """The surroundings that `cube run` gives a file in /srv/shop."""
    data: dict[str, bytes | None] = {".env": None}
    data |= {path: text.encode() for path, text in (files or {}).items()}
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
