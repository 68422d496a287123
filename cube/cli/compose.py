"""Compose files: read here, with the files beside them and the environment, and sent as a job."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cube.cli.exits import USAGE, CommandError
from cube.cli.output import note

if TYPE_CHECKING:
    from cube.model.spec import JobSpec


def read_compose(named: Sequence[tuple[str, bytes]], profiles: tuple[str, ...] = ()) -> JobSpec:
    """The job of compose files, each merged over those before it; what it does not do is told on stderr.
    Paths in all of them are relative to the first one's directory. Raises CommandError."""
    from cube.model.compose.assemble import ComposeFile
    from cube.model.compose.project import FILES_MAX, Composed, parse_project
    from cube.model.compose.section import Surroundings
    from cube.model.errors import BadConfig

    first = named[0][0]
    directory = (Path.cwd() if first == "-" else Path(first).resolve().parent).absolute()
    composed = tuple(
        ComposeFile(
            data, file, "" if file == "-" else os.path.relpath(Path(file).resolve(), directory)
        )
        for file, data in named
    )
    files: dict[str, bytes | None] = {}
    try:
        for _ in range(FILES_MAX + 2):  # .env, then in each round at least one file more
            around = Surroundings(
                directory=str(directory),
                home=str(Path.home()),
                project=directory.name,
                variables=dict(os.environ),
                files=files,
                profiles=profiles,
            )
            found = parse_project(composed, around)
            if isinstance(found, Composed):
                for sentence in found.notes:
                    note(f"warning: {sentence}")
                return found.spec
            for path in found.paths:
                files[path] = _read(directory, path)
    except BadConfig as bad:
        problems = "\n".join(str(error) for error in bad.errors)
        over = "".join(f", and over it {file}," for file, _ in named[1:])
        raise CommandError(USAGE, f"{first}{over} cannot be run as it is", problems, HINT) from None
    raise AssertionError(f"{first} names files without end")


HINT = "docs/compose.md lists every key and what becomes of it"


def _read(directory: Path, path: str) -> bytes | None:
    """None: it is not there. One byte more than what is accepted tells the reader that it is too long."""
    from cube.model.treetext import TEXT_BYTES_MAX

    try:
        with (directory / Path(path).expanduser()).open("rb") as opened:
            return opened.read(TEXT_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandError(USAGE, f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RuntimeError) as error:  # a NUL in it; ~ANN, and there is no Ann
        raise CommandError(USAGE, f"cannot read {path!r}: {error}") from None


def compose_json(named: Sequence[tuple[str, bytes]], profiles: tuple[str, ...] = ()) -> bytes:
    """The job of compose files, as the API takes jobs."""
    from cube.model.jobrender import render

    return json.dumps(render(read_compose(named, profiles))).encode()
