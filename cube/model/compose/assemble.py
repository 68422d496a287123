"""The files of a project as one tree: read, variables replaced, extended, merged, included; in that order,
as the specification has it (13-merge.md, 14-include.md).

Files are asked for by path and come in as values (Surroundings.files): a file that is not there yet is
noted as wanted, and all of this happens anew once it is. Paths in a tree from another directory become
paths of the project's directory here, so that what reads services need not know where they come from.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping

import msgspec

from cube.model.compose.dotenv import read_dotenv
from cube.model.compose.extends import CHAIN_CHARS_SHOWN, Extending, Opened, Source
from cube.model.compose.interpolate import Interpolation
from cube.model.compose.keys import KINDS, SECTIONS
from cube.model.compose.merge import Tree, comparable, merged_file
from cube.model.compose.placed import Node, beneath, named, placed, settled, size
from cube.model.compose.section import Reading
from cube.model.compose.yamltext import NODES_MAX, yaml_tree
from cube.model.errors import BadConfig
from cube.model.treeread import close_word, join, kind, shown
from cube.model.treetext import FILE

DOTENV = ".env"
DEPTH_MAX = 8  # a file that includes one that includes one …
INCLUDES_MAX = 64  # each time that one is included: a file may be included by many
# Of all files together, each time one is read: as much time and memory as five long files take.
READ_NODES_MAX = 5 * NODES_MAX
_ELSEWHERE = ("git@", "oci:", "docker.io/")


class ComposeFile(msgspec.Struct, frozen=True):
    """One of the files that are merged: its name in errors, and its path from the project's directory."""

    data: bytes
    name: str = ""
    path: str = ""


class _Project(msgspec.Struct, frozen=True):
    """Files that are merged into one, and from where they are read. `chain`: what includes it."""

    files: tuple[ComposeFile, ...]
    directory: str
    variables: Mapping[str, str] | None
    chain: tuple[str, ...]


class Assembly:
    """One pass over all files. What it finds wrong is in `reading`, what it lacks in `reading.wanted`.
    `is_whole` False: a file could not be brought in, and further errors may be no more than its echo."""

    def __init__(self, reading: Reading) -> None:
        self.is_whole = True
        self._reading = reading
        self._errors = reading.errors
        self._nodes = 0
        self._includes = 0
        self._extending = Extending(reading.errors)
        self._parsed: dict[str, Node | None] = {}  # the services of files that services extend

    def whole(self, files: tuple[ComposeFile, ...]) -> Node | None:
        """What the project's files say together; None: nothing that could be read on."""
        chain = (files[0].path or files[0].name,)
        return self._tree(_Project(files, "", self._reading.around.variables, chain))

    def _tree(self, project: _Project) -> Node | None:
        interpolation = Interpolation(self._errors, project.variables)
        sources: dict[str, Source | None] = {}

        def opened(asked: Node, asking: Source) -> Source | None:
            path = self._path(asked, asking.directory)
            if path is not None and path not in sources:
                sources[path] = self._extended(path, asked.at, interpolation)
            return None if path is None else sources[path]

        root: Node | None = None
        for number, file in enumerate(project.files):
            is_named = bool(project.chain[1:]) or number > 0
            found = self._read(file.data, f"{named(file.name)}:" if is_named else "")
            if found is None:
                continue
            source = Source(file.path, project.directory, {})
            ready = self._ready(_interpolated(found, interpolation), source, opened)
            root = ready if root is None else settled(merged_file(root, ready))
        self._note_unset(interpolation)
        if root is not None:
            root = settled(root)
            self._include(root, project)
        return root

    def _refuse(self, at: str, problem: str, hint: str = "") -> None:
        """An error for which something is not there that the rest may name."""
        self._errors.add(at, problem, hint)
        self.is_whole = False

    def _read(self, data: bytes, at: str) -> Node | None:
        """The file's tree. `at` is "" for the first one: what it cannot be read for is raised."""
        try:
            tree = yaml_tree(data)
        except BadConfig as bad:
            if not at:
                raise
            for error in bad.errors:
                where = at[:-1] if error.path == FILE else f"{at} {error.path}"
                self._refuse(where, error.problem, error.hint)
            return None
        if not isinstance(tree, dict):
            problem = f"is not a compose file: it holds {kind(tree)}"
            self._refuse(at[:-1], problem, "write services: …")
            return None
        found = placed(tree, at)
        self._nodes += size(found)
        if self._nodes > READ_NODES_MAX:
            self._refuse(at[:-1], "with it, all files together are too large")
            return None
        return found

    def _ready(self, root: Node, source: Source, opened: Opened) -> Node:
        """One file's tree, its services extended, before others are merged over it."""
        services = root.inner("services")
        if services is None or not isinstance(services.value, dict):
            return root
        for name, one in services.value.items():
            source.services[name] = _relative(one, source.directory)
        extended = self._extending.services(source, opened)
        assert isinstance(root.value, dict)
        return Node({**root.value, "services": Node(extended, services.at, services.tag)}, root.at)

    def _note_unset(self, interpolation: Interpolation) -> None:
        for name, paths in interpolation.unset.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            self._reading.note(f"{paths[0]}{more}", f"{name} is not set, and is taken as empty")

    # -- other files --------------------------------------------------------------------------

    def _extended(self, path: str, named_at: str, interpolation: Interpolation) -> Source | None:
        """A file that holds services to extend. What else it holds is not read."""
        data = self._file(path, named_at)
        if data is None:
            return None
        if path not in self._parsed:
            self._parsed[path] = self._read(data, f"{named(path)}:")
        root = self._parsed[path]
        services = None if root is None else root.inner("services")
        if root is None or services is None or not isinstance(services.value, dict):
            if root is not None:
                self._refuse(f"{named(path)}: services", "must be a map of at least one service")
            return None
        directory = posixpath.dirname(path)
        return Source(
            path, directory, services.value,
            lambda node: _relative(_interpolated(node, interpolation), directory),
        )  # fmt: skip

    def _path(self, said: Node, directory: str) -> str | None:
        """The path from the project's directory of a file that is said in another directory."""
        text = said.value
        if not isinstance(text, str) or not text or "\0" in text:
            self._refuse(said.at, f"must be the path of a file, not {kind(text)}")
            return None
        if "://" in text or text.startswith(_ELSEWHERE):
            hint = "fetch it, and name the file"
            self._refuse(said.at, f"{shown(text)} is elsewhere, and only files are read", hint)
            return None
        return within(directory, text)

    def _file(self, path: str, named_at: str, *, required: bool = True) -> bytes | None:
        if not self._reading.around.directory:
            self._refuse(named_at, "names another file, and the API reads none", RESOLVED)
            return None
        data = self._reading.file(path, named_at, required=required)
        if data is None and required and path not in self._reading.wanted:
            self.is_whole = False
        return data

    # -- include ------------------------------------------------------------------------------

    def _include(self, root: Node, project: _Project) -> None:
        """What the included files have is in `root` too, and `include` is not."""
        assert isinstance(root.value, dict)
        asked = root.value.pop("include", None)
        if asked is None or asked.value is None:
            return
        if not isinstance(asked.value, list):
            self._refuse(asked.at, f"must be a list, not {kind(asked.value)}", "- other.yaml")
            return
        if asked.value and not self._reading.around.directory:
            self._refuse(asked.at, "names other files, and the API reads none", RESOLVED)
            return
        for item in asked.value:
            self._includes += 1
            if self._includes > INCLUDES_MAX:
                if self._includes == INCLUDES_MAX + 1:
                    self._refuse(item.at, f"more than {INCLUDES_MAX} files are included")
                return
            other = self._asked(item, project)
            tree = None if other is None else self._tree(other)
            if tree is not None:
                self._bring(tree, root)

    def _asked(self, item: Node, project: _Project) -> _Project | None:
        """The project that a member of `include` names; None: an error is noted, or files are wanted."""
        if isinstance(item.value, dict):
            for key in item.value:
                if key not in SECTIONS["include"] and not key.startswith("x-"):
                    hint = close_word(key, list(SECTIONS["include"])) or ""
                    self._refuse(beneath(item.at, key), "unknown key", hint)
        long = isinstance(item.value, dict)
        said = item.inner("path") if long else item
        if said is None:
            self._refuse(item.at, "must name a file", "write path: other.yaml")
            return None
        listed = said.value if long and isinstance(said.value, list) else [said]
        paths = [self._path(one, project.directory) for one in listed]
        if not paths or None in paths:
            if not paths:
                self._refuse(said.at, "must name a file")
            return None
        known = [path for path in paths if path is not None]
        if known[0] in project.chain:
            way = shown(" → ".join([*project.chain, known[0]]), CHAIN_CHARS_SHOWN)[1:-1]
            self._refuse(listed[0].at, f"is a cycle: {way}")
            return None
        if len(project.chain) > DEPTH_MAX:
            self._refuse(listed[0].at, f"is included more than {DEPTH_MAX} files deep")
            return None
        files = self._files(known, listed)
        directory = posixpath.dirname(known[0])
        if (asked := item.inner("project_directory")) is not None and asked.value is not None:
            own = self._path(asked, project.directory)
            if own is None:
                return None
            directory = own
        variables = self._variables(item, directory, project)
        if files is None or variables is None:
            return None
        return _Project(files, directory, variables, (*project.chain, known[0]))

    def _files(self, paths: list[str], listed: list[Node]) -> tuple[ComposeFile, ...] | None:
        found = []
        for path, said in zip(paths, listed, strict=True):
            if (data := self._file(path, said.at)) is not None:
                found.append(ComposeFile(data, path, path))
        return tuple(found) if len(found) == len(paths) else None

    def _variables(self, item: Node, directory: str, project: _Project) -> Mapping[str, str] | None:
        """Those of who includes, and under them those of the included project's own files."""
        asked = item.inner("env_file")
        files: list[tuple[str, str, bool]] = []
        if asked is None or not asked.value:
            files.append((within(directory, DOTENV), item.at, False))
        else:
            for said in asked.value if isinstance(asked.value, list) else [asked]:
                path = self._path(said, project.directory)
                if path is None:
                    return None
                files.append((path, said.at, True))
        own: dict[str, str] = {}
        outer = dict(project.variables or {})
        for path, at, required in files:
            data = self._file(path, at, required=required)
            if data is None:
                continue
            found = read_dotenv(named(path), data, {**own, **outer}, self._errors)
            own |= {name: value for name, value in found.items() if value is not None}
        return {**own, **outer}

    def _bring(self, tree: Node, root: Node) -> None:
        """Resources of an included file; one that is here already has to be the same."""
        assert isinstance(tree.value, dict)
        assert isinstance(root.value, dict)
        for key, found in tree.value.items():
            if key not in KINDS:
                self._left(key, found)
                continue
            if not isinstance(found.value, dict):
                if found.value is not None:
                    self._errors.add(found.at, f"must be a map, not {kind(found.value)}")
                continue
            here = root.value.get(key)
            if here is None or here.value is None:
                here = root.value[key] = Node({}, key)
            if not isinstance(here.value, dict):
                continue  # which is refused where it is read
            for name, one in found.value.items():
                there = here.value.setdefault(name, one)
                assert isinstance(there, Node)
                if comparable(there) != comparable(one):
                    self._errors.add(
                        one.at,
                        f"{join(key, name)} is there already, at {there.at}, and is another one",
                        "call one by another name; path: [FILE, OVERRIDE] changes what is included",
                    )

    def _left(self, key: str, found: Node) -> None:
        if key in ("name", "x-cube"):
            self._reading.note(found.at, "of a file that is included says nothing")
        elif key != "version" and not key.startswith("x-"):
            self._errors.add(found.at, "unknown key", close_word(key, list(SECTIONS["top level"])))


RESOLVED = "the command line resolves it: cube run FILE, or cube job convert FILE -o json"


def within(directory: str, path: str) -> str:
    """A path that is relative to a directory of the project, from the project's own."""
    if not directory or path.startswith(("/", "~")):
        return path
    return posixpath.normpath(posixpath.join(directory, path))


def _interpolated(node: Node, interpolation: Interpolation) -> Node:
    value = node.value
    if isinstance(value, dict):
        tree = {key: _interpolated(inner, interpolation) for key, inner in value.items()}
        return Node(tree, node.at, node.tag)
    if isinstance(value, list):
        return Node([_interpolated(item, interpolation) for item in value], node.at, node.tag)
    if isinstance(value, str) and "$" in value:
        return Node(interpolation.text(node.at, value), node.at, node.tag)
    return node


def _relative(service: Node, directory: str) -> Node:
    """The service with its paths relative to the project's directory, not to its file's."""
    if not directory or not isinstance(service.value, dict):
        return service
    found: Tree = dict(service.value)
    for key, change in _PATHS.items():
        if (there := found.get(key)) is not None:
            found[key] = change(there, directory)
    return Node(found, service.at, service.tag)


def _each(change: Callable[[Node, str], Node]) -> Callable[[Node, str], Node]:
    def each(node: Node, directory: str) -> Node:
        if isinstance(node.value, list):
            return Node([change(one, directory) for one in node.value], node.at, node.tag)
        return change(node, directory)

    return each


def _file_path(node: Node, directory: str) -> Node:
    if isinstance(node.value, str):
        return Node(within(directory, node.value), node.at, node.tag)
    path = node.inner("path")
    if path is None:
        return node
    assert isinstance(node.value, dict)
    return Node({**node.value, "path": _file_path(path, directory)}, node.at, node.tag)


def _mount(node: Node, directory: str) -> Node:
    if isinstance(node.value, str):
        source, sign, rest = node.value.partition(":")
        if sign and source.startswith("."):
            return Node(f"{_bound(source, directory)}:{rest}", node.at, node.tag)
        return node
    source_node, type_node = node.inner("source"), node.inner("type")
    if source_node is None or type_node is None or type_node.value != "bind":
        return node
    if not isinstance(source_node.value, str):
        return node
    assert isinstance(node.value, dict)
    bound = Node(_bound(source_node.value, directory), source_node.at)
    return Node({**node.value, "source": bound}, node.at, node.tag)


def _bound(source: str, directory: str) -> str:
    """It begins as a path does: without, it would be the name of a volume."""
    path = within(directory, source)
    return path if path.startswith(("/", "~", ".")) else f"./{path}"


_PATHS = {"env_file": _each(_file_path), "label_file": _each(_file_path), "volumes": _each(_mount)}
