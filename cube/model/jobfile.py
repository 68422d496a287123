"""Job files: bytes and trees to JobSpec. Any input is a JobSpec, or BadConfig with every error."""

from __future__ import annotations

import datetime
import difflib

import msgspec

from cube.model.errors import BadConfig
from cube.model.jobgroup import NAME, NAME_ACCEPTED, read_group
from cube.model.spec import (
    GROUPS_MAX,
    JOB_BYTES_MAX,
    CronSpec,
    GroupSpec,
    JobSpec,
    JobType,
    Overlap,
    Protocol,
)
from cube.model.treeread import Errors, Table, as_text, kind, shown, text_problem
from cube.model.treetext import json_tree, toml_tree

META_MAX = 64
META_KEY_CHARS_MAX = 128
# Seconds, which cronsim would take as a sixth, are finer than the scheduler promises.
CRON_FIELDS = ("minute", "hour", "day of the month", "month", "day of the week")
SCHEDULE_ACCEPTED = "write minute hour day month weekday: 0 3 * * MON is every Monday at 3:00"
CRON_CHARS_MAX = 256
TIMEZONE_CHARS_MAX = 64
PRIORITY_DEFAULT = 50

_SYNONYMS = {"group": "groups", "kind": "type", "id": "name", "tasks": "groups", "labels": "meta"}


def parse_toml(data: bytes) -> JobSpec:
    """The job that a TOML file describes. Raises BadConfig with every error of the file."""
    return parse_tree(toml_tree(data))


def parse_json(data: bytes) -> JobSpec:
    """The job that a JSON document describes. Raises BadConfig with every error of it."""
    return parse_tree(json_tree(data))


def parse_tree(tree: object) -> JobSpec:
    """The job that a tree of dicts, lists and scalars describes. Raises BadConfig likewise."""
    errors = Errors()
    root = Table(errors, "", tree)
    name = root.text("name", required=True, pattern=NAME, accepted=NAME_ACCEPTED)
    type_ = root.choice("type", JobType, JobType.SERVICE, required=True)
    priority = root.integer("priority", PRIORITY_DEFAULT, 1, 100)
    meta = _meta(root.table("meta"))
    cron = _cron(root, type_)
    groups = _groups(root, type_, name)
    for group_name, group in groups.items():
        if cron is not None and cron.overlap is Overlap.ALLOW and group.at_most_one:
            errors.add(
                f"groups.{group_name}.at_most_one",
                'is at odds with cron.overlap = "allow", which runs two tasks for a while',
            )
    root.close(_SYNONYMS)
    errors.raise_if_any()
    spec = JobSpec(name=name, type=type_, groups=groups, priority=priority, meta=meta, cron=cron)
    size = len(msgspec.json.encode(spec))
    if size > JOB_BYTES_MAX:
        errors.add(
            "", f"the job is {size} bytes long, encoded; at most {JOB_BYTES_MAX} are accepted"
        )
    errors.raise_if_any()
    return spec


def _meta(table: Table) -> dict[str, str]:
    meta: dict[str, str] = {}
    for key, value in table.entries(META_MAX, "entries"):
        text = as_text(value)
        if problem := text_problem(key, chars_max=META_KEY_CHARS_MAX):
            table.error(key, f"as a name {problem}")
        elif text is None:
            table.error(key, f"must be text, not {kind(value)}")
        elif problem := text_problem(text, lines=True):
            table.error(key, problem)
        else:
            meta[key] = text
    return meta


def _cron(root: Table, type_: JobType) -> CronSpec | None:
    there = root.has("cron")
    if not root.ok("type"):
        return None
    if type_ is not JobType.CRON:
        if there:
            root.error("cron", f'only jobs of type = "cron" have one, not {type_.value}')
        return None
    if not there:
        root.error(
            "cron", 'is required by type = "cron"', 'write schedule = "*/5 * * * *" in [cron]'
        )
        return None
    table = root.table("cron")
    cron = CronSpec(
        schedule=table.text("schedule", required=True, chars_max=CRON_CHARS_MAX),
        timezone=table.text("timezone", "UTC", chars_max=TIMEZONE_CHARS_MAX),
        overlap=table.choice("overlap", Overlap, Overlap.FORBID),
    )
    if table.ok("schedule") and (problem := _schedule_problem(cron.schedule)):
        table.error("schedule", problem, SCHEDULE_ACCEPTED)
    if table.ok("timezone") and not _is_timezone(cron.timezone):
        table.error(
            "timezone", f"{shown(cron.timezone)} is not known", _near_timezone(cron.timezone)
        )
    table.close({"cron": "schedule", "expression": "schedule", "time_zone": "timezone"})
    return cron


def _schedule_problem(schedule: str) -> str:
    from cronsim import CronSim, CronSimError  # only where a schedule is read

    fields = schedule.split()
    if len(fields) != len(CRON_FIELDS):
        return f"{shown(schedule)} has {len(fields)} fields, not {len(CRON_FIELDS)}"
    start = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
    for position, (field, name) in enumerate(zip(fields, CRON_FIELDS, strict=True)):
        alone = ["*"] * len(CRON_FIELDS)
        alone[position] = field
        try:
            CronSim(" ".join(alone), start)
        except (CronSimError, AssertionError, TypeError, ValueError):
            return f"{shown(schedule)} is not a schedule: its {name} cannot be {shown(field)}"
    try:
        next(CronSim(schedule, start))
    except (CronSimError, StopIteration):
        return f"{shown(schedule)} never comes: no month has such a day"
    except (AssertionError, TypeError, ValueError):  # cronsim 2.8 on 1L,2 or 5L/2
        return f"{shown(schedule)} is not a schedule"
    return ""


def _near_timezone(name: str) -> str:
    import zoneinfo

    known = sorted(zoneinfo.available_timezones())
    near = difflib.get_close_matches(name[:TIMEZONE_CHARS_MAX], known, n=1, cutoff=0.6)
    if not near:
        ends = [zone for zone in known if zone.rpartition("/")[2].lower() == name.lower()]
        near = ends[:1]
    return f"did you mean `{near[0]}`?" if near else "write UTC, Europe/Berlin, …"


def _is_timezone(name: str) -> bool:
    import zoneinfo

    if name == "UTC":  # also where no time zone database is installed
        return True
    try:
        zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; climbing; a directory, on some systems
        return False
    return True


def _groups(root: Table, type_: JobType, job: str) -> dict[str, GroupSpec]:
    table = root.table("groups")
    groups: dict[str, GroupSpec] = {}
    tables: dict[str, Table] = {}
    for name, tree in table.entries(GROUPS_MAX, "groups"):
        if not NAME.fullmatch(name):
            table.error(name, "is not a name for a group", NAME_ACCEPTED)
            continue
        tables[name] = Table(table.errors, table.at(name), tree)
        groups[name] = read_group(tables[name], type_)
    if not root.has("groups") or (root.ok("groups") and not groups and table.is_empty):
        root.error("groups", "at least one is required", "write [groups.NAME]")
    _static_ports(groups, table)
    _dependencies(groups, tables, job)
    return groups


def _static_ports(groups: dict[str, GroupSpec], table: Table) -> None:
    """A static host port is asked for once in a job. `count` copies of one may meet on no node."""
    owners: dict[tuple[int, Protocol], str] = {}
    for group_name, group in groups.items():
        for port_name, port in group.ports.items():
            owner = owners.setdefault((port.host, port.protocol), f"{group_name}.{port_name}")
            if port.host and owner != f"{group_name}.{port_name}":
                table.errors.add(
                    f"{table.at(group_name)}.ports.{port_name}.host",
                    f"{port.host}/{port.protocol.value} is taken by {table.path}.{owner}",
                    "leave host out, and the scheduler picks a free one",
                )


def _dependencies(groups: dict[str, GroupSpec], tables: dict[str, Table], job: str) -> None:
    edges: dict[str, list[str]] = {}
    for name, group in groups.items():
        edges[name] = []
        for dependency in group.depends_on:
            other_job, _, target = dependency.rpartition("/")
            if other_job and other_job != job:
                continue  # another job: whether it exists is a question to the cluster
            if target == name:
                tables[name].error("depends_on", "names the group itself")
            elif target not in groups:
                hint = f"groups of this job: {', '.join(groups)}"
                if near := difflib.get_close_matches(target, list(groups), n=1):
                    hint = f"did you mean `{near[0]}`?"
                tables[name].error("depends_on", f"the job has no group called {target}", hint)
            else:
                edges[name].append(target)
    if cycle := _cycle(edges):
        tables[cycle[0]].error("depends_on", f"is a cycle: {' → '.join(cycle)}")


def _cycle(edges: dict[str, list[str]]) -> list[str]:
    """Some cycle as [a, b, a], or []. Depth is bounded by GROUPS_MAX."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for target in edges[name]:
            if found := visit(target):
                return found
        path.pop()
        done.add(name)
        return []

    for name in edges:
        if found := visit(name):
            return found
    return []


__all__ = ["BadConfig", "parse_json", "parse_toml", "parse_tree"]
