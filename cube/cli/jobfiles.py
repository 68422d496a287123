"""Which files a command is given as a job, and what is in them: `cube run`, `cube plan`, `cube job`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cube.cli.exits import NOT_FOUND, USAGE, CommandError
from cube.cli.output import note

if TYPE_CHECKING:
    from cube.model.spec import JobSpec

JOB_BYTES_MAX = 1 << 20  # the API's own bound
FILES_MAX = 16  # merged over each other
FORMATS = {"toml": "application/toml", "json": "application/json", "compose": "application/yaml"}
_BY_SUFFIX = {".toml": "toml", ".json": "json", ".yaml": "compose", ".yml": "compose"}
# As Docker Compose looks for them where no file is named; here they are only told.
_COMPOSE_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")


class JobFiles(NamedTuple):
    """One file, or compose files of which each is merged over those before it."""

    names: tuple[str, ...]
    format_: str | None = None
    profiles: tuple[str, ...] = ()

    def words(self) -> str:
        """As they are written on a command line."""
        options = ["--format", self.format_] if self.format_ else []
        for profile in self.profiles:
            options += ["--profile", profile]
        if len(self.names) == 1:
            return shlex.join([*options, self.names[0]])
        for name in self.names:
            options += ["-f", name]
        return shlex.join(options)


def job_files(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options `filenames`, `format_` and `profiles`."""
    for option in (
        click.option("--profile", "profiles", multiple=True, metavar="NAME",
                     help="Of a compose file: services with it are not left out. May be repeated."),
        click.option("--format", "format_", type=click.Choice(list(FORMATS)), help="Of the file."),
        click.option("-f", "--filename", "filenames", multiple=True, metavar="FILE",
                     help="FILE; of several compose files, each is merged over those before it."),
    ):  # fmt: skip
        function = option(function)
    return function


def named(
    words: tuple[str, ...],
    filenames: tuple[str, ...],
    format_: str | None,
    profiles: tuple[str, ...],
    verb: str,
) -> JobFiles:
    """What FILE and -f name together: at least one file. Raises CommandError."""
    if (words and filenames) or len(words) > 1:
        names = [*words, *filenames]
        each = " ".join(f"-f {shlex.quote(name)}" for name in names)
        raise CommandError(
            USAGE, f"one file at a time, not {' '.join(names)}",
            hint=f"cube {verb} FILE\ncube {verb} {each} (compose files, merged)",
        )  # fmt: skip
    names = [*words, *filenames]
    if not names:
        raise CommandError(USAGE, "which file?", hint=unnamed(verb) or f"cube {verb} FILE")
    if len(names) > FILES_MAX:
        raise CommandError(USAGE, f"{len(names)} files are named; at most {FILES_MAX} are merged")
    if names.count("-") > 1:
        raise CommandError(
            USAGE, "standard input can be read once", hint=f"cube {verb} -f - -f FILE"
        )
    for profile in profiles:
        if not profile.strip() or "," in profile:
            hint = "--profile a --profile b"
            raise CommandError(USAGE, f"--profile names one profile, not {profile!r}", hint=hint)
    return JobFiles(tuple(names), format_, profiles)


def unnamed(verb: str) -> str:
    """The command for the compose files of this directory, as Docker Compose would take them; ""."""
    for name in _COMPOSE_NAMES:
        if Path(name).is_file():
            stem, _, suffix = name.rpartition(".")
            over = [f"{stem}.override.{one}" for one in (suffix, "yaml", "yml")]
            found = next((one for one in over if Path(one).is_file()), None)
            return f"cube {verb} {name}" if found is None else f"cube {verb} -f {name} -f {found}"
    return ""


def read_job(files: JobFiles) -> tuple[bytes, str]:
    """The bytes of a job and their content type, compose files' as JSON. Raises CommandError."""
    found, format_ = _read(files)
    if format_ != "compose":
        return found[0][1], FORMATS[format_]
    from cube.cli.compose import compose_json

    return compose_json(found, files.profiles), FORMATS["json"]


def read_spec(files: JobFiles) -> JobSpec:
    """The job in the files; what is not honoured is told on stderr. Raises CommandError."""
    from cube.model.errors import BadConfig
    from cube.model.jobfile import parse_json, parse_toml
    from cube.model.warnings import warnings

    found, format_ = _read(files)
    if format_ == "compose":
        from cube.cli.compose import read_compose

        spec = read_compose(found, files.profiles)
    else:
        file, data = found[0]
        try:
            spec = parse_json(data) if format_ == "json" else parse_toml(data)
        except BadConfig as bad:
            problems = "\n".join(str(error) for error in bad.errors)
            raise CommandError(USAGE, f"{file} is not a valid job", problems) from None
    for warning in warnings(spec):
        note(f"warning: {warning}")
    return spec


def _read(files: JobFiles) -> tuple[list[tuple[str, bytes]], str]:
    """Name and bytes of each file, and the format of all of them."""
    found = []
    formats = {}
    for name in files.names:
        data, format_ = read_file(name, files.format_)
        found.append((name, data))
        formats[name] = format_
    for name, format_ in formats.items():
        if format_ != "compose" and len(found) > 1:
            raise CommandError(
                USAGE, f"{name} is no compose file, and only these are merged",
                hint="--format compose says that it is one",
            )  # fmt: skip
        if format_ != "compose" and files.profiles:
            raise CommandError(USAGE, f"--profile is for compose files, and {name} is none")
    return found, formats[files.names[0]]


def read_file(file: str, format_: str | None) -> tuple[bytes, str]:
    """The bytes of a file and the name of its format. Raises CommandError."""
    if file == "-":
        return sys.stdin.buffer.read(JOB_BYTES_MAX + 1), format_ or "toml"
    path = Path(file)
    try:
        with path.open("rb") as opened:
            data = opened.read(JOB_BYTES_MAX + 1)
    except FileNotFoundError:
        near = [
            found
            for pattern, mark in (("*.toml", b"[groups."), ("*compose*.y*ml", b"services:"))
            for found in sorted(path.parent.glob(pattern))
            if mark in found.read_bytes()
        ]
        hint = "\n".join(f"cube run {p}" for p in near[:5]) or "cube job init > job.toml"
        raise CommandError(NOT_FOUND, f"there is no file {file}", hint=hint) from None
    except OSError as error:
        raise CommandError(USAGE, f"cannot read {file}: {error.strerror}") from None
    if len(data) > JOB_BYTES_MAX:
        raise CommandError(USAGE, f"{file} is larger than 1 MiB: is it a job file?")
    return data, format_ or _BY_SUFFIX.get(path.suffix.lower(), "toml")
