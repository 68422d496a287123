"""Limits of single processes (setrlimit): `ulimits` of a group, whatever its driver."""

from __future__ import annotations

import difflib

from cube.model.spec import DriverName, Ulimit
from cube.model.treeread import Table

ULIMIT_MAX = (1 << 63) - 1
# What both the engine and the kernel know; each has one more that the other lacks.
_BOTH = frozenset(
    {"core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
     "rtprio", "rttime", "sigpending", "stack"}
)  # fmt: skip
ULIMIT_NAMES = {
    DriverName.DOCKER: _BOTH | {"locks"},
    DriverName.PROCESS: _BOTH | {"as"},
}


def read_ulimits(table: Table, driver: DriverName) -> tuple[Ulimit, ...]:
    """Sorted by name: their order means nothing, so two files that differ in it are equal."""
    names = ULIMIT_NAMES[driver]
    limits = []
    for name, value in table.entries(len(names), "limits"):
        if name not in names:
            near = difflib.get_close_matches(name[:32], sorted(names), n=1)
            hint = f"did you mean `{near[0]}`?" if near else ", ".join(sorted(names))
            table.error(name, f"is no limit of the {driver.value} driver", hint)
        elif isinstance(value, dict):
            inner = Table(table.errors, table.at(name), value)
            soft = inner.integer("soft", 0, -1, ULIMIT_MAX)
            hard = inner.integer("hard", soft, -1, ULIMIT_MAX)
            if not inner.has("soft"):
                inner.error("soft", "is required")
            elif hard != -1 and (soft > hard or soft == -1) and inner.ok("soft", "hard"):
                inner.error("soft", f"{soft} is more than hard = {hard}", "-1 means unlimited")
            inner.close()
            limits.append(Ulimit(name, soft, hard))
        else:
            number = table.integer(name, 0, -1, ULIMIT_MAX)
            limits.append(Ulimit(name, number, number))
    return tuple(sorted(limits, key=lambda limit: limit.name))
