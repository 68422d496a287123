"""A compose file's tree whose every value knows where it stands: which file says it, and at which path.

What several files say becomes one tree, and an error in it is told at the place of who said it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cube.model.compose.yamltext import Tagged
from cube.model.treeread import Errors, join, shown

PATH_CHARS_SHOWN = 200  # of a file's name


class Node(msgspec.Struct):
    """A map of Nodes, a list of Nodes, or a scalar. `at` is where the value is said; `tag` is "!reset" or
    "!override", until what it is merged over has been seen."""

    value: object
    at: str
    tag: str = ""

    def inner(self, key: str) -> Node | None:
        """What the map has under this key; None: it has nothing there, or this is no map."""
        found = self.value.get(key) if isinstance(self.value, dict) else None
        return found if isinstance(found, Node) else None


def beneath(at: str, key: str) -> str:
    """The place of a key of what is at this place."""
    return f"{at} {key}" if at.endswith(":") else join(at, key)


def named(path: str) -> str:
    """A file as an error may name it: one line, bounded."""
    return shown(path, PATH_CHARS_SHOWN)[1:-1]


def placed(tree: object, at: str) -> Node:
    """The tree of a file. `at` is "" for the file that errors need not name, else "FILE:"."""
    tag = ""
    if isinstance(tree, Tagged):
        tag = tree.tag
        tree = tree.value
    if isinstance(tree, dict):
        inner: dict[str, Node] = {
            key: placed(value, beneath(at, key)) for key, value in tree.items()
        }
        return Node(inner, at, tag)
    if isinstance(tree, list):
        return Node([placed(item, f"{at}[{index}]") for index, item in enumerate(tree)], at, tag)
    return Node(tree, at, tag)


def plain(node: Node) -> object:
    """The tree as it was, without places and without tags."""
    value = node.value
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def settled(node: Node) -> Node:
    """Nothing is left to be merged over: what resets is gone, and what overrides is what it is."""
    value = node.value
    if isinstance(value, dict):
        tree: dict[str, Node] = value
        kept = {key: settled(one) for key, one in tree.items() if one.tag != "!reset"}
        return Node(kept, node.at)
    if isinstance(value, list):
        return Node([settled(item) for item in value if item.tag != "!reset"], node.at)
    return Node(value, node.at) if node.tag else node


def size(node: Node) -> int:
    """Scalars, lists and maps; depth is bounded by yamltext."""
    value = node.value
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(size, value.values()))
    return 1 + sum(map(size, value)) if isinstance(value, list) else 1


def places(root: Node) -> dict[str, str]:
    """Path in the whole: where that is said, for what does not stand where its path says."""
    found: dict[str, str] = {}

    def walk(node: Node, path: str, expected: str) -> None:
        if node.at != expected:
            found[path] = node.at
        if isinstance(node.value, dict):
            for key, inner in node.value.items():
                walk(inner, join(path, key), beneath(node.at, key))
        elif isinstance(node.value, list):
            for index, inner in enumerate(node.value):
                walk(inner, f"{path}[{index}]", f"{node.at}[{index}]")

    walk(root, "", "")
    return found


def place(path: str, known: Mapping[str, str]) -> str:
    """Where what is at this path of the whole is said."""
    for end in range(len(path), 0, -1) if known else ():
        if path[:end] in known and (end == len(path) or path[end] in ".["):
            return known[path[:end]] + path[end:]
    return path


class PlacedErrors(Errors):
    """Errors at paths of the whole, told at the places of who said it. What several services have from
    one place is told once."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()

    def add(self, path: str, problem: str, hint: str = "") -> None:
        told = (self.at(path), problem)
        if told in self._told:
            return
        if not self.full:  # those that are only counted are not kept either
            self._told.add(told)
        super().add(told[0], problem, hint)

    def at(self, path: str) -> str:
        """Where what is at this path of the whole is said."""
        return place(path, self.places)
