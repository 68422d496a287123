"""The sections of a group that are lists: checks, mounts, and placement with its conditions."""

from __future__ import annotations

import difflib
import re

from cube.model import jobstored
from cube.model.spec import (
    ARGV_BYTES_MAX,
    ARGV_MAX,
    CHECKS_MAX,
    COUNT_MAX,
    MOUNTS_MAX,
    NAME_CHARS_MAX,
    Affinity,
    CheckSpec,
    CheckType,
    Constraint,
    DriverName,
    MountSpec,
    MountType,
    OnCheckFailure,
    Operator,
    Placement,
    PlacementPolicy,
    PortSpec,
    Protocol,
)
from cube.model.treeread import Table, as_text, kind, shown, text_problem

INTERVAL_MS_MIN = 100  # of checks: a task must not keep its agent busy
TIMEOUT_MS_MIN = 10
STREAK_MAX = 1_000  # healthy_after, unhealthy_after
CONSTRAINTS_MAX = 64
VALUES_MAX = 256  # of one `in`
PATTERN_CHARS_MAX = 256  # of `matches`

_PATH = re.compile(r"/[^\s]*")
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_NO_MOUNTS = 'it sees the node\'s own files; for this write driver = "docker"'
_ABSOLUTE = re.compile(r"/.*")
_CONDITION_SYNONYMS = {"key": "attribute", "op": "operator", "target": "attribute"}
_NODE_FACTS = ("id", "name", "os", "arch")
_NODE_ATTRIBUTE = re.compile(r"node\.(?:labels\.[^\s]{1,128}|(?!labels$)[a-z_]{1,40})")
_DRIVER_ATTRIBUTE = re.compile(r"driver\.[a-z]{1,20}(\.[A-Za-z0-9_.-]{1,64})?")
_ATTRIBUTES = "accepted: node.id, node.name, node.os, node.arch, node.labels.X, driver.docker.X"
_CHECK = CheckSpec("", CheckType.HTTP)


# -- checks -----------------------------------------------------------------------------------


def read_checks(group: Table, ports: dict[str, PortSpec]) -> tuple[CheckSpec, ...]:
    """The checks, each with a name of its own: one without takes its type's, numbered from 2."""
    tables = group.tables("checks", CHECKS_MAX)
    given = {name for table in tables if isinstance(name := table.raw("name"), str)}
    taken: set[str] = set()
    checks = []
    for table in tables:
        check = _check(table, ports, group)
        if not check.name:
            name, number = check.type.value, 2
            while name in taken or name in given:
                name, number = f"{check.type.value}-{number}", number + 1
            check = _named(check, name)
        elif check.name in taken:
            table.error("name", f"another check of the group is called {shown(check.name)}")
        taken.add(check.name)
        checks.append(check)
    return tuple(checks)


def _check(table: Table, ports: dict[str, PortSpec], group: Table) -> CheckSpec:
    type_ = table.choice("type", CheckType, CheckType.TCP, required=True)
    # A timeout may exceed the interval: probes of one check never overlap, the next one waits.
    check = CheckSpec(
        name=table.text("name", chars_max=NAME_CHARS_MAX),
        type=type_,
        port=table.text("port"),
        path=table.text(
            "path", _CHECK.path, pattern=_PATH, accepted="write a path such as /health"
        ),
        command=table.texts("command", ARGV_MAX, lines=True, bytes_max=ARGV_BYTES_MAX),
        interval_ms=table.duration_ms("interval", _CHECK.interval_ms, INTERVAL_MS_MIN),
        timeout_ms=table.duration_ms("timeout", _CHECK.timeout_ms, TIMEOUT_MS_MIN),
        start_period_ms=table.duration_ms("start_period", _CHECK.start_period_ms),
        healthy_after=table.integer("healthy_after", _CHECK.healthy_after, 1, STREAK_MAX),
        unhealthy_after=table.integer("unhealthy_after", _CHECK.unhealthy_after, 1, STREAK_MAX),
        on_failure=table.choice("on_failure", OnCheckFailure, _CHECK.on_failure),
    )
    if table.ok("type") and table.has("type"):
        if type_ is CheckType.EXEC:
            _exec_relations(table, check)
        else:
            _port_relations(table, check, ports, group)
    table.close({"retries": "unhealthy_after", "test": "command", "start_delay": "start_period"})
    return check


def _exec_relations(table: Table, check: CheckSpec) -> None:
    if table.ok("command") and not (check.command and check.command[0]):
        table.error("command", "is required by an exec check", 'write ["pg_isready", "-q"]')
    for key in ("port", "path"):
        if table.has(key):
            table.error(key, "an exec check runs a command and has none")


def _port_relations(
    table: Table, check: CheckSpec, ports: dict[str, PortSpec], group: Table
) -> None:
    names = f"ports of the group: {', '.join(ports)}" if ports else "the group has no ports"
    if table.ok("port") and group.ok("ports"):
        if not check.port:
            table.error("port", f"is required by a {check.type.value} check", names)
        elif check.port not in ports:
            near = difflib.get_close_matches(check.port[:64], list(ports), n=1)
            hint = f"did you mean `{near[0]}`?" if near else names
            table.error("port", f"the group has no port called {shown(check.port)}", hint)
        elif ports[check.port].protocol is not Protocol.TCP:
            table.error("port", f"a {check.type.value} check needs a tcp port")
    if table.has("command"):
        table.error("command", "only exec checks run one", 'set type = "exec"')
    if check.type is CheckType.TCP and table.has("path"):
        table.error("path", "only http checks have one", 'set type = "http"')


def _named(check: CheckSpec, name: str) -> CheckSpec:
    fields = {field: getattr(check, field) for field in CheckSpec.__struct_fields__}
    return CheckSpec(**{**fields, "name": name})


# -- mounts -----------------------------------------------------------------------------------


def read_mounts(group: Table, driver: DriverName) -> tuple[MountSpec, ...]:
    mounts: list[MountSpec] = []
    for table in group.tables("mounts", MOUNTS_MAX):
        mount = _mount(table, driver)
        if mount.target and any(_is_same_place(mount, other) for other in mounts):
            table.error("target", f"another mount of the group is at {shown(mount.target)} too")
        mounts.append(mount)
    return tuple(mounts)


def _is_same_place(mount: MountSpec, other: MountSpec) -> bool:
    # A path, or with a process a name in the directory of its kind.
    is_name = not mount.target.startswith("/")
    return mount.target == other.target and not (is_name and mount.type is not other.type)


def absolute(table: Table, key: str, *, required: bool = False) -> str:
    """A path that begins with / and climbs nowhere."""
    path = table.text(
        key, required=required, pattern=_ABSOLUTE, accepted="write an absolute path such as /data"
    )
    if ".." in path.split("/"):
        table.error(key, "must not contain ..")
        return ""
    return path


def _mount(table: Table, driver: DriverName) -> MountSpec:
    type_ = table.choice("type", MountType, MountType.VOLUME, required=True)
    synonyms = {
        "src": "source", "dst": "target", "destination": "target", "readonly": "read_only",
        "name": "source", "secret": "source", "config": "source",
    }  # fmt: skip
    if type_ in jobstored.MODE:
        stored = jobstored.read_stored_mount(table, type_, driver)
        table.close(synonyms)
        return stored
    if driver is DriverName.PROCESS:
        table.error("type", "nothing but secrets and configs is mounted for a process", _NO_MOUNTS)
    for key in ("mode", "uid", "gid"):
        if table.raw(key) is not None and table.ok("type"):
            table.error(key, "only the files of secrets and configs have one")
    mount = MountSpec(
        type=type_,
        target=absolute(table, "target", required=True),
        source=table.text("source"),
        read_only=table.boolean("read_only", False),
        size_bytes=table.size_bytes("size", 0),
    )
    if ".." in mount.source.split("/"):
        table.error("source", "must not contain ..")
    if mount.target == "/":
        table.error("target", "would hide the whole image")
    if table.ok("type", "source") and table.has("type"):
        _source_relations(table, mount)
    if mount.size_bytes and type_ is not MountType.TMPFS and table.ok("type"):
        table.error("size", "only tmpfs mounts have one")
    table.close(synonyms)
    return mount


def _source_relations(table: Table, mount: MountSpec) -> None:
    if mount.type is MountType.TMPFS:
        if mount.source:
            table.error("source", "a tmpfs mount has none")
    elif not mount.source:
        table.error("source", f"is required by a {mount.type.value} mount")
    elif mount.type is MountType.BIND and not mount.source.startswith("/"):
        table.error("source", "must be an absolute path on the node")
    elif mount.type is MountType.VOLUME and not _VOLUME.fullmatch(mount.source):
        table.error(
            "source",
            f"{shown(mount.source)} is not a name for a volume",
            'a path on the node needs type = "bind"' if "/" in mount.source else "",
        )


# -- placement --------------------------------------------------------------------------------


def read_placement(group: Table) -> Placement:
    if not group.has("placement"):
        return Placement()
    table = group.table("placement")
    policy = None
    if table.has("policy"):
        policy = table.choice("policy", PlacementPolicy, PlacementPolicy.SPREAD)
    placement = Placement(
        policy=policy,
        spread_over=_spread_over(table),
        max_per_node=table.integer("max_per_node", 0, 0, COUNT_MAX),
        constraints=tuple(
            _constraint(inner) for inner in table.tables("constraints", CONSTRAINTS_MAX)
        ),
        affinities=tuple(_affinity(inner) for inner in table.tables("affinities", CONSTRAINTS_MAX)),
    )
    table.close({"strategy": "policy", "spread": "spread_over", "constraint": "constraints"})
    return placement


def _constraint(table: Table) -> Constraint:
    constraint = Constraint(*_condition(table))
    table.close(_CONDITION_SYNONYMS)
    return constraint


def _affinity(table: Table) -> Affinity:
    attribute, operator, value = _condition(table)
    affinity = Affinity(attribute, operator, value, table.integer("weight", 50, -100, 100))
    table.close(_CONDITION_SYNONYMS)
    return affinity


def _spread_over(table: Table) -> tuple[str, ...]:
    names = table.texts("spread_over", CONSTRAINTS_MAX, accepted=_ATTRIBUTES)
    for name in names:
        if problem := _attribute_problem(name):
            table.error("spread_over", problem, _ATTRIBUTES)
    return names


def _condition(table: Table) -> tuple[str, Operator, str | tuple[str, ...]]:
    attribute = table.text("attribute", required=True)
    if attribute and (problem := _attribute_problem(attribute)):
        table.error("attribute", problem, _ATTRIBUTES)
    operator = table.choice("operator", Operator, Operator.EQ)
    value = table.raw("value")
    if not table.ok("operator"):
        return attribute, operator, ""
    if operator in (Operator.EXISTS, Operator.NOT_EXISTS):
        if value is not None:
            table.error("value", f"{operator.value} takes none")
        return attribute, operator, ""
    if operator in (Operator.IN, Operator.NOT_IN):
        return attribute, operator, _values(table, operator)
    if value is None:
        table.error("value", f"is required by {operator.value}")
        return attribute, operator, ""
    text = as_text(value)
    if text is None:
        hint = 'for several values write operator = "in"' if isinstance(value, list) else ""
        table.error("value", f"must be text or a number, not {kind(value)}", hint)
    elif problem := text_problem(text) or _pattern_problem(operator, text):
        table.error("value", problem)
    else:
        return attribute, operator, text
    return attribute, operator, ""


def _values(table: Table, operator: Operator) -> tuple[str, ...]:
    if not table.has("value"):
        table.error("value", f"is required by {operator.value}", 'write ["a", "b"]')
        return ()
    values = []
    for path, item in table.items("value", VALUES_MAX):
        text = as_text(item)
        problem = "must be text or a number" if text is None else text_problem(text)
        if problem:
            table.errors.add(path, problem)
        values.append(text or "")
    if not values and table.ok("value"):
        table.error("value", "must name at least one value")
    return tuple(values)


def _pattern_problem(operator: Operator, pattern: str) -> str:
    if operator is not Operator.MATCHES:
        return ""
    if len(pattern) > PATTERN_CHARS_MAX:
        return f"is {len(pattern)} characters long; at most {PATTERN_CHARS_MAX} are accepted"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"{shown(pattern)} is not a regular expression: {error}"
    return ""


def _attribute_problem(name: str) -> str:
    if _DRIVER_ATTRIBUTE.fullmatch(name):
        return ""
    if not _NODE_ATTRIBUTE.fullmatch(name):
        return f"{shown(name)} is no attribute"
    fact = name.removeprefix("node.")
    near = difflib.get_close_matches(fact, _NODE_FACTS, n=1, cutoff=0.7)
    if near and near[0] != fact and "." not in fact:
        return f"{shown(name)} is no attribute; did you mean `node.{near[0]}`?"
    return ""
