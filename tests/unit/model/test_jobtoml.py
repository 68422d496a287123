"""Job files that Cube writes: short, and the same job when they are read."""

import importlib.resources
from pathlib import Path

import pytest

from cube.model.jobfile import parse_toml, parse_tree
from cube.model.jobtoml import job_toml

EXAMPLES = importlib.resources.files("cube") / "examples"
WHOLE_PAGE = Path(__file__).parents[1] / "whole_page.toml"


@pytest.mark.parametrize("name", ["hello", "shop", "batch", "everywhere", "nightly"])
def test_an_example_is_the_same_job_again_and_no_longer(name: str) -> None:
    text = (EXAMPLES / f"{name}.toml").read_text()
    spec = parse_toml(text.encode())
    written = job_toml(spec)
    assert parse_toml(written.encode()) == spec
    assert len(written.splitlines()) <= len(text.splitlines()) + 12


def test_the_whole_page_is_the_same_job_again() -> None:
    spec = parse_toml(WHOLE_PAGE.read_bytes())
    assert parse_toml(job_toml(spec).encode()) == spec


def test_defaults_are_left_out_and_units_are_written() -> None:
    tree = {
        "name": "a",
        "type": "service",
        "priority": 50,
        "groups": {
            "b": {
                "count": 1,
                "image": "x",
                "stop_timeout": 90,
                "resources": {"cpu": 0.1, "memory": 128 << 20},
                "ports": {"http": {"target": 80, "host": 0}},
                "env": {"delay": "10", "memory": "5", "A B": 'q"\x7f\n'},
                "mounts": [{"type": "tmpfs", "target": "/t", "read_only": False}],
            }
        },
    }
    with pytest.raises(Exception, match="is not a name for a variable"):
        parse_tree(tree)
    env = tree["groups"]["b"]["env"]  # type: ignore[index]
    env["A-B.c"] = env.pop("A B")
    spec = parse_tree(tree)
    assert job_toml(spec) == (
        'name = "a"\ntype = "service"\n\n[groups.b]\nimage = "x"\nstop_timeout = "90s"\n'
        '[groups.b.env]\ndelay = "10"\nmemory = "5"\n"A-B.c" = "q\\"\\u007f\\n"\n'
        '[groups.b.resources]\nmemory = "128MiB"\n[groups.b.ports.http]\ntarget = 80\n'
        '[[groups.b.mounts]]\ntype = "tmpfs"\ntarget = "/t"\n'
    )
    assert parse_toml(job_toml(spec).encode()) == spec
