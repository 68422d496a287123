"""YAML bytes to a tree of dicts, lists and scalars, or BadConfig; never anything else.

Built on the parser's events, not on its constructors: no tag makes an object here, and what an alias
stands for is counted each time it is used, so that a short file cannot become a large tree. Scalars are
read as Compose reads them (YAML 1.2): `no`, `on` and `22:22` are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

import msgspec

from cube.model.errors import BadConfig, ConfigError
from cube.model.treeread import ERRORS_MAX, join, shown
from cube.model.treetext import FILE, INT_DIGITS_MAX, decoded, limited_int

DEPTH_MAX = 48  # the deepest path of the specification has ten levels
NODES_MAX = 20_000  # scalars, lists and maps, each alias counted as what it stands for
CHARS_MAX = 1 << 20  # of all scalars, counted likewise
PROBLEM_CHARS_MAX = 200

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    word: value
    for value, words in ((True, "true True TRUE"), (False, "false False FALSE"))
    for word in words.split()
}
_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|[1-9][0-9]*|0)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_PLAIN_TAGS = {f"tag:yaml.org,2002:{word}" for word in ("int", "float", "bool", "null")}
_TEXT_TAGS = {"tag:yaml.org,2002:str", "!"}
_SHAPE_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "!"}
_MERGE_TAGS = ("!reset", "!override")


class Tagged(msgspec.Struct, frozen=True):
    """A value that stands under `!reset` or `!override`: how it is merged over what another file says."""

    tag: str
    value: object


class _Frame(msgspec.Struct):
    """A map or a list that is being read. `nodes`, `chars`: what it has grown to."""

    is_map: bool
    path: str
    anchor: str | None
    items: list[object]
    tree: dict[str, object]
    merges: list[dict[str, object]]
    key: str | None = None
    is_merge: bool = False
    tag: str = ""
    nodes: int = 1
    chars: int = 0


class _Anchored(msgspec.Struct, frozen=True):
    value: object
    nodes: int
    chars: int


def yaml_tree(data: bytes) -> object:
    """The tree of one YAML document, merge keys (`<<`) applied. Raises BadConfig with line and column.

    Shape: dicts, lists and scalars; any of them within a Tagged, but for the root.
    """
    import yaml  # only where a compose file is read: 40 ms

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = decoded(data)
    try:
        return _Builder().build(yaml.parse(text, Loader=loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" (at line {mark.line + 1}, column {mark.column + 1})"
        problem = " ".join(str(part) for part in (error.context, error.problem) if part)
        _refuse(f"is not YAML: {problem[:PROBLEM_CHARS_MAX]}{where}")
    except yaml.YAMLError:
        _refuse("is not YAML: it contains a character that YAML does not allow")
    except RecursionError:
        _refuse("is not a compose file: lists or maps are nested too deeply")


class _Builder:
    def __init__(self) -> None:
        self._frames: list[_Frame] = []
        self._anchors: dict[str, _Anchored] = {}
        self._errors: list[ConfigError] = []
        self._root: object = None
        self._documents = 0

    def build(self, events: Iterable[object]) -> object:
        import yaml

        for event in events:
            match event:
                case yaml.DocumentStartEvent():
                    self._documents += 1
                    if self._documents > 1:
                        _refuse(f"has more than one document {_at(event)}")
                case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                    self._open(event, isinstance(event, yaml.MappingStartEvent))
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self._close(event)
                case yaml.ScalarEvent():
                    self._scalar(event)
                case yaml.AliasEvent():
                    self._alias(event)
                case _:  # the ends of streams and documents
                    pass
        if self._errors:
            raise BadConfig(self._errors[:ERRORS_MAX])
        return self._root

    def _open(self, event: object, is_map: bool) -> None:
        tag, anchor = getattr(event, "tag", None), getattr(event, "anchor", None)
        merge_tag = tag if tag in _MERGE_TAGS and self._frames else ""
        if tag is not None and tag not in _SHAPE_TAGS and not merge_tag:
            self._refuse_tag(event, tag)
        if len(self._frames) >= DEPTH_MAX:
            _refuse(f"is nested more than {DEPTH_MAX} levels deep {_at(event)}")
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.is_map and frame.key is None:
            _refuse(f"has a list or a map as a key {_at(event)}")
        self._frames.append(_Frame(is_map, self._path(), anchor, [], {}, [], tag=merge_tag))

    def _close(self, event: object) -> None:
        frame = self._frames.pop()
        value: object = _merged(frame) if frame.is_map else frame.items
        if frame.tag:
            value = Tagged(frame.tag, value)
        self._add(event, _Anchored(value, frame.nodes, frame.chars), frame.anchor)

    def _scalar(self, event: object) -> None:
        text: str = getattr(event, "value", "")
        anchor: str | None = getattr(event, "anchor", None)
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.is_map and frame.key is None:
            if anchor is not None:
                _refuse(f"has an anchor on a key {_at(event)}")
            self._key(event, frame, text)
            return
        self._add(event, _Anchored(self._value(event, text), 1, len(text)), anchor)

    def _value(self, event: object, text: str) -> object:
        tag = getattr(event, "tag", None)
        is_plain, _ = getattr(event, "implicit", (False, False))
        if tag in _MERGE_TAGS and self._frames:
            return Tagged(tag, scalar(text) if getattr(event, "style", None) is None else text)
        if tag in _TEXT_TAGS or (tag is None and not is_plain):
            return text
        if tag is not None and tag not in _PLAIN_TAGS:
            self._refuse_tag(event, tag)
        return scalar(text)

    def _key(self, event: object, frame: _Frame, text: str) -> None:
        if (tag := getattr(event, "tag", None)) in _MERGE_TAGS:
            _refuse(f"has {tag} on a key: it belongs before the value {_at(event)}")
        is_plain, _ = getattr(event, "implicit", (False, False))
        frame.is_merge = is_plain and text == "<<"
        if is_plain and text in _NULL:
            _refuse(f"has an empty key {_at(event)}")
        if text in frame.tree or (frame.is_merge and frame.merges):
            self._note(frame.path, text, f"is given more than once {_at(event)}")
        frame.key = text
        self._grow(event, frame, 1, len(text))

    def _alias(self, event: object) -> None:
        name = getattr(event, "anchor", "")
        found = self._anchors.get(name)
        if found is None:
            _refuse(
                f"names an anchor, {shown('*' + str(name))}, that is not set before {_at(event)}"
            )
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.is_map and frame.key is None:
            _refuse(f"has an alias as a key {_at(event)}")
        self._add(event, found, None)

    def _add(self, event: object, node: _Anchored, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._frames:
            self._root = node.value
            return
        frame = self._frames[-1]
        self._grow(event, frame, node.nodes, node.chars)
        if not frame.is_map:
            frame.items.append(node.value)
            return
        assert frame.key is not None
        if frame.is_merge:
            self._merge(event, frame, node.value)
        else:
            frame.tree[frame.key] = node.value
        frame.key, frame.is_merge = None, False

    def _merge(self, event: object, frame: _Frame, value: object) -> None:
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if isinstance(part, dict):
                frame.merges.append(part)
            else:
                self._note(frame.path, "<<", f"merges maps, and this is none {_at(event)}")

    def _grow(self, event: object, frame: _Frame, nodes: int, chars: int) -> None:
        frame.nodes += nodes
        frame.chars += chars
        if frame.nodes > NODES_MAX or frame.chars > CHARS_MAX:
            _refuse(f"is too large once its aliases are written out {_at(event)}")

    def _path(self) -> str:
        if not self._frames:
            return ""
        frame = self._frames[-1]
        if frame.is_map:
            return join(frame.path, frame.key or "")
        return f"{frame.path}[{len(frame.items)}]"

    def _note(self, path: str, key: str, problem: str) -> None:
        if len(self._errors) < ERRORS_MAX:
            self._errors.append(ConfigError(join(path, key), problem))

    def _refuse_tag(self, event: object, tag: str) -> None:
        _refuse(f"has a tag, {shown(tag)}, that is not read {_at(event)}")


def scalar(text: str) -> object:
    """What a plain scalar means."""
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinite := _INFINITE.fullmatch(text):
        return float(f"{infinite[1]}inf")
    return float("nan") if text in (".nan", ".NaN", ".NAN") else text


def _integer(text: str) -> int:
    sign, digits = (text[0], text[1:]) if text[0] in "+-" else ("", text)
    lead = digits[:2].lower()
    if lead in ("0x", "0o", "0b") or (digits[0] == "0" and len(digits) > 1):
        base = {"0x": 16, "0b": 2}.get(lead, 8)
        bare = digits[2:] if lead in ("0x", "0o", "0b") else digits
        number = int(bare[: 4 * INT_DIGITS_MAX], base)  # cut, still far out of every range
        return -number if sign == "-" else number
    return limited_int(sign.replace("+", "") + digits)


def _merged(frame: _Frame) -> dict[str, object]:
    """Its own keys win over what is merged in, and what is merged first over what is merged later."""
    if not frame.merges:
        return frame.tree
    tree: dict[str, object] = {}
    for part in reversed(frame.merges):
        tree |= part
    return tree | frame.tree


def _at(event: object) -> str:
    mark = getattr(event, "start_mark", None)
    return "" if mark is None else f"(at line {mark.line + 1}, column {mark.column + 1})"


def _refuse(problem: str) -> NoReturn:
    raise BadConfig([ConfigError(FILE, problem)])
