"""Reading a compose file's tree: each section checked against the table of keys, each value in the forms
that compose allows, and where every key of the job came from."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping

import msgspec

from cube.model import units
from cube.model.compose.keys import SECTIONS, Fate, Key
from cube.model.compose.placed import PlacedErrors
from cube.model.treeread import INTEGER_MAX, close_word, join, kind, shown

ITEMS_MAX = 512  # of a list in a compose file
TEXT_CHARS_MAX = 64 * 1024
NOTES_MAX = 200  # warnings of one file

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(us|µs|ms|s|m|h|d|w)")
_DURATION_US = {
    "us": 1, "µs": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000,
    "d": 86_400_000_000, "w": 604_800_000_000,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_SIZE_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_TRUE = frozenset({"true", "yes", "y", "on", "1"})
_FALSE = frozenset({"false", "no", "n", "off", "0"})


class Surroundings(msgspec.Struct, frozen=True):
    """What a compose file may name that is not in it. The default is that of the API: nothing.

    `directory` is the compose file's, absolute; empty: there are no files. `variables` None: there is no
    environment. `files`: what was read, None for one that is not there, by the path the file names.
    """

    directory: str = ""
    home: str = ""
    project: str = ""  # the job's name, when the file has none
    variables: Mapping[str, str] | None = None
    files: Mapping[str, bytes | None] = {}
    profiles: tuple[str, ...] = ()  # those that are active; none: COMPOSE_PROFILES says which


class Reading:
    """What reading one file has found so far."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.errors = PlacedErrors()
        self.notes: list[str] = []
        self.wanted: dict[str, None] = {}  # files that have to be read first
        self.origins: dict[str, str] = {}  # path in the job: path in the compose file
        self.job: dict[str, object] = {}

    def note(self, path: str, sentence: str) -> None:
        told = f"{self.errors.at(path)}: {sentence}"
        if len(self.notes) < NOTES_MAX and told not in self.notes:
            self.notes.append(told)

    def put(self, path: tuple[str, ...], value: object, origin: str) -> None:
        """The job has this value at this path, which the compose file says at `origin`."""
        tree = self.job
        dotted = ""
        for key in path[:-1]:
            inner = tree.setdefault(key, {})
            assert isinstance(inner, dict), path
            tree, dotted = inner, join(dotted, key)
        tree[path[-1]] = value
        self.origins[join(dotted, path[-1])] = origin

    def origin(self, path: str) -> str:
        """Where the compose file says what the job has at this path."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins and (end == len(path) or path[end] in ".["):
                return self.origins[path[:end]] + path[end:]
        return path

    def file(self, path: str, named_at: str, *, required: bool = True) -> bytes | None:
        """A file that the compose file names; None: it is not there, or has to be read first."""
        if not self.around.directory:
            self.errors.add(
                named_at, "names a file, and the API reads none", "let `cube run` read the file"
            )
            return None
        if path not in self.around.files:
            self.wanted[path] = None
            return None
        data = self.around.files[path]
        if data is None and required:
            self.errors.add(named_at, f"there is no file {shown(path)} in {self.around.directory}")
        return data


class Group:
    """The group that a service becomes, while it is being read."""

    def __init__(self, reading: Reading, name: str) -> None:
        self.reading = reading
        self.name = name

    def put(self, path: str, value: object, origin: str) -> None:
        """`path` within the group, its keys joined by dots."""
        self.reading.put(("groups", self.name, *path.split(".")), value, origin)

    def get(self, path: str) -> object:
        tree: object = self.reading.job
        for key in ("groups", self.name, *path.split(".")):
            tree = tree.get(key) if isinstance(tree, dict) else None
        return tree


class Section:
    """One section of the file. What the table of keys refuses or notes is, as soon as this is made."""

    def __init__(self, reading: Reading, path: str, name: str, tree: object) -> None:
        self.reading = reading
        self.path = path
        self._tree: dict[str, object] = {}
        if isinstance(tree, dict):
            self._tree = tree
        elif tree is not None:
            reading.errors.add(path, f"must be a map, not {kind(tree)}")
        self._check(SECTIONS[name])

    def _check(self, keys: Mapping[str, Key]) -> None:
        for name, value in self._tree.items():
            key = keys.get(name)
            if key is None:
                if not name.startswith("x-"):
                    hint = close_word(name, list(keys)) or "x-… for what only you read"
                    self.reading.errors.add(self.at(name), "unknown key", hint)
                continue
            if key.fate is Fate.HONOURED or _is_neutral(value, key.neutral):
                continue
            if key.fate is Fate.NOTED:
                self.reading.note(self.at(name), key.words)
            else:
                self.reading.errors.add(self.at(name), key.words, key.hint)

    def at(self, key: str) -> str:
        return join(self.path, key)

    def error(self, key: str, problem: str, hint: str = "") -> None:
        self.reading.errors.add(self.at(key), problem, hint)

    def has(self, key: str) -> bool:
        """True when the key is there and not null."""
        return self._tree.get(key) is not None

    def raw(self, key: str) -> object:
        return self._tree.get(key)

    # -- one value ----------------------------------------------------------------------------

    def text(self, key: str) -> str | None:
        value = self._tree.get(key)
        if value is None:
            return None
        text = as_text(value)
        if text is None:
            self.error(key, f"must be text, not {kind(value)}")
        return text

    def flag(self, key: str) -> bool | None:
        value = self._tree.get(key)
        if value is None or isinstance(value, bool):
            return value
        word = str(value).lower() if isinstance(value, str | int) else ""
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        self.error(key, f"must be true or false, not {shown(value)}")
        return None

    def whole(self, key: str) -> int | None:
        value = self._tree.get(key)
        if value is None:
            return None
        if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]{1,18}", value):
            return int(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < INTEGER_MAX:
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > INTEGER_MAX:
            self.error(key, f"must be a whole number, not {shown(value)}")
            return None
        return value

    def cores(self, key: str) -> int | None:
        """In millicores."""
        value = self._tree.get(key)
        if value is None:
            return None
        try:
            return units.parse_cpu_milli(value)
        except (ValueError, OverflowError):
            self.error(key, f"{shown(value)} is not a number of cores", 'write "0.5"')
            return None

    def duration_ms(self, key: str) -> int | None:
        value = self._tree.get(key)
        if value is None:
            return None
        ms = _duration_ms(value) if isinstance(value, str) else None
        if ms is None and value != 0:
            self.error(key, f"{shown(value)} is not a duration", "write 1m30s, 10s or 500ms")
        return ms or 0

    def size_bytes(self, key: str) -> int | None:
        value = self._tree.get(key)
        if value is None:
            return None
        found = _size_bytes(value)
        if found is None:
            self.error(key, f"{shown(value)} is not a size", "write bytes, 64m or 1gb")
        return found

    # -- several ------------------------------------------------------------------------------

    def items(self, key: str) -> list[tuple[str, object]]:
        """The list's members, each with its path."""
        value = self._tree.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.error(key, f"must be a list, not {kind(value)}")
            return []
        if len(value) > ITEMS_MAX:
            self.error(key, f"has {len(value)} members; at most {ITEMS_MAX} are accepted")
            return []
        return [(f"{self.at(key)}[{index}]", item) for index, item in enumerate(value)]

    def words(self, key: str) -> list[str] | None:
        """A text, or a list of texts."""
        value = self._tree.get(key)
        if isinstance(value, str):
            return [value]
        if value is None:
            return None
        if not isinstance(value, list):
            self.error(key, f"must be a list, not {kind(value)}")
            return None
        found = []
        for path, item in self.items(key):
            text = as_text(item)
            if text is None:
                self.reading.errors.add(path, f"must be text, not {kind(item)}")
            else:
                found.append(text)
        return found

    def argv(self, key: str) -> list[str] | None:
        """A command: a list of its words, or text that is split as a shell would."""
        value = self._tree.get(key)
        if not isinstance(value, str):
            return self.words(key)
        if len(value) > TEXT_CHARS_MAX:
            self.error(key, f"is {len(value)} characters long; at most {TEXT_CHARS_MAX} are read")
            return None
        try:
            return shlex.split(value)
        except ValueError as error:
            self.error(key, f"cannot be split into words: {error}", "write a list of words")
            return None

    def pairs(self, key: str, separators: str = "=") -> dict[str, str | None] | None:
        """A map, or a list of NAME=VALUE. None for a name without a value."""
        value = self._tree.get(key)
        if value is None:
            return None
        found: dict[str, str | None] = {}
        if isinstance(value, dict):
            if len(value) > ITEMS_MAX:
                self.error(key, f"has {len(value)} entries; at most {ITEMS_MAX} are accepted")
                return found
            for name, inner in value.items():
                found[name] = as_text(inner)
                if inner is not None and found[name] is None:
                    path = join(self.at(key), name)
                    self.reading.errors.add(path, f"must be text or a number, not {kind(inner)}")
            return found
        for path, item in self.items(key):
            if not isinstance(item, str):
                self.reading.errors.add(path, f"must be NAME=VALUE, not {kind(item)}")
                continue
            cut = min((at for one in separators if (at := item.find(one)) >= 0), default=-1)
            name, inner = (item, None) if cut < 0 else (item[:cut], item[cut + 1 :])
            found[name] = inner
        return found

    def section(self, key: str, name: str) -> Section:
        """The section under this key; an empty one when it is not there."""
        return Section(self.reading, self.at(key), name, self._tree.get(key))

    def named(self, key: str) -> Iterator[tuple[str, str, object]]:
        """The entries of a map whose keys are the user's names: path, name, value."""
        value = self._tree.get(key)
        if value is not None and not isinstance(value, dict):
            self.error(key, f"must be a map, not {kind(value)}")
        elif value is not None and len(value) > ITEMS_MAX:
            self.error(key, f"has {len(value)} entries; at most {ITEMS_MAX} are accepted")
        elif value is not None:
            for name, inner in value.items():
                yield join(self.at(key), name), name, inner


def as_text(value: object) -> str | None:
    """A scalar as Compose makes text of it: 1.10 is a number there, and becomes 1.1."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) <= INTEGER_MAX else None
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
    return None


def _duration_ms(text: str) -> int | None:
    total_us, position = 0.0, 0
    if not 0 < len(text) <= units.TEXT_CHARS_MAX:
        return None
    for part in _DURATION_PART.finditer(text):
        if part.start() != position:
            return None
        total_us += float(part[1]) * _DURATION_US[part[2]]
        position = part.end()
    if position != len(text):
        return 0 if text == "0" else None
    ms = round(total_us / 1000)
    return ms if ms <= units.DURATION_MS_MAX else None


def _size_bytes(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value <= units.SIZE_BYTES_MAX else None
    if not isinstance(value, str) or len(value) > units.TEXT_CHARS_MAX:
        return None
    match = _SIZE.fullmatch(value)
    if match is None:
        return None
    size = round(float(match[1]) * (1 << _SIZE_SHIFT[match[2].lower()]))
    return size if size <= units.SIZE_BYTES_MAX else None


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    if value is None or value is False or value in ("", "false") or value in ([], {}):
        return True
    return any(type(value) is type(one) and value == one for one in neutral)
