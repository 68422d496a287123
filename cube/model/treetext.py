"""Text to trees: TOML and JSON bytes become plain dicts and lists, or BadConfig; never anything else.

The parsers below were written for files that one trusts. What reaches us comes from the network, so
size, nesting and digits are bounded here, before or around the parser.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import NoReturn

from cube.model.errors import BadConfig, ConfigError

FILE = "(file)"  # the path of an error that concerns the file as a whole
TEXT_BYTES_MAX = 512 * 1024  # twice what a spec may be once encoded: comments and layout are free
KEY_PARTS_MAX = 32  # a.b.c…: tomllib takes quadratic time in them (8,000 parts: 0.6 s)
INT_DIGITS_MAX = 40  # every quantity fits in 19; Python refuses to read or print 4,300
PROBLEM_CHARS_MAX = 300

# A TOML string or comment, also one that never ends. What is left once these are gone is structure.
_TOML_OPAQUE = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"""|\Z)'
    r"|'''.*?(?:'''|\Z)"
    r'|"(?:\\.|[^"\\\n])*(?:"|$|\Z)'
    r"|'[^'\n]*(?:'|$|\Z)"
    r"|#[^\n]*",
    re.DOTALL | re.MULTILINE,
)
_KEY_BREAK = re.compile(r"[\n=,{}]")
_POSITION = re.compile(r" \(at line \d+, column \d+\)$")
_AT_END = "(at end of document)"


class RepeatedKeys(dict[str, object]):
    """A JSON object that names a key more than once: `repeated` says which."""

    repeated: tuple[str, ...] = ()


def toml_tree(data: bytes) -> dict[str, object]:
    """The tree of a TOML document. Raises BadConfig that names line and column."""
    text = decoded(data)
    structure = _TOML_OPAQUE.sub("_", text)
    if max(piece.count(".") for piece in _KEY_BREAK.split(structure)) >= KEY_PARTS_MAX:
        _refuse(f"a dotted key has more than {KEY_PARTS_MAX} parts")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        _refuse(f"is not TOML: {_bounded(_located(str(error), text))}")
    except RecursionError:
        _refuse("is not a job or a configuration: lists or tables are nested too deeply")
    except ValueError:  # an integer of more than 4,300 digits, or a date that does not exist
        _refuse("is not TOML: a number or a date in it is out of range")


def json_tree(data: bytes) -> object:
    """The tree of a JSON document. Raises BadConfig that names line and column.

    Objects that repeat a key come back as RepeatedKeys, NaN and infinities as floats: whoever
    reads the tree knows the path and refuses them there.
    """
    text = decoded(data)
    try:
        tree: object = json.loads(text, object_pairs_hook=_object, parse_int=limited_int)
    except json.JSONDecodeError as error:
        where = f"(at line {error.lineno}, column {error.colno})"
        _refuse(f"is not JSON: {_bounded(error.msg)} {where}")
    except RecursionError:
        _refuse("is not a job: lists or objects are nested too deeply")
    return tree


def decoded(data: bytes) -> str:
    """The text of a file. Raises BadConfig: too long, or not UTF-8."""
    if len(data) > TEXT_BYTES_MAX:
        _refuse(f"is {len(data)} bytes long; at most {TEXT_BYTES_MAX} are read")
    try:
        return data.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        _refuse(f"is not UTF-8 text (at line {line}, column {column})")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    tree = dict(pairs)
    if len(tree) == len(pairs):
        return tree
    marked = RepeatedKeys(tree)
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for key, _ in pairs:
        if key in seen:
            repeated[key] = None
        seen.add(key)
    marked.repeated = tuple(repeated)
    return marked


def limited_int(digits: str) -> int:
    """The number; one of very many digits as one that is far out of every range."""
    if len(digits) > INT_DIGITS_MAX:  # still an int of the right sign, and out of every range
        digits = ("-" if digits.startswith("-") else "") + "9" * INT_DIGITS_MAX
    return int(digits)


def _located(message: str, text: str) -> str:
    """tomllib says `end of document` where its reader wants a line to jump to."""
    line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    return message.replace(_AT_END, f"(at line {line}, column {column})")


def _bounded(message: str) -> str:
    """The message, short, with the position at its end kept. Parsers quote what they read."""
    if len(message) <= PROBLEM_CHARS_MAX:
        return message
    position = _POSITION.search(message)
    return message[:PROBLEM_CHARS_MAX] + "…" + (position[0] if position else "")


def _refuse(problem: str) -> NoReturn:
    raise BadConfig([ConfigError(FILE, problem)])
