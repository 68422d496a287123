"""A JobSpec as the text of a job file, for people: what is a default is left out, units are written."""

from __future__ import annotations

import json
import re

from cube.model.jobfile import parse_tree
from cube.model.jobkeys import DURATION_KEYS, SIZE_KEYS
from cube.model.jobrender import Tree, render
from cube.model.spec import JobSpec
from cube.model.units import exact_duration, exact_size

LINE_CHARS_MAX = 88  # of a list on one line

# Tables whose keys are the user's own: values are text, whatever the key is called.
_OWN_NAMES = frozenset({"env", "labels", "meta"})
# What says of itself what it is, even where it is a default.
_ALWAYS = frozenset({"name", "type", "image", "command", "ports", "cron", "driver", "at_most_one"})
_ITEM_DEFAULTS: dict[str, Tree] = {
    "mounts": {"read_only": False, "size": 0},
    "checks": {
        "interval": 10.0, "timeout": 2.0, "start_period": 0.0, "healthy_after": 1,
        "unhealthy_after": 3, "on_failure": "restart",
    },
    "placement.affinities": {"weight": 50},
}  # fmt: skip
_PORT: Tree = {"target": None, "host": 0, "protocol": "tcp"}
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def job_toml(spec: JobSpec) -> str:
    """The job file. parse_toml(job_toml(spec).encode()) == spec for every spec of parse_tree."""
    whole = _table(_without_null(render(spec)))
    short = _short(whole)
    if parse_tree(short) != spec:  # a default that depends on what was left out
        short = whole
    return "\n".join(_job_lines(short)).strip() + "\n"


def _short(whole: Tree) -> Tree:
    """The tree without what parse_tree would fill in."""
    groups = _table(whole["groups"])
    skeleton: Tree = {key: whole[key] for key in ("name", "type", "cron") if key in whole}
    skeleton["groups"] = {
        name: {
            key: value
            for key, value in _table(group).items()
            if key in ("driver", "image", "command", "ports", "at_most_one") and value != []
        }
        for name, group in groups.items()
    }
    defaults = _table(_without_null(render(parse_tree(skeleton))))
    return _pruned(whole, defaults, "")


def _pruned(tree: Tree, defaults: Tree, path: str) -> Tree:
    found: Tree = {}
    for key, value in tree.items():
        inner = f"{path}.{key}" if path else key
        default = defaults.get(key)
        section = ".".join(inner.split(".")[2:])  # within a group
        if (key == "driver" and value == "docker") or value == [] == default:
            continue
        if (
            isinstance(value, dict)
            and isinstance(default, dict)
            and section != "ports"
            and key != "cron"
        ):
            below = _pruned(value, default, inner)
            if below or path == "groups":
                found[key] = below
        elif section == "ports":
            ports = {name: _without(_table(port), _PORT) for name, port in _table(value).items()}
            if ports:
                found[key] = ports
        elif isinstance(value, list) and section in _ITEM_DEFAULTS:
            if value:
                found[key] = [_without(_table(item), _ITEM_DEFAULTS[section]) for item in value]
        elif value != default or (key in _ALWAYS and path.count(".") < 2 and value is not False):
            found[key] = _pruned(value, {}, inner) if isinstance(value, dict) else value
    return found


def _without(item: Tree, defaults: Tree) -> Tree:
    return {
        key: value for key, value in item.items() if key not in defaults or value != defaults[key]
    }


def _without_null(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_null(one) for key, one in value.items() if one is not None}
    return [_without_null(one) for one in value] if isinstance(value, list) else value


def _table(value: object) -> Tree:
    assert isinstance(value, dict)
    return value


# -- text -------------------------------------------------------------------------------------


def _job_lines(tree: Tree) -> list[str]:
    rest = {key: value for key, value in tree.items() if key != "groups"}
    lines = _lines("", rest)
    for name, group in _table(tree["groups"]).items():
        lines += ["", *_lines(f"groups.{_key(name)}", _table(group), always=True)]
    return lines


def _lines(path: str, tree: Tree, *, always: bool = False) -> list[str]:
    """The table at `path`: its values first, then the tables in it."""
    plain = {key: value for key, value in tree.items() if not _is_section(key, value)}
    lines = [f"[{path}]"] if path and (plain or always) else []
    last = path.rpartition(".")[2]
    for key, value in plain.items():
        unit = "" if last in _OWN_NAMES else key
        lines.append(f"{_key(key)} = {_value(unit, value)}")
    for key, value in tree.items():
        inner = f"{path}.{_key(key)}" if path else _key(key)
        if key in plain:
            continue
        if isinstance(value, dict):
            if value or path.endswith(".ports"):
                inside = _lines(inner, value, always=path.endswith(".ports"))
                lines += ["", *inside] if not path else inside
            continue
        assert isinstance(value, list)
        for item in value:
            lines += [f"[[{inner}]]"]
            lines += [f"{_key(name)} = {_value(name, one)}" for name, one in _table(item).items()]
    return lines


def _is_section(key: str, value: object) -> bool:
    if isinstance(value, dict):
        return key not in ("ulimits",) and set(value) != {"secret"}
    return isinstance(value, list) and key in ("mounts", "checks") and bool(value)


def _value(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        if key in SIZE_KEYS:
            return json.dumps(exact_size(int(value))) if value >= 1024 else str(int(value))
        if key in DURATION_KEYS:
            return json.dumps(exact_duration(round(value * 1000)))
        return repr(int(value) if isinstance(value, float) and value.is_integer() else value)
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(name)} = {_value(name, one)}" for name, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        items = [_value("", item) for item in value]
        line = f"[{', '.join(items)}]"
        if len(line) <= LINE_CHARS_MAX or len(items) < 2:
            return line
        return "[\n" + "".join(f"  {item},\n" for item in items) + "]"
    assert isinstance(value, str), value
    return _text(value)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)
