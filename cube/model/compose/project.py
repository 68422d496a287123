"""A compose file as a JobSpec: its top level, and what becomes of all of it together."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from cube.model.compose import deploy
from cube.model.compose.assemble import DOTENV, Assembly, ComposeFile
from cube.model.compose.dotenv import read_dotenv
from cube.model.compose.keys import SECTIONS
from cube.model.compose.network import Network
from cube.model.compose.placed import places, plain
from cube.model.compose.section import Reading, Section, Surroundings
from cube.model.compose.service import Known, group_name, read_service
from cube.model.errors import BadConfig, ConfigError
from cube.model.jobfile import parse_tree
from cube.model.jobgroup import NAME, NAME_ACCEPTED
from cube.model.spec import GROUPS_MAX, JobSpec
from cube.model.treeread import ERRORS_MAX, join, kind, shown
from cube.model.treetext import FILE

FILES_MAX = 64  # that a project reads besides those that are named on the command line
_SOURCES = (
    "content",
    "environment",
    "file",
    "driver",
)  # of a secret or config: refused by themselves
_JOB_KEYS = ("name", "type", "priority", "meta", "cron")
_PROJECT_UNFIT = re.compile(r"[^a-z0-9-]+")
_VOLUME_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


class Composed(msgspec.Struct, frozen=True):
    """A job, and what of the file it does not do, as `path: sentence`."""

    spec: JobSpec
    notes: tuple[str, ...]


class FilesWanted(msgspec.Struct, frozen=True):
    """These have to be read before the job can be told: paths as the compose file names them."""

    paths: tuple[str, ...]


API = Surroundings()  # that of a body: no files, no environment


def parse_compose(data: bytes, around: Surroundings = API) -> Composed | FilesWanted:
    """The job that a compose file describes. Raises BadConfig with every error of the file."""
    return parse_project((ComposeFile(data),), around)


def parse_project(
    files: tuple[ComposeFile, ...], around: Surroundings = API
) -> Composed | FilesWanted:
    """The job that these files describe, each merged over those before it. Raises BadConfig with every
    error of all files; errors in the first one have no file in their paths."""
    assert files
    if around.directory and DOTENV not in around.files:
        return FilesWanted((DOTENV,))
    reading = Reading(_with_dotenv(around))
    assembly = Assembly(reading)
    root = assembly.whole(files)
    if root is None or (not assembly.is_whole and not reading.wanted):
        reading.errors.raise_if_any()
    assert root is not None, "what is no tree is an error"
    reading.errors.places = places(root)
    tree = plain(root)
    assert isinstance(tree, dict)
    _read(reading, tree)
    if reading.wanted:
        missing = tuple(reading.wanted)
        if len(missing) + len(around.files) > FILES_MAX:
            raise BadConfig([ConfigError(FILE, f"names more than {FILES_MAX} other files")])
        return FilesWanted(missing)
    spec = _spec(reading)
    return Composed(spec, tuple(reading.notes))


def _with_dotenv(around: Surroundings) -> Surroundings:
    """The variables of `.env` come under those of the environment."""
    data = around.files.get(DOTENV)
    if data is None:
        return around
    reading = Reading(around)
    found = read_dotenv(DOTENV, data, around.variables, reading.errors)
    reading.errors.raise_if_any()
    below = {name: value for name, value in found.items() if value is not None}
    return msgspec.structs.replace(around, variables={**below, **(around.variables or {})})


def _read(reading: Reading, tree: dict[str, object]) -> None:
    root = Section(reading, "", "top level", tree)
    reading.origins["groups"] = "services"
    project = _name(reading, root)
    reading.put(("name",), project, "name")
    services = {name: (path, inner) for path, name, inner in root.named("services")}
    if not services and (root.raw("services") is None or root.raw("services") == {}):
        root.error("services", "at least one is required")
    if len(services) > GROUPS_MAX:
        root.error("services", f"has {len(services)} services; at most {GROUPS_MAX} are accepted")
        return
    on = _with_profiles(reading, services)
    if services and not on:
        hint = "--profile NAME (or COMPOSE_PROFILES=NAME) makes one active"
        root.error("services", "each is left out by its profiles", hint)
    type_ = _type(reading, root, {name: services[name] for name in on})
    groups = _groups(reading, on)
    known = Known(
        project=project,
        groups=groups,
        left_out={name: _profiles_of(services[name][1]) for name in services if name not in on},
        volumes=_volumes(root, project),
        stored={"secrets": _stored(root, "secret"), "configs": _stored(root, "config")},
        networks=_networks(root),
        is_batch=type_ in ("batch", "cron"),
    )
    reading.put(("type",), type_, "x-cube.type")
    for name in on:
        path, inner = services[name]
        if inner is None:
            reading.errors.add(path, "is empty", "write image: …")
            continue
        read_service(reading, path, name, inner, known)
        if isinstance(inner, dict):
            _x_cube(reading, ("groups", groups[name]), inner.get("x-cube"), f"{path}.x-cube")
    _note_together(reading, {groups[name]: services[name][0] for name in on}, known)
    x_cube = root.raw("x-cube")
    if isinstance(x_cube, dict):
        for key in x_cube:
            if key not in _JOB_KEYS:
                hint = "what belongs to a group stands in x-cube of its service"
                reading.errors.add(join("x-cube", key), "unknown key", hint)
        x_cube = {key: value for key, value in x_cube.items() if key in _JOB_KEYS}
    _x_cube(reading, (), x_cube, "x-cube")


def _name(reading: Reading, root: Section) -> str:
    x_cube = root.raw("x-cube")
    if isinstance(x_cube, dict) and isinstance(x_cube.get("name"), str):
        return str(x_cube["name"])
    text = root.text("name") or (reading.around.variables or {}).get("COMPOSE_PROJECT_NAME")
    if not text:
        text = reading.around.project
        if not text:
            root.error("name", "is required by the API", NAME_ACCEPTED)
            return "unnamed"
    name = _PROJECT_UNFIT.sub("-", text.lower()).strip("-")
    if not NAME.fullmatch(name):
        root.error("name", f"{shown(text)} is not a name for a job", NAME_ACCEPTED)
        return "unnamed"
    if name != text and root.has("name"):
        reading.note("name", f"the job is called {name}")
    return name


def _with_profiles(reading: Reading, services: dict[str, tuple[str, object]]) -> list[str]:
    """The services that no profile leaves out."""
    asked = reading.around.profiles
    if not asked:
        text = (reading.around.variables or {}).get("COMPOSE_PROFILES", "")
        asked = tuple(word.strip() for word in text.split(","))
    active = set(asked)
    known: dict[str, None] = {}
    on = []
    for name, (path, tree) in services.items():
        profiles = tree.get("profiles") if isinstance(tree, dict) else None
        if profiles is not None and not isinstance(profiles, list):
            reading.errors.add(join(path, "profiles"), f"must be a list, not {kind(profiles)}")
        elif profiles:
            known |= dict.fromkeys(map(str, profiles))
            if "*" not in active and not active.intersection(map(str, profiles)):
                words = _profile_words(profiles)
                reading.note(path, f"is left out: none of its profiles ({words}) is active")
                continue
        on.append(name)
    for word in asked:
        if word and word != "*" and word not in known:
            there = f"there are {_profile_words(list(known))}" if known else "there are none"
            reading.note("profiles", f"no service has the profile {shown(word)}; {there}")
    return on


def _profiles_of(service: object) -> tuple[str, ...]:
    profiles = service.get("profiles") if isinstance(service, dict) else None
    return tuple(map(str, profiles[:8])) if isinstance(profiles, list) else ()


def _profile_words(profiles: Sequence[object]) -> str:
    return ", ".join(str(word)[:40] for word in profiles[:8])


def _type(reading: Reading, root: Section, services: dict[str, tuple[str, object]]) -> object:
    """The job's type: what x-cube says, else what deploy.mode of all services says."""
    x_cube = root.raw("x-cube")
    asked = x_cube.get("type") if isinstance(x_cube, dict) else None
    types: dict[str, str] = {}
    for name, (path, tree) in services.items():
        inner = tree.get("deploy") if isinstance(tree, dict) else None
        mode = inner.get("mode") if isinstance(inner, dict) else None
        if mode is not None and (not isinstance(mode, str) or mode not in deploy.MODES):
            accepted = f"accepted: {', '.join(deploy.MODES)}"
            where = f"{path}.deploy.mode"
            reading.errors.add(where, f"{shown(mode)} is not accepted", accepted)
        types[name] = deploy.MODES.get(mode if isinstance(mode, str) else "replicated", "service")
    found = list(dict.fromkeys(types.values()))
    if len(found) == 1 and (asked is None or found[0] in ("service", asked)):
        return found[0] if asked is None else asked
    if len(found) > 1:
        for name, type_ in types.items():
            if type_ != "service":
                reading.errors.add(
                    f"{services[name][0]}.deploy.mode",
                    f"makes a job of type {type_}, beside services of type "
                    f"{next(one for one in found if one != type_)}: a job has one type",
                    "put it into a file of its own",
                )
    elif found:
        reading.errors.add("x-cube.type", f"is at odds with deploy.mode, which makes it {found[0]}")
    return asked or "service"


def _groups(reading: Reading, names: list[str]) -> dict[str, str]:
    """Service to group. Two services never become one group."""
    groups: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in names:
        group = group_name(name)
        path = join("services", name)
        if group in owners:
            reading.errors.add(
                path,
                f"would be called {group} in Cube, as {owners[group]} is",
                "give it another name",
            )
        elif group != name:
            reading.note(path, f"is called {group} in Cube")
        owners.setdefault(group, name)
        groups[name] = group
    return groups


def _volumes(root: Section, project: str) -> dict[str, str]:
    """Name in the file to the volume's name, as Docker Compose makes it: PROJECT_NAME."""
    found = {}
    for path, name, tree in root.named("volumes"):
        inner = Section(root.reading, path, "volume", tree)
        external, given = inner.raw("external"), inner.text("name")
        is_external = isinstance(external, dict) or inner.flag("external") is True
        if isinstance(external, dict) and isinstance(external.get("name"), str):
            given = str(external["name"])
        if is_external:
            root.reading.note(path, "a node that lacks it gets a new one, which is empty")
        found[name] = given or (
            name if is_external else _VOLUME_UNFIT.sub("-", f"{project}_{name}")
        )
    return found


def _stored(root: Section, kind: str) -> dict[str, str]:
    """Name in the file to the name of a secret or config that the cluster keeps."""
    found = {}
    for path, name, tree in root.named(f"{kind}s"):
        inner = Section(root.reading, path, kind, tree)
        external, given = inner.raw("external"), inner.text("name")
        if isinstance(external, dict) and isinstance(external.get("name"), str):
            given = str(external["name"])
        is_external = isinstance(external, dict) or inner.flag("external") is True
        why = SECTIONS[kind]["file"]
        if not is_external and not any(inner.has(key) for key in _SOURCES):
            inner.error("external", why.words, why.hint)
        found[name] = given or name
    return found


def _networks(root: Section) -> dict[str, Network]:
    found = {}
    for path, name, tree in root.named("networks"):
        inner = Section(root.reading, path, "network", tree)
        external, given = inner.raw("external"), inner.text("name")
        is_external = isinstance(external, dict) or inner.flag("external") is True
        if isinstance(external, dict) and isinstance(external.get("name"), str):
            given = str(external["name"])
        found[name] = Network(external=(given or name) if is_external else "")
    return found


def _x_cube(reading: Reading, path: tuple[str, ...], tree: object, origin: str) -> None:
    """What x-cube says is merged over the rest: maps key by key, everything else as a whole."""
    if tree is None:
        return
    if not isinstance(tree, dict):
        reading.errors.add(origin, f"must be a map, not {kind(tree)}")
        return
    stack = [(path, tree, origin)]
    while stack:
        at, inner, where = stack.pop()
        for key, value in inner.items():
            here, there = (*at, key), join(where, key)
            if isinstance(value, dict) and isinstance(_found(reading, here), dict | None):
                reading.origins.setdefault(_dotted(here), there)
                stack.append((here, value, there))
                if not value:
                    reading.put(here, {}, there)
            else:
                reading.put(here, value, there)


def _found(reading: Reading, path: tuple[str, ...]) -> object:
    tree: object = reading.job
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _dotted(path: tuple[str, ...]) -> str:
    dotted = ""
    for key in path:
        dotted = join(dotted, key)
    return dotted


def _note_together(reading: Reading, paths: dict[str, str], known: Known) -> None:
    """What concerns many services is said once."""
    silent = [
        path.removeprefix("services.")
        for group, path in paths.items()
        if _found(reading, ("groups", group, "resources", "memory")) is None
    ]
    if silent:
        reading.note(
            "services",
            f"{', '.join(silent)[:200]}: no limit of memory is given, so each task gets 64 MiB and no "
            "more (deploy.resources.limits.memory)",
        )
    if any(not network.external for network in known.networks.values()):
        reading.note(
            "networks",
            "Cube has no network across nodes: services are neither shut off from each other nor found "
            "by name; cube service ls says where each answers",
        )


def _spec(reading: Reading) -> JobSpec:
    """The job. Raises BadConfig with what was wrong so far, and what is wrong with the job."""
    found = list(reading.errors.found)
    taken = [error.path for error in found]
    spec = None
    try:
        spec = parse_tree(reading.job)
    except BadConfig as bad:
        for error in bad.errors:
            path = reading.errors.at(reading.origin(error.path))
            if not any(_within(path, other) or _within(other, path) for other in taken):
                found.append(ConfigError(path, error.problem, error.hint))
    if found:
        more = len(found) - ERRORS_MAX + reading.errors.more
        found = found[:ERRORS_MAX]
        if more > 0:
            found.append(ConfigError(FILE, f"and {more} more errors"))
        raise BadConfig(found)
    assert spec is not None
    return spec


def _within(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}["))
