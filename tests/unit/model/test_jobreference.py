"""docs/drivers.md says what the model has: every key, its default, every word of `allow`."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from cube.model.allowed import ALLOW_WORDS, PROCESS_ALLOW_WORDS
from cube.model.jobreference import (
    ALLOWED,
    KEYS,
    NONE,
    OTHERS,
    PROCESS_ALLOWED,
    defaults,
    reference,
)

DOCS = Path(str(importlib.resources.files("cube"))).parent / "docs" / "drivers.md"


def test_every_key_of_a_group_is_in_the_reference_and_nothing_else() -> None:
    of_groups = {key for key in defaults() if key.partition(".")[0] not in OTHERS}
    assert set(KEYS) == of_groups
    assert {key.partition(".")[0] for key in defaults()} >= OTHERS


def test_every_word_is_explained() -> None:
    assert list(ALLOWED) == list(ALLOW_WORDS)
    assert list(PROCESS_ALLOWED) == list(PROCESS_ALLOW_WORDS)


def test_what_a_process_cannot_have_is_refused_by_the_job_file() -> None:
    from cube.model.jobfile import parse_tree
    from cube.model.jobrender import render

    spec = parse_tree(
        {"name": "j", "type": "service", "groups": {"g": {"driver": "process", "command": ["x"]}}}
    )
    groups = render(spec)["groups"]
    assert isinstance(groups, dict)
    mine = set(groups["g"])
    for key, (_, process) in KEYS.items():
        if process == NONE and not key.startswith("mounts"):
            assert key.partition(".")[0] not in mine, key


def test_the_page_is_as_the_model_has_it() -> None:
    mark = "<!-- from cube/model/jobreference.py: scripts/drivers-reference -->\n"
    _, found, tables = DOCS.read_text().partition(mark)
    assert found
    assert tables.strip() == reference().strip(), "scripts/drivers-reference writes it anew"
