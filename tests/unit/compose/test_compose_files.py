"""Whole compose files, and the job file that each becomes: NAME.yaml beside NAME.toml, its warnings on
top. `python -m tests.unit.compose.test_compose_files` writes the latter anew, to be read in the diff."""

import importlib.resources
from pathlib import Path

import pytest

from cube.model.compose.project import Composed, parse_compose
from cube.model.compose.section import Surroundings
from cube.model.jobfile import parse_toml
from cube.model.jobtoml import job_toml
from tests.unit.compose.composing import around

FILES = Path(__file__).parent / "files"
EXAMPLE = Path(str(importlib.resources.files("cube"))) / "examples" / "compose.yaml"
NAMES = sorted(path.stem for path in FILES.glob("*.yaml"))
BESIDE = {
    "./base.env": "# comment\nexport A=1\nB='single $A # no comment'\nC=\"two\\nlines $A\"  # comment\n"
    "D: yaml style\nE=un quoted # comment\nWINS=file\nF=${A}${B:+x}\nFROM_SHELL\n",
    "secret.env": "G=\"$raw # kept\"\n",
    "./labels": "com.example.a=b\nwins=file\n",
    ".env": "FROM_DOTENV=dotenv\nSET=loses\n",
}  # fmt: skip
AROUND = around({"SET": "yes", "EMPTY": "", "FROM_SHELL": "shell"}, BESIDE)


def made(path: Path, where: Surroundings = AROUND) -> Composed:
    found = parse_compose(path.read_bytes(), where)
    while not isinstance(found, Composed):
        files = {**where.files, **dict.fromkeys(found.paths)}
        where = Surroundings(where.directory, where.home, where.project, where.variables, files)
        found = parse_compose(path.read_bytes(), where)
    return found


def written(found: Composed) -> str:
    notes = "".join(f"# warning: {note}\n" for note in found.notes)
    return f"{notes}{job_toml(found.spec)}"


@pytest.mark.parametrize("name", NAMES)
def test_a_compose_file_becomes_this_job_file(name: str) -> None:
    found = made(FILES / f"{name}.yaml")
    expected = (FILES / f"{name}.toml").read_text()
    assert written(found) == expected
    assert parse_toml(expected.encode()) == found.spec


def test_there_are_at_least_ten() -> None:
    assert len(NAMES) >= 10


def test_the_example_is_a_job_through_the_api_too() -> None:
    found = parse_compose(EXAMPLE.read_bytes())
    assert isinstance(found, Composed)
    assert found == made(EXAMPLE)
    assert set(found.spec.groups) == {"db", "web"}
    assert found.spec.groups["web"].depends_on == ("db",)
    assert found.spec.groups["web"].env == {"GREETING": "hello"}
    assert found.spec.groups["db"].mounts[0].source == "blog_blog-db"
    assert found.spec.groups["db"].resources.memory_bytes == 32 << 20


if __name__ == "__main__":
    for one in NAMES:
        (FILES / f"{one}.toml").write_text(written(made(FILES / f"{one}.yaml")))
