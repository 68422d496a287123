"""What differs between two specs, by path, in the words and units of the job file's tree."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from cube.model.jobrender import Tree, diff, render
from cube.model.spec import GroupSpec, JobSpec

_ALWAYS_TOLD = frozenset({"name", "type", "count", "driver", "image", "command"})


class Change(msgspec.Struct, frozen=True):
    """None: it is not there."""

    path: str
    old: object
    new: object


def spec_changes(old: JobSpec | None, new: JobSpec) -> tuple[Change, ...]:
    """By path. Of a job or group that is new, or gone, what it is and what differs from the
    defaults: a list of all defaults would hide that."""
    if old is None:
        return tuple(sorted(_added(_told_of_job(new)), key=_path))
    before, after = render(old), render(new)
    groups_before, groups_after = before.pop("groups"), after.pop("groups")
    assert isinstance(groups_before, dict)
    assert isinstance(groups_after, dict)
    found = _leaves(diff(before, after))
    for name in sorted({**groups_before, **groups_after}):
        path = f"groups.{name}"
        if name not in groups_before:
            found.extend(_added(_told_of_group(new, name), path))
        elif name not in groups_after:
            gone = _added(_told_of_group(old, name), path)
            found.extend(Change(one.path, one.new, None) for one in gone)
        else:
            differing = diff(groups_before[name], groups_after[name])
            found.extend(
                Change(f"{path}.{one.path}", one.old, one.new) for one in _leaves(differing)
            )
    return tuple(sorted(found, key=_path))


def _path(change: Change) -> str:
    return change.path


def _leaves(differing: list[tuple[str, object, object]]) -> list[Change]:
    """What is a table on one side only is told field by field, too."""
    found: list[Change] = []
    for path, old, new in differing:
        if isinstance(new, dict) and new and old is None:
            found.extend(_added(new, path))
        elif isinstance(old, dict) and old and new is None:
            found.extend(Change(one.path, one.new, None) for one in _added(old, path))
        else:
            found.append(Change(path, old, new))
    return found


def _added(tree: Tree, path: str = "") -> Iterator[Change]:
    for key, value in tree.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from _added(value, inner)
        elif value not in (None, [], ""):
            yield Change(inner, None, value)


def _told_of_job(spec: JobSpec) -> Tree:
    groups: Tree = {name: _told_of_group(spec, name) for name in spec.groups}
    plain = render(JobSpec(name=spec.name, type=spec.type, groups={}))
    return {**_beyond(render(spec), plain), "groups": groups}


def _told_of_group(spec: JobSpec, name: str) -> Tree:
    plain = render(
        JobSpec(
            name=spec.name,
            type=spec.type,
            groups={name: GroupSpec(driver=spec.groups[name].driver)},
        )
    )
    own, default = render(spec)["groups"], plain["groups"]
    assert isinstance(own, dict)
    assert isinstance(default, dict)
    return _beyond(own[name], default[name])


def _beyond(tree: Tree, default: Tree) -> Tree:
    """Of `tree`, what is not as in `default`."""
    found: Tree = {}
    for key, value in tree.items():
        other = default.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            inner = _beyond(value, other)
            if inner:
                found[key] = inner
        elif value != other or key in _ALWAYS_TOLD:
            found[key] = value
    return found
