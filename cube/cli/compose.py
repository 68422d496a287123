"""Compose files: read here, with the files beside them and the environment, and sent as a job."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cube.cli.exits import USAGE, CommandError
from cube.cli.output import note

if TYPE_CHECKING:
    from cube.model.spec import JobSpec

ROUNDS_MAX = 3  # .env, then what the file names


def read_compose(file: str, data: bytes) -> JobSpec:
    """The job of a compose file; what it does not do is told on stderr. Raises CommandError."""
    from cube.model.compose.project import Composed, parse_compose
    from cube.model.compose.section import Surroundings
    from cube.model.errors import BadConfig

    directory = (Path.cwd() if file == "-" else Path(file).resolve().parent).absolute()
    files: dict[str, bytes | None] = {}
    try:
        for _ in range(ROUNDS_MAX):
            around = Surroundings(
                directory=str(directory),
                home=str(Path.home()),
                project=directory.name,
                variables=dict(os.environ),
                files=files,
            )
            found = parse_compose(data, around)
            if isinstance(found, Composed):
                for sentence in found.notes:
                    note(f"warning: {sentence}")
                return found.spec
            for path in found.paths:
                files[path] = _read(directory / Path(path).expanduser())
    except BadConfig as bad:
        problems = "\n".join(str(error) for error in bad.errors)
        raise CommandError(USAGE, f"{file} cannot be run as it is", problems, HINT) from None
    raise AssertionError(f"{file} names files without end")


HINT = "docs/compose.md lists every key and what becomes of it"


def _read(path: Path) -> bytes | None:
    """None: it is not there. One byte more than what is accepted tells the reader that it is too long."""
    from cube.model.compose.dotenv import FILE_BYTES_MAX

    try:
        with path.open("rb") as opened:
            return opened.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandError(USAGE, f"cannot read {path}: {error.strerror}") from None


def compose_json(file: str, data: bytes) -> bytes:
    """The job of a compose file, as the API takes jobs."""
    from cube.model.jobrender import render

    return json.dumps(render(read_compose(file, data))).encode()
