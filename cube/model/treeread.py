"""Reading a tree against a schema that is the reading itself, and noting every error on the way.

A Table wraps one dict. Each read names a key, so that close() knows every key there is and can say
of an unknown one what was probably meant. A read that fails notes an error and answers the default:
the caller goes on, and asks ok() before it relates two values, so that one slip is one error.
"""

from __future__ import annotations

import difflib
import enum
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from cube.model import units
from cube.model.errors import BadConfig, ConfigError
from cube.model.treetext import FILE, RepeatedKeys

ERRORS_MAX = 200  # of one file: the answer to a hostile file stays small
INTEGER_MAX = (1 << 63) - 1  # what the codec and every engine can carry
LINE_CHARS_MAX = 4096  # a text, unless the reader says otherwise
KEY_CHARS_SHOWN = 80
VALUE_CHARS_SHOWN = 40

E = TypeVar("E", bound=enum.StrEnum)

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNPRINTABLE = re.compile(r"[\x00\ud800-\udfff]")  # what no file, argv or environment can hold


class Errors:
    """Every error of one file, at most ERRORS_MAX and a count of the others."""

    def __init__(self) -> None:
        self.found: list[ConfigError] = []
        self.more = 0

    def add(self, path: str, problem: str, hint: str = "") -> None:
        if len(self.found) < ERRORS_MAX:
            self.found.append(ConfigError(path or FILE, problem, hint))
        else:
            self.more += 1

    @property
    def full(self) -> bool:
        return len(self.found) >= ERRORS_MAX

    def raise_if_any(self) -> None:
        """Raises BadConfig with every error so far."""
        if self.more:
            self.found.append(ConfigError(FILE, f"and {self.more} more errors"))
        if self.found:
            raise BadConfig(self.found)


def join(path: str, key: str) -> str:
    """`groups.web` and `count` give `groups.web.count`; a key that is not bare is quoted."""
    if not _BARE_KEY.fullmatch(key):
        key = shown(key, KEY_CHARS_SHOWN)
    elif len(key) > KEY_CHARS_SHOWN:
        key = key[:KEY_CHARS_SHOWN] + "…"
    return f"{path}.{key}" if path else key


def shown(value: object, chars: int = VALUE_CHARS_SHOWN) -> str:
    """A value as an error message may quote it: one line, bounded, for any value at all."""
    if isinstance(value, str):
        cut = value[:chars] + ("…" if len(value) > chars else "")
        return '"' + _CONTROL.sub("\ufffd", cut).replace('"', '\\"') + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) <= INTEGER_MAX else "a number that large"
    if isinstance(value, float):
        return repr(value)
    return kind(value)


def kind(value: object) -> str:
    """What a person calls the type of this value."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    return "nothing" if value is None else "a date or a time"


def text_problem(value: str, *, chars_max: int = LINE_CHARS_MAX, lines: bool = False) -> str:
    """Why this text cannot be taken, or "". `lines` allows line breaks, tabs and the like."""
    if len(value) > chars_max:
        return f"is {len(value)} characters long; at most {chars_max} are accepted"
    if (_UNPRINTABLE if lines else _CONTROL).search(value):
        return "contains a NUL character" if lines else "contains a control character"
    return ""


def as_text(value: object) -> str | None:
    """Text as it is; numbers and booleans as TOML writes them. None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) <= INTEGER_MAX:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    return None


class Table:
    """One table of the tree. `tree` that is not a table is an error, and reads as an empty one."""

    def __init__(self, errors: Errors, path: str, tree: object) -> None:
        self.errors = errors
        self.path = path
        self._known: dict[str, None] = {}
        self._failed: set[str] = set()
        self._tree: Mapping[object, object] = {}
        if isinstance(tree, dict):
            self._tree = tree
        else:
            errors.add(path, f"must be a table, not {kind(tree)}")
        if isinstance(tree, RepeatedKeys):
            for key in tree.repeated:
                errors.add(self.at(key), "is given more than once")

    @property
    def is_empty(self) -> bool:
        return not self._tree

    # -- about keys ---------------------------------------------------------------------------

    def at(self, key: str) -> str:
        """The path of a key of this table."""
        return join(self.path, key)

    def has(self, key: str) -> bool:
        """True when the key is there. JSON's null counts as not there."""
        self._known[key] = None
        return self._tree.get(key) is not None

    def ok(self, *keys: str) -> bool:
        """True when none of these keys has an error, so that relating them makes sense."""
        return self._failed.isdisjoint(keys)

    def error(self, key: str, problem: str, hint: str = "") -> None:
        self._known[key] = None
        self._failed.add(key)
        self.errors.add(self.at(key), problem, hint)

    def close(self, synonyms: Mapping[str, str] | None = None) -> None:
        """Notes every key that nobody asked for. `synonyms` are what other tools call a key."""
        known = list(self._known)
        for key in self._tree:
            if isinstance(key, str) and key in self._known:
                continue
            if self.errors.full:
                self.errors.more += 1
                continue
            if not isinstance(key, str):
                self.errors.add(self.path, f"has a key that is {kind(key)}; keys are text")
                continue
            self.errors.add(self.at(key), "unknown key", _meant(key, known, synonyms or {}))

    # -- scalars ------------------------------------------------------------------------------

    def raw(self, key: str) -> object:
        """The value as it stands, or None when it is not there."""
        self._known[key] = None
        return self._tree.get(key)

    def text(
        self,
        key: str,
        default: str = "",
        *,
        required: bool = False,
        pattern: re.Pattern[str] | None = None,
        accepted: str = "",
        chars_max: int = LINE_CHARS_MAX,
    ) -> str:
        """A single line of text that matches `pattern`; `accepted` says in words what that is."""
        value = self.raw(key)
        if value is None:
            if required:
                self.error(key, "is required", accepted)
            return default
        if not isinstance(value, str):
            self.error(key, f"must be text, not {kind(value)}", accepted)
            return default
        problem = text_problem(value, chars_max=chars_max)
        if not problem and required and not value:
            problem = "must not be empty"
        if not problem and pattern is not None and not pattern.fullmatch(value):
            problem = f"{shown(value)} is not accepted"
        if problem:
            self.error(key, problem, accepted)
            return default
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self.raw(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.error(key, f"must be true or false, not {kind(value)}")
        return default

    def integer(self, key: str, default: int, lowest: int, highest: int) -> int:
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            number = isinstance(value, float)
            self.error(
                key, f"must be a whole number, not {shown(value) if number else kind(value)}"
            )
        elif not lowest <= value <= highest:
            self.error(key, f"must be between {lowest} and {highest}, not {shown(value)}")
        else:
            return value
        return default

    def choice(
        self, key: str, values: type[E], default: E, *, required: bool = False, but: str = ""
    ) -> E:
        """One of an enumeration's texts, except `but`."""
        value = self.raw(key)
        if value is None and not required:
            return default
        words = [one.value for one in values if one.value != but]
        accepted = f"accepted: {', '.join(words)}"
        if value is None:
            self.error(key, "is required", accepted)
        elif not isinstance(value, str):
            self.error(key, f"must be text, not {kind(value)}", accepted)
        elif value not in words:
            self.error(key, f"{shown(value)} is not accepted", close_word(value, words) or accepted)
        else:
            return values(value)
        return default

    # -- quantities ---------------------------------------------------------------------------

    def duration_ms(self, key: str, default_ms: int, lowest_ms: int = 0) -> int:
        """`"10s"` or seconds, as milliseconds."""
        value = self._quantity(key, units.parse_duration_ms, default_ms)
        if self.ok(key) and self.has(key) and value < lowest_ms:
            self.error(key, f"must be at least {units.format_duration(lowest_ms)}")
            return default_ms
        return value

    def size_bytes(self, key: str, default_bytes: int) -> int:
        """`"64MiB"` or bytes."""
        return self._quantity(key, units.parse_size_bytes, default_bytes)

    def cpu_milli(self, key: str, default_milli: int) -> int:
        """Cores, as millicores."""
        return self._quantity(key, units.parse_cpu_milli, default_milli)

    def _quantity(self, key: str, parse: Callable[[object], int], default: int) -> int:
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, int) and abs(value) > INTEGER_MAX:  # no float holds 10**400
            self.error(key, "is a number far out of range")
            return default
        if isinstance(value, str) and (problem := text_problem(value)):
            self.error(key, problem)
            return default
        try:
            return parse(value)
        except ValueError as error:
            self.error(key, str(error))
            return default

    # -- nested -------------------------------------------------------------------------------

    def items(self, key: str, items_max: int) -> list[tuple[str, object]]:
        """The list's members, each with its path. No list, an empty list: none."""
        value = self.raw(key)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            self.error(key, f"must be a list, not {kind(value)}")
            return []
        if len(value) > items_max:
            self.error(key, f"has {len(value)} members; at most {items_max} are accepted")
            return []
        return [(f"{self.at(key)}[{index}]", item) for index, item in enumerate(value)]

    def texts(
        self,
        key: str,
        items_max: int,
        *,
        lines: bool = False,
        bytes_max: int = 64 * 1024,
        pattern: re.Pattern[str] | None = None,
        accepted: str = "",
    ) -> tuple[str, ...]:
        """A list of texts, `bytes_max` in all. `lines` allows line breaks in them."""
        if isinstance(self._tree.get(key), str):
            self._known[key] = None
            self.error(key, "must be a list of texts, not text", 'write ["…", "…"]')
            return ()
        words: list[str] = []
        total = 0
        for path, item in self.items(key, items_max):
            if not isinstance(item, str):
                problem = f"must be text, not {kind(item)}"
            else:
                problem = text_problem(item, chars_max=bytes_max, lines=lines)
                if not problem and pattern is not None and not pattern.fullmatch(item):
                    problem = f"{shown(item)} is not accepted"
            if problem:
                self._failed.add(key)
                self.errors.add(path, problem, accepted)
            elif isinstance(item, str):
                words.append(item)
                total += len(item.encode())
        if total > bytes_max:
            self.error(key, f"is {total} bytes long in all; at most {bytes_max} are accepted")
        return tuple(words) if self.ok(key) else ()

    def table(self, key: str) -> Table:
        """The table under this key; an empty one when it is not there."""
        value = self.raw(key)
        inner = Table(self.errors, self.at(key), {} if value is None else value)
        if value is not None and not isinstance(value, dict):
            self._failed.add(key)
        return inner

    def tables(self, key: str, items_max: int) -> list[Table]:
        """A list of tables, as `[[…]]` writes it."""
        if isinstance(self._tree.get(key), dict):
            self._known[key] = None
            self.error(key, "must be a list of tables, not a table", "write [[…]] in TOML")
            return []
        return [Table(self.errors, path, item) for path, item in self.items(key, items_max)]

    def entries(self, items_max: int, what: str) -> Iterator[tuple[str, object]]:
        """Every key of this table with its value, for tables whose keys are the user's own names."""
        if len(self._tree) > items_max:
            self.errors.add(
                self.path, f"has {len(self._tree)} {what}; at most {items_max} are accepted"
            )
            for key in self._tree:
                if isinstance(key, str):
                    self._known[key] = None
            return
        for key, value in list(self._tree.items()):
            if isinstance(key, str):
                self._known[key] = None
                yield key, value
        self.close()


def _meant(key: str, known: list[str], synonyms: Mapping[str, str]) -> str:
    if key in synonyms:
        return f"did you mean `{synonyms[key]}`?"
    if near := close_word(key, known):
        return near
    return f"accepted: {', '.join(known)}" if known else ""


def close_word(word: str, words: list[str]) -> str:
    if len(word) < 3:  # `=` is as near to `>=` as to `==`
        return ""
    near = difflib.get_close_matches(word[:KEY_CHARS_SHOWN].lower(), words, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else ""
