"""One section of the configuration from its layers: what the file says, under what the environment
and the flags say of single keys. An error names the place that the value came from."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from cube.model.treeread import Errors, Table, as_text, join, kind, shown, text_problem

INTEGER_MAX = 1 << 31
LABELS_MAX = 64
LIST_MAX = 64
TEXT_CHARS_MAX = 1024

S = TypeVar("S", bound=msgspec.Struct)

_UNITS = ("_ms", "_bytes", "_milli")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class Given(msgspec.Struct, frozen=True):
    """A value from outside the file. `place` is what the user wrote: CUBE_BIND_HTTP, --http."""

    place: str
    value: object


def key_of(field: str) -> str:
    """`node_grace` for the field node_grace_ms: the file says the unit in the value."""
    for unit in _UNITS:
        field = field.removesuffix(unit)
    return field


def fields_of(kind_: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    """The fields of a section by their keys in the file."""
    return {key_of(field.name): field for field in msgspec.structs.fields(kind_)}


def from_text(type_: object, text: str) -> object:
    """The text of an environment variable or flag as a value of that type; itself if it is none."""
    if type_ is bool and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    if type_ is int and re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return int(text)
    if type_ is float and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return float(text)
    if type_ == tuple[str, ...]:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


class Section(Table):
    """A Table whose keys may be given from outside the file."""

    def __init__(self, errors: Errors, path: str, tree: object, given: Mapping[str, Given]) -> None:
        super().__init__(errors, path, {} if tree is None else tree)
        self._places = {key: value.place for key, value in given.items()}
        for key, value in given.items():
            self._tree = {**self._tree, key: value.value}

    def at(self, key: str) -> str:
        return self._places.get(key) or join(self.path, key)

    def read(self, type_: type[S], bounds: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        """A value for each field of the struct that has a scalar or list type."""
        return {
            field.name: self._field(key, field, bounds.get(f"{self.path}.{key}", (0, INTEGER_MAX)))
            for key, field in fields_of(type_).items()
            if field.type in (bool, int, float, str, tuple[str, ...])
            or (isinstance(field.type, type) and issubclass(field.type, enum.StrEnum))
        }

    def _field(self, key: str, field: msgspec.structs.FieldInfo, bounds: tuple[int, int]) -> Any:
        default: Any = field.default
        if field.name.endswith("_ms"):
            return self.duration_ms(key, default, bounds[0])
        if field.name.endswith("_bytes"):
            return self.size_bytes(key, default)
        if field.name.endswith("_milli"):
            return self.cpu_milli(key, default)
        if field.type is bool:
            return self.boolean(key, default)
        if field.type is int:
            return self.integer(key, default, *bounds)
        if field.type is float:
            return self._number(key, default)
        if field.type is str:
            return self.text(key, default, chars_max=TEXT_CHARS_MAX)
        if isinstance(field.type, type) and issubclass(field.type, enum.StrEnum):
            return self._choice(key, field.type, default)
        return self.texts(key, LIST_MAX) if self.has(key) else default

    def _choice(self, key: str, type_: type[enum.StrEnum], default: enum.StrEnum) -> enum.StrEnum:
        value = self.raw(key)
        words = {word.value for word in type_}
        if {"on", "off"} <= words:  # a switch: TOML's own true and false are meant so too
            if isinstance(value, bool):
                return type_("on" if value else "off")
            if isinstance(value, str) and value.lower() in (*_TRUE, *_FALSE):
                return type_("on" if value.lower() in _TRUE else "off")
        return self.choice(key, type_, default)

    def _number(self, key: str, default: float) -> float:
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.error(key, f"must be a number, not {kind(value)}")
        elif not (0 <= value <= INTEGER_MAX and math.isfinite(value)):
            self.error(key, f"{shown(value)} is out of range")
        else:
            return float(value)
        return default

    def labels(self, key: str, more: Given | None) -> dict[str, str]:
        """The file's labels, under those that were given by flag or environment."""
        found: dict[str, str] = {}
        table = self.table(key)
        for name, value in table.entries(LABELS_MAX, "labels"):
            self._label(found, table.at(name), name, value)
        if more is not None and isinstance(more.value, list):
            for pair in more.value:
                name, equals, text = str(pair).partition("=")
                if not equals:
                    self.errors.add(more.place, f"{shown(str(pair))} is not KEY=VALUE")
                else:
                    self._label(found, more.place, name, text)
        return found

    def _label(self, found: dict[str, str], place: str, name: str, value: object) -> None:
        text = as_text(value)
        if not _LABEL.fullmatch(name):
            hint = "accepted: letters, digits and . _ / -"
            self.errors.add(place, f"{shown(name)} is not a name for a label", hint)
        elif text is None:
            self.errors.add(place, f"must be text, not {kind(value)}")
        elif problem := text_problem(text, chars_max=TEXT_CHARS_MAX):
            self.errors.add(place, problem)
        else:
            found[name] = text
