"""`extends`: a service merged over another one of the same file (the specification's 13-merge.md)."""

from __future__ import annotations

import difflib

from cube.model.compose.keys import SECTIONS
from cube.model.treeread import Errors, join, shown

CHAIN_MAX = 16  # a extends b extends c …

_REPLACED = frozenset({"command", "entrypoint", "test"})
_PAIRS = frozenset({"environment", "labels", "annotations", "sysctls"})
_BY_NAME = frozenset({"depends_on", "networks"})
_BY_TARGET = frozenset({"volumes", "devices"})

Tree = dict[str, object]


def extended(services: Tree, path: str, errors: Errors) -> Tree:
    """The services, each with what it extends merged under it. `path` is that of `services`."""
    done: Tree = {}
    for name, tree in services.items():
        done[name] = _resolved(services, name, tree, path, errors, [])
    return done


def _resolved(
    services: Tree, name: str, tree: object, path: str, errors: Errors, chain: list[str]
) -> object:
    if not isinstance(tree, dict) or tree.get("extends") is None:
        return tree
    here = join(join(path, name), "extends")
    own = {key: value for key, value in tree.items() if key != "extends"}
    asked = tree["extends"]
    base_name = asked.get("service") if isinstance(asked, dict) else asked
    if isinstance(asked, dict):
        for key, value in asked.items():
            if key == "file" and value is not None:
                why = SECTIONS["extends"]["file"]
                errors.add(join(here, key), why.words, why.hint)
                return own
            if key not in ("service", "file") and not key.startswith("x-"):
                errors.add(join(here, key), "unknown key", "accepted: service")
    if not isinstance(base_name, str):
        errors.add(here, "must name a service", "write extends: { service: NAME }")
        return own
    if base_name not in services:
        near = difflib.get_close_matches(base_name[:80], list(services), n=1)
        hint = f"did you mean `{near[0]}`?" if near else ""
        errors.add(here, f"there is no service {shown(base_name)}", hint)
        return own
    chain = [*chain, name]
    if base_name in chain:
        errors.add(here, f"is a cycle: {' → '.join([*chain, base_name])[:200]}")
        return own
    if len(chain) > CHAIN_MAX:
        errors.add(here, f"is a chain of more than {CHAIN_MAX} services")
        return own
    base = _resolved(services, base_name, services[base_name], path, errors, chain)
    return _merged(base, own) if isinstance(base, dict) else own


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
            targets = [_target(item) for item in new]
            return [item for item in old if _target(item) not in targets] + new
        return old + [item for item in new if item not in old]
    return new


def _as_map(value: object, *, pairs: bool) -> object:
    """A list of NAME=VALUE, or of names, as the map that it stands for."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return value
    if pairs:
        cut = [item.partition("=") for item in value]
        return {name: (inner if sign else None) for name, sign, inner in cut}
    return {name: None for name in value}


def _target(item: object) -> object:
    """Where in the container a volume or a device appears."""
    if isinstance(item, dict):
        return item.get("target")
    if not isinstance(item, str):
        return item
    parts = item.split(":")
    return parts[1] if len(parts) > 1 else parts[0]
