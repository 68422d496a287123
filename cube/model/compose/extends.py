"""`extends`: a service merged over another one, of the same file or of another one."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import msgspec

from cube.model.compose.merge import Tree, merged_service
from cube.model.compose.placed import Node, beneath, settled, size
from cube.model.compose.placed import named as named_file
from cube.model.compose.yamltext import NODES_MAX
from cube.model.treeread import Errors, shown

CHAIN_MAX = 16  # a extends b extends c …
CHAIN_CHARS_SHOWN = 400
# Of all that is merged, each time it is: many services may extend one that is long.
MERGED_NODES_MAX = 5 * NODES_MAX


class Source(msgspec.Struct):
    """A file whose services are extended. `read` makes a service of it ready: its variables replaced, its
    paths those of the project; `services` are ready when there is none."""

    name: str  # "" is the file that is run
    directory: str  # to which paths in it are relative
    services: Tree
    read: Callable[[Node], Node] | None = None
    ready: Tree = {}

    def service(self, name: str) -> Node:
        """There is one of this name."""
        if self.read is None:
            return self.services[name]
        if name not in self.ready:
            self.ready[name] = self.read(self.services[name])
        return self.ready[name]


# The file that a value names in another file; None: an error is noted, or it is still to be read.
Opened = Callable[[Node, Source], Source | None]


class Extending:
    """What all files of a project extend counts together."""

    def __init__(self, errors: Errors) -> None:
        self._errors = errors
        self._nodes = 0  # merged so far

    def services(self, source: Source, opened: Opened) -> Tree:
        """The services of a file, each with what it extends merged under it."""
        return {name: self._resolved(source, name, [], opened) for name in source.services}

    def _resolved(
        self, source: Source, name: str, chain: list[tuple[str, str]], opened: Opened
    ) -> Node:
        service = source.service(name)
        asked = service.inner("extends")
        if not isinstance(service.value, dict) or asked is None or asked.value is None:
            return service
        rest = {key: value for key, value in service.value.items() if key != "extends"}
        own = Node(rest, service.at, service.tag)
        base = self._named(source, asked, opened)
        if base is None or self._nodes > MERGED_NODES_MAX:
            return own
        chain = [*chain, (source.name, name)]
        file, base_name = base
        if (file.name, base_name) in chain:
            self._errors.add(asked.at, f"is a cycle: {_chain([*chain, (file.name, base_name)])}")
            return own
        if len(chain) > CHAIN_MAX:
            self._errors.add(asked.at, f"is a chain of more than {CHAIN_MAX} services")
            return own
        below = self._resolved(file, base_name, chain, opened)
        if not isinstance(below.value, dict):
            return own
        self._nodes += size(below) + size(own)
        if self._nodes > MERGED_NODES_MAX:
            problem = "the file is too large once what services extend is written out"
            self._errors.add(asked.at, problem)
            return own
        return merged_service(settled(below), own)

    def _named(self, source: Source, asked: Node, opened: Opened) -> tuple[Source, str] | None:
        """The service that is asked for, and its file; None: there is none, or its file is to be read."""
        named = asked
        if isinstance(asked.value, dict):
            named = asked.inner("service") or Node(None, asked.at)
            for key in asked.value:
                if key not in ("service", "file") and not key.startswith("x-"):
                    problem = ("unknown key", "accepted: service, file")
                    self._errors.add(beneath(asked.at, key), *problem)
        name = named.value
        if not isinstance(name, str):
            self._errors.add(asked.at, "must name a service", "write extends: { service: NAME }")
            return None
        file = asked.inner("file")
        if file is not None and file.value is not None:
            other = opened(file, source)
            if other is None:
                return None
            source = other
        if name not in source.services:
            near = difflib.get_close_matches(name[:80], list(source.services), n=1)
            hint = f"did you mean `{near[0]}`?" if near else ""
            where = f" in {named_file(source.name)}" if file is not None else ""
            self._errors.add(asked.at, f"there is no service {shown(name)}{where}", hint)
            return None
        return source, name


def _chain(chain: list[tuple[str, str]]) -> str:
    """a → b → a; with the file's name before it where there is more than one."""
    if len({file for file, _ in chain}) == 1:
        words = [name for _, name in chain]
    else:
        words = [f"{file or 'this file'}: {name}" for file, name in chain]
    return shown(" → ".join(words), CHAIN_CHARS_SHOWN)[1:-1]
