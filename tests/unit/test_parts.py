"""The suite in parts: nothing that fails in a part is lost on the way to whoever looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import parts

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs parts of one file each, given by their text; its code and what was printed."""
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q -p no:cacheprovider\n")

    def ran(**texts: str) -> tuple[int, str]:
        for name, text in texts.items():
            (tmp_path / f"test_{name}.py").write_text(text)
        code = parts.run({name: [f"test_{name}.py"] for name in texts})
        return code, capsys.readouterr().out

    return ran


def test_all_is_well(run: Run) -> None:
    code, told = run(one="def test_a(): pass", two="def test_b(): pass\ndef test_c(): pass")
    assert code == 0
    assert [line.partition(" in ")[0].split() for line in told.splitlines()[-2:]] == [
        ["one", "passed:", "1", "passed"],
        ["two", "passed:", "2", "passed"],
    ]


@pytest.mark.parametrize(
    ("text", "told_of_it"),
    [
        ("def test_b(): assert 1 == 2", "scripts/test 'test_two.py::test_b'"),
        ("import no_such_module", "scripts/test 'test_two.py'"),
        ("", "two FAILED (exit 5)"),  # no test ran
        ("import os\ndef test_b(): os._exit(3)", "two FAILED (exit 3)"),
    ],
)
def test_one_failure_is_a_failure_and_told_last(run: Run, text: str, told_of_it: str) -> None:
    code, told = run(one="def test_a(): pass", two=text, three="def test_c(): pass")
    assert code == 1
    assert told_of_it in "\n".join(told.splitlines()[-6:])
    assert told.count("1 passed") >= 2, "the others ran to their end"


def test_parts_have_ports_of_their_own(run: Run) -> None:
    text = "import os\ndef test_a(): assert os.environ['CUBE_TEST_PORTS'] == '{}'"
    code, told = run(one=text.format("10240-15119"), two=text.format("15120-19999"))
    assert code == 0, told


def test_every_test_is_in_one_part() -> None:
    paths = [path for paths in parts.PARTS.values() for path in paths]
    assert all((parts.ROOT / path).exists() for path in paths)
    assert len(set(paths)) == len(paths)
    assert parts.PARTS["rest"] == ["tests"]
    found = parts.arguments({"a": ["tests/x"], "b": ["tests/x/one.py", "tests/y"], "c": ["tests"]})
    assert found == {
        "a": ["tests/x", "--ignore=tests/x/one.py"],
        "b": ["tests/x/one.py", "tests/y"],
        "c": ["tests", "--ignore=tests/x", "--ignore=tests/x/one.py", "--ignore=tests/y"],
    }
