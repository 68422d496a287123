"""`.env`, env_file and label_file: lines of NAME=VALUE, as the compose specification has them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cube.model.compose.interpolate import Interpolation
from cube.model.errors import BadConfig
from cube.model.treeread import Errors, shown
from cube.model.treetext import decoded

FILE_BYTES_MAX = 64 * 1024  # of one such file: as much as a group's environment may hold
NAMES_MAX = 4_096

_ASSIGNMENT = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*(?:([=:])[ \t]*(.*))?")
_COMMENT = re.compile(r"(?:^|[ \t])#.*")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_INSIDE = {"'": re.compile(r"[^']*"), '"': re.compile(r'(?:[^"\\]|\\.)*')}
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def read_dotenv(
    path: str,
    data: bytes,
    variables: Mapping[str, str] | None,
    errors: Errors,
    *,
    is_raw: bool = False,
) -> dict[str, str | None]:
    """NAME to value; None: only its name is there, so the value is the environment's.

    Values may name `variables` and what stands above them, unless they are in single quotes. `is_raw`:
    each value is the rest of its line (format: raw). Errors are at `path:line`.
    """
    found: dict[str, str | None] = {}
    if len(data) > FILE_BYTES_MAX:
        errors.add(path, f"is {len(data)} bytes long; at most {FILE_BYTES_MAX} are read")
        return found
    try:
        lines = decoded(data).splitlines()
    except BadConfig as bad:
        errors.add(path, bad.errors[0].problem)
        return found
    known = dict(variables or {})
    number = 0
    while number < len(lines):
        line, here = lines[number].strip(), f"{path}:{number + 1}"
        number += 1
        if not line or line.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match is None:
            errors.add(here, f"{shown(line)} is not NAME=VALUE")
            continue
        name, sign, text = match[1], match[2], match[3] or ""
        if sign is None:
            found[name] = known.get(name)
            continue
        if text[:1] in ("'", '"') and not is_raw:
            value, number = _quoted(lines, number, text, here, errors)
            literal = text[0] == "'"
        else:
            value, literal = (text if is_raw else _COMMENT.sub("", text).rstrip()), is_raw
        if not literal and "$" in value:
            value = Interpolation(errors, known).text(here, value)
        found[name] = known[name] = value
        if len(found) > NAMES_MAX:
            errors.add(path, f"has more than {NAMES_MAX} names")
            break
    return found


def _quoted(lines: list[str], number: int, text: str, here: str, errors: Errors) -> tuple[str, int]:
    """The text between quotes, which may go on over lines, and the number of the line after it."""
    quote, line = text[0], text[1:]
    inner: list[str] = []
    while True:
        body = _INSIDE[quote].match(line)
        assert body is not None
        inner.append(body[0])
        if line.startswith(quote, body.end()):
            break
        if number >= len(lines):
            errors.add(here, f"has a {quote} without its end")
            return "", number
        inner[-1] = line  # a backslash at its end belongs to it
        line, number = lines[number], number + 1
    rest = line[body.end() + 1 :].strip()
    if rest and not rest.startswith("#"):
        errors.add(here, f"goes on behind its closing {quote}")
    value = "\n".join(inner)
    return (value if quote == "'" else _ESCAPE.sub(_unescaped, value)), number


def _unescaped(match: re.Match[str]) -> str:
    letter = match[1]
    if letter == "$":
        return "$$"  # interpolation comes next
    return _ESCAPED.get(letter, letter if letter in "\"\\'" else match[0])
