"""House rules that no linter knows, each with what to do about it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
TEST_MODULE_LINES_MAX = 800  # tables and builders are long without being hard to read
TEST_FUNCTION_LINES_MAX = 90
DESIGN_LINES_MAX = 90  # one page

# A name of several words says what the thing is; one or two may not. `self`-explaining methods of a
# class whose docstring tells the story, and what the language or a library names, need no words.
NAME_WORDS_THAT_TELL = 2
BODY_LINES_THAT_TELL = 8  # so short a body is read faster than its docstring
CLASS_LINES_THAT_TELL = 12


def tracked(*patterns: str) -> list[Path]:
    """Files of the project, as git knows them; all files where there is no git."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return sorted(p for pattern in patterns for p in ROOT.glob(f"**/{pattern}") if p.is_file())
    return sorted(path for line in done.stdout.splitlines() if (path := ROOT / line).is_file())


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


PYTHON = tracked("*.py")
PRODUCT = [path for path in PYTHON if path.is_relative_to(ROOT / "cube")]
TEXT = [
    path
    for path in tracked(".")
    if path.suffix in {".py", ".md", ".toml", ".sh", ".js", ".html", ".css", ".yaml", ".yml", ""}
]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("name", ["ID_MAX", "PORT_MAX"])
def test_a_fact_of_the_kernel_has_one_place(name: str) -> None:
    said = re.compile(rf"^{name} = ", re.MULTILINE)
    places = [shown(path) for path in PRODUCT if said.search(path.read_text(encoding="utf-8"))]
    assert len(places) == 1, f"import it from one of them: {places}"


def test_there_is_something_to_look_at() -> None:
    assert len(PRODUCT) > 100
    assert len(TEXT) > len(PYTHON)


@pytest.mark.parametrize(
    ("paths", "lines_max"),
    [(PRODUCT, MODULE_LINES_MAX), (PYTHON, TEST_MODULE_LINES_MAX)],
    ids=["product", "all"],
)
def test_modules_are_short(paths: list[Path], lines_max: int) -> None:
    long = {
        shown(path): count
        for path in paths
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > lines_max
    }
    assert not long, f"split by what changes together; at most {lines_max} lines: {long}"


@pytest.mark.parametrize(
    ("paths", "lines_max"),
    [(PRODUCT, FUNCTION_LINES_MAX), (PYTHON, TEST_FUNCTION_LINES_MAX)],
    ids=["product", "all"],
)
def test_functions_are_short(paths: list[Path], lines_max: int) -> None:
    long = {
        f"{shown(path)}:{function.lineno} {function.name}": count
        for path in paths
        for function in functions(tree_of(path))
        if (count := (function.end_lineno or 0) - function.lineno + 1) > lines_max
    }
    assert not long, f"give a part of it a name; at most {lines_max} lines: {long}"


def needs_words(node: ast.AST) -> bool:
    """Public, and neither its name nor its body tells what it does."""
    if isinstance(node, ast.ClassDef):
        is_short = (node.end_lineno or 0) - node.lineno < CLASS_LINES_THAT_TELL
        return not (node.name.startswith("_") or is_short or is_plain(node))
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    if node.name.startswith("_"):
        return False
    lines = (node.end_lineno or 0) - node.body[0].lineno + 1
    words = len(node.name.split("_"))
    return lines > BODY_LINES_THAT_TELL and words < NAME_WORDS_THAT_TELL


def is_plain(node: ast.ClassDef) -> bool:
    """Fields or members only: their names, types and comments are its description."""
    return all(isinstance(part, ast.AnnAssign | ast.Assign | ast.Pass) for part in node.body)


def undocumented(path: Path) -> Iterator[str]:
    tree = tree_of(path)
    has_words = ast.get_docstring(tree) is not None
    top = [
        n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    public = [node for node in top if not node.name.startswith("_")]
    for node in public:
        # A module of one public thing may be described at the module's head.
        if (
            needs_words(node)
            and not ast.get_docstring(node)
            and not (has_words and len(public) == 1)
        ):
            yield f"{shown(path)}:{node.lineno} {node.name}"


def test_what_is_public_is_described() -> None:
    found = [line for path in PRODUCT for line in undocumented(path)]
    assert not found, f"say what is true afterwards and what the signature cannot say: {found}"


@pytest.mark.parametrize(
    ("pattern", "instead"),
    [
        (r"\bFIX" + r"ME\b", "mend it, or open an issue and name it"),
        (r"\bXX" + r"X\b", "mend it, or open an issue and name it"),
        (r"\bTO" + r"DO\b(?!\(\w)", "write TO" + "DO(name): or do it"),
    ],
)
def test_nothing_is_left_for_nobody(pattern: str, instead: str) -> None:
    found = [
        f"{shown(path)}:{number}"
        for path in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"{instead}: {found}"


def test_no_file_names_the_machine_it_was_written_on() -> None:
    workplace = re.compile(r"(?<![\w.~}-])/(?:work|root)/")
    found = [
        f"{shown(path)}:{number}"
        for path in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if workplace.search(line)
    ]
    assert not found, f"make the path relative to the project, or an argument: {found}"


def test_every_package_has_its_design_on_a_page() -> None:
    packages = {
        path.parent
        for path in PRODUCT
        if path.name == "__init__.py" and path.parent.parent == ROOT / "cube"
    }
    assert len(packages) >= 13
    problems: list[str] = []
    for package in sorted(packages):
        design = package / "DESIGN.md"
        if not design.is_file():
            problems.append(f"{shown(design)} is missing")
            continue
        text = design.read_text(encoding="utf-8")
        if len(text.splitlines()) > DESIGN_LINES_MAX:
            problems.append(f"{shown(design)} is longer than a page")
        ends = re.split(r"^(?:#+ )?(?=Decisions, and what they cost)", text, flags=re.MULTILINE)
        if len(ends) != 2:
            problems.append(f"{shown(design)} has no (one) part 'Decisions, and what they cost'")
        elif re.search(r"^#+ ", ends[1], flags=re.MULTILINE):
            problems.append(f"{shown(design)} goes on after 'Decisions, and what they cost'")
    assert not problems, problems


def prints(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ):
            yield f"{shown(path)}:{node.lineno}"


def test_nothing_prints() -> None:
    found = [line for path in PRODUCT for line in prints(path)]
    assert not found, f"use cube.cli.output, or logging on floors 4 to 7: {found}"


def test_test_files_have_names_of_their_own() -> None:
    names: dict[str, list[str]] = {}
    for path in PYTHON:
        if path.name.startswith("test_"):
            names.setdefault(path.name, []).append(shown(path))
    doubled = {name: where for name, where in names.items() if len(where) > 1}
    assert not doubled, f"name each after what it tests: {doubled}"
