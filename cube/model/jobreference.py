"""What each driver makes of a group: the reference in docs/drivers.md. Keys and defaults are the model's
own; a test holds that none is missing here, and that the page is as this module writes it."""

from __future__ import annotations

from collections.abc import Iterator

from cube.model.allowed import (
    ALLOW_WORDS,
    CAPABILITIES,
    PROCESS_ALLOW_WORDS,
    USERS_DEFAULT,
)
from cube.model.jobfile import parse_tree
from cube.model.jobkeys import DURATION_KEYS, SIZE_KEYS
from cube.model.jobrender import render
from cube.model.spec import MountType
from cube.model.units import exact_size

SAME = "the same"
NONE = "refused"

# Key of a group: what the docker driver makes of it, what the process driver.
KEYS: dict[str, tuple[str, str]] = {
    "image": ("what is run, `name:tag` or `name@digest`; required", NONE),
    "command": (
        "the arguments, in place of the image's own",
        "required: the program and its arguments, never a shell's line",
    ),
    "entrypoint": ("the program, in place of the image's own", NONE),
    "env": (
        "added to the image's own. CUBE_* are Cube's",
        "besides it a process has PATH, HOME, LANG and nothing of the agent's",
    ),
    "user": (
        "`user`, `uid` or `user:group` of the image; else the image's",
        "of the host, one of `[drivers.process] users`; else `[drivers.process] user`, else the "
        "agent's own. root: `allow`",
    ),
    "working_dir": ("in the container", "else a directory of the task's own"),
    "stop_signal": ("sent to process 1 of the container", "sent to everything the task runs"),
    "stop_timeout": ("then the container is killed", "then everything of the task is killed"),
    "shutdown_delay": ("between leaving discovery and the signal; 2s with ports", SAME),
    "ulimits": ("`nofile = 1024` or `{ soft, hard }`; -1: unlimited", SAME),
    "resources.cpu": ("cores reserved, and the share under contention", SAME),
    "resources.cpu_max": ("a hard limit in cores", "the same, with cgroups"),
    "resources.memory": ("reserved; the limit too where there is no memory_max", SAME),
    "resources.memory_max": ("a hard limit", "the same, with cgroups"),
    "resources.disk": ("reserved only", "the limit of the task's own directory"),
    "resources.pids": ("a hard limit", "the same, with cgroups"),
    "ports.X.target": ("the port in the container", "not needed: a process reads CUBE_PORT_X"),
    "ports.X.host": ("published on the node's advertise address; 0: Cube picks one", SAME),
    "ports.X.protocol": ("tcp or udp", SAME),
    "mounts[].type": (", ".join(kind.value for kind in MountType), "secret and config only"),
    "mounts[].source": (
        "the volume, secret or config by its name; bind: a path of the host (`allow`)",
        "the secret or config by its name",
    ),
    "mounts[].target": ("a path in the container", "a name in the directory of its kind"),
    "mounts[].read_only": ("secrets and configs always are", NONE),
    "mounts[].mode": ("of a secret or config", SAME),
    "mounts[].uid": ("its owner, else the task's user", SAME),
    "mounts[].gid": ("its group, else the task's", SAME),
    "mounts[].size": ("of a tmpfs; 0: the engine's default", NONE),
    "docker.init": (
        "process 1 is `docker-init`, which passes signals on. Images with an init of their own that must "
        "be process 1 (s6-overlay, systemd) need `false`", NONE),
    "docker.privileged": ("all rights of the host (`allow`)", NONE),
    "docker.network_mode": (
        "`bridge` (the engine's default), `none`; `host` (`allow`); an existing network of the node or "
        "`container:NAME` (`allow`)", NONE),
    "docker.cap_add": ("capabilities; beyond the default ones (`allow`)", NONE),
    "docker.cap_drop": ("of the default ones; `ALL`: every one", NONE),
    "docker.devices": ("`/dev/x`, `/dev/x:/dev/y` or `/dev/x:/dev/y:rwm` (`allow`)", NONE),
    "docker.gpus": ("`all`, a number, or ids with commas (`allow`)", NONE),
    "docker.ulimits": ("the older place of `ulimits`", NONE),
    "docker.shm_size": ("of /dev/shm; 0: the engine's default", NONE),
    "docker.memory_swap": ("swap beside the memory limit", NONE),
    "docker.read_only": ("the root file system", NONE),
    "docker.security_opt": ("`no-new-privileges` is always set; others (`allow`)", NONE),
    "docker.dns": ("servers", NONE),
    "docker.extra_hosts": ("`name:address` for /etc/hosts", NONE),
    "docker.hostname": ("else the container's id", NONE),
    "docker.labels": ("of the container; `cube.*` are Cube's", NONE),
    "docker.pull": (
        "`missing`: what is here is taken. `always`: the registry is asked what the tag means, when a "
        "version of the job first runs. `never`. One version runs one digest on every node. What a node "
        "has pulled for one job, with that job's login, is there for all: with `missing` and `never`, and "
        "of an image that is named by its digest, whoever may run jobs can run it, private or not", NONE),
    "docker.registry_secret": (
        "a secret with `user:password`, or the content of a docker config.json. Without it: the docker "
        "config of the agent's user, its credential helpers included", NONE),
}  # fmt: skip

# Where, how many, and what follows an end: no driver's business.
OTHERS = frozenset(
    {"count", "driver", "depends_on", "at_most_one", "on_partition", "lost_after", "checks", "restart",
     "reschedule", "update", "placement"}
)  # fmt: skip

ALLOWED: dict[str, str] = {
    "bind": "mounts of directories of the host",
    "cap_add": "capabilities beyond the default ones",
    "devices": "devices of the host",
    "gpus": "GPUs",
    "host_network": '`network_mode = "host"`',
    "network": "a network of the node by its name; with `host_network`, another container's, too",
    "privileged": "all rights of the host",
    "security_opt": "any option but `no-new-privileges`",
    "volumes": "named volumes that this cluster did not make: the engine may hold them for others",
}
PROCESS_ALLOWED: dict[str, str] = {
    "root": "tasks that ask to run as root, under a root agent; and so as anybody"
}
USERS = (
    "Whom tasks may run as, under a root agent (without one: as nobody but the agent). The account that "
    "`user` names is always among them. With `NAME` a task has the groups that NAME is in, and may name "
    "one of them as its own; any other group needs `NAME:GROUP` here. `*` is every account but root. A job "
    "names an account as it is written here: a name is not found by its number. Tasks that name nobody run "
    "as `user`, and without one as the agent itself: set it where people run jobs who are not root."
)


def defaults() -> dict[str, str]:
    """Of every key of a group, as people write it."""
    mounts: list[object] = [
        {"type": kind.value, "target": f"/{kind.value}"}
        | ({} if kind is MountType.TMPFS else {"source": "/x" if kind is MountType.BIND else "x"})
        for kind in MountType
    ]
    group: dict[str, object] = {"image": "x", "ports": {"x": {"target": 1}}, "mounts": mounts}
    spec = parse_tree({"name": "j", "type": "service", "groups": {"g": group}})
    tree = render(spec)["groups"]
    assert isinstance(tree, dict)
    found: dict[str, str] = {}
    for key, value in _flat(tree["g"], ""):
        found.setdefault(key.replace("ports.x.", "ports.X."), _written(key, value))
    for key in ("image", "ports.X.target", "mounts[].type", "mounts[].source", "mounts[].target"):
        found[key] = "required"
    return found


def _flat(tree: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else key)
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        for item in tree:
            yield from _flat(item, f"{path}[]")
    else:
        yield path, tree


def _written(key: str, value: object) -> str:
    last = key.rpartition(".")[2]
    if value in (None, [], {}):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and last in SIZE_KEYS and value:
        return f"`{exact_size(value)}`"
    if isinstance(value, float) and last in DURATION_KEYS:
        return f"`{value:g}s`"
    return f"`{value}`"


def reference() -> str:
    """The tables of docs/drivers.md."""
    values = defaults()
    lines = ["## Keys of a group", "", "| key | default | docker | process |", "|---|---|---|---|"]
    lines += [
        f"| `{key}` | {values[key]} | {docker} | {process} |"
        for key, (docker, process) in KEYS.items()
    ]
    lines += ["", "The same with both drivers, for they decide where and how often a task runs: "]
    lines[-1] += ", ".join(f"`{key}`" for key in sorted(OTHERS)) + "."
    kept = ", ".join(sorted(CAPABILITIES))
    lines += [
        "",
        "Capabilities that a container has by default; all others are dropped:",
        "",
        kept + ".",
    ]
    for driver, words, told in (
        ("docker", ALLOW_WORDS, ALLOWED),
        ("process", PROCESS_ALLOW_WORDS, PROCESS_ALLOWED),
    ):
        lines += ["", f"## [drivers.{driver}] allow", "", "| word | allows |", "|---|---|"]
        lines += [f"| `{word}` | {told[word]} |" for word in words]
    who = ", ".join(f"`{user}`" for user in USERS_DEFAULT)
    lines += ["", "## [drivers.process] users", "", f"Default: {who}. {USERS}"]
    return "\n".join(lines)
