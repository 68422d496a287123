"""`extends`: a service merged over another one of the same file (the specification's 13-merge.md)."""

from __future__ import annotations

import difflib
from collections.abc import Hashable

from cube.model.compose.keys import SECTIONS
from cube.model.compose.yamltext import NODES_MAX
from cube.model.treeread import Errors, join, shown

CHAIN_MAX = 16  # a extends b extends c …
# Of all that is merged, each time it is: many services may extend one that is long.
MERGED_NODES_MAX = 5 * NODES_MAX

_REPLACED = frozenset({"command", "entrypoint", "test"})
_PAIRS = frozenset({"environment", "labels", "annotations", "sysctls"})
_BY_NAME = frozenset({"depends_on", "networks"})
_BY_TARGET = frozenset({"volumes", "devices"})

Tree = dict[str, object]


def extended(services: Tree, path: str, errors: Errors) -> Tree:
    """The services, each with what it extends merged under it. `path` is that of `services`."""
    extending = _Extending(services, path, errors)
    return {name: extending.resolved(name, tree, []) for name, tree in services.items()}


class _Extending:
    def __init__(self, services: Tree, path: str, errors: Errors) -> None:
        self._services, self._path, self._errors = services, path, errors
        self._nodes = 0  # merged so far

    def resolved(self, name: str, tree: object, chain: list[str]) -> object:
        if not isinstance(tree, dict) or tree.get("extends") is None:
            return tree
        own = {key: value for key, value in tree.items() if key != "extends"}
        here = join(join(self._path, name), "extends")
        base_name = self._named(here, tree["extends"])
        if base_name is None or self._nodes > MERGED_NODES_MAX:
            return own
        chain = [*chain, name]
        if base_name in chain:
            self._errors.add(here, f"is a cycle: {' → '.join([*chain, base_name])[:200]}")
            return own
        if len(chain) > CHAIN_MAX:
            self._errors.add(here, f"is a chain of more than {CHAIN_MAX} services")
            return own
        base = self.resolved(base_name, self._services[base_name], chain)
        if not isinstance(base, dict):
            return own
        self._nodes += _nodes(base) + _nodes(own)
        if self._nodes > MERGED_NODES_MAX:
            self._errors.add(here, "the file is too large once what services extend is written out")
            return own
        return _merged(base, own)

    def _named(self, here: str, asked: object) -> str | None:
        """The service of this file that is asked for; None, with an error noted: there is none."""
        base_name = asked.get("service") if isinstance(asked, dict) else asked
        if isinstance(asked, dict):
            for key, value in asked.items():
                if key == "file" and value is not None:
                    why = SECTIONS["extends"]["file"]
                    self._errors.add(join(here, key), why.words, why.hint)
                    return None
                if key not in ("service", "file") and not key.startswith("x-"):
                    self._errors.add(join(here, key), "unknown key", "accepted: service")
        if not isinstance(base_name, str):
            self._errors.add(here, "must name a service", "write extends: { service: NAME }")
            return None
        if base_name not in self._services:
            near = difflib.get_close_matches(base_name[:80], list(self._services), n=1)
            hint = f"did you mean `{near[0]}`?" if near else ""
            self._errors.add(here, f"there is no service {shown(base_name)}", hint)
            return None
        return base_name


def _nodes(value: object) -> int:
    """Scalars, lists and maps of a tree; its depth is bounded by yamltext."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(_nodes, value.values()))
    return 1 + sum(map(_nodes, value)) if isinstance(value, list) else 1


def _merged(base: Tree, over: Tree) -> Tree:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _value(key, merged[key], value) if key in merged else value
    return merged


def _value(key: str, old: object, new: object) -> object:
    if key in _REPLACED or new is None:
        return new
    if key in _PAIRS:
        old, new = _as_map(old, pairs=True), _as_map(new, pairs=True)
    elif key in _BY_NAME:
        old, new = _as_map(old, pairs=False), _as_map(new, pairs=False)
    if isinstance(old, dict) and isinstance(new, dict):
        return _merged(old, new)
    if isinstance(old, list) and isinstance(new, list):
        if key in _BY_TARGET:
            targets = {_comparable(_target(item)) for item in new}
            return [item for item in old if _comparable(_target(item)) not in targets] + new
        known = {_comparable(item) for item in old}
        return old + [item for item in new if _comparable(item) not in known]
    return new


def _as_map(value: object, *, pairs: bool) -> object:
    """A list of NAME=VALUE, or of names, as the map that it stands for."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return value
    if pairs:
        cut = [item.partition("=") for item in value]
        return {name: (inner if sign else None) for name, sign, inner in cut}
    return {name: None for name in value}


def _comparable(value: object) -> Hashable:
    """Equal for equal trees; lists are long, and to look through one for each item of another longer."""
    if isinstance(value, dict):
        return frozenset((key, _comparable(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return tuple(map(_comparable, value))
    assert isinstance(value, Hashable)
    return value


def _target(item: object) -> object:
    """Where in the container a volume or a device appears."""
    if isinstance(item, dict):
        return item.get("target")
    if not isinstance(item, str):
        return item
    parts = item.split(":")
    return parts[1] if len(parts) > 1 else parts[0]
