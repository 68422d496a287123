"""What the README says exists."""

from __future__ import annotations

import re
from pathlib import Path

import click

from cube.cli import root
from cube.cli.jobfiles import JobFiles, read_job

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    """The words of each `cube …` line and span, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`(cube [^`]+)`", README)
    return [
        text.partition("#")[0].split()[1:] for text in (*lines, *spans) if text.startswith("cube ")
    ]


def test_every_command_of_the_readme_exists_with_its_options() -> None:
    assert len(commands()) > 10
    tree = root.make_root()
    for words in commands():
        while words[0].startswith("-"):  # a global option and its value
            words = words[2:]
        if words[0] in root.LATER:
            continue
        command = tree.get_command(None, words[0])  # type: ignore[arg-type]
        assert command is not None, words
        rest = words[1:]
        while isinstance(command, click.Group):
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        for word in rest:
            if word == "--":
                break
            if word.startswith("--"):
                assert word in known, words


def test_every_file_of_the_readme_exists() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in path:
            assert (ROOT / path).exists(), path
    for path in re.findall(r"\b(?:scripts|cube/examples)/[a-z.-]+\b", README):
        assert (ROOT / path).exists(), path


def test_the_examples_can_be_read_as_the_command_line_reads_them() -> None:
    for path in sorted((ROOT / "cube" / "examples").glob("*.toml")):
        data, content_type = read_job(JobFiles((str(path),)))
        assert data
        assert content_type == "application/toml"
