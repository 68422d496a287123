"""One-task jobs: from the arguments of `cube run --image`, and from the book's own task JSON.

Both build a tree and let jobfile judge it, so that there is one set of rules. The errors of a book
task name the book's keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cube.model.errors import BadConfig, ConfigError
from cube.model.jobfile import parse_tree
from cube.model.jobgroup import NAME
from cube.model.spec import NAME_CHARS_MAX, DriverName, JobSpec
from cube.model.treeread import Errors, Table, as_text, shown
from cube.model.treetext import json_tree

GROUP = "main"  # the one group of a one-task job
BOOK_ID = "book.task.id"  # meta key: the id by which the book's client knows the task
BOOK_ID_CHARS_MAX = 64
BOOK_PORTS_MAX = 64

PENDING, SCHEDULED, RUNNING, COMPLETED, FAILED = range(5)
BOOK_STATES = {
    "pending": PENDING,
    "scheduled": SCHEDULED,
    "preparing": SCHEDULED,
    "starting": SCHEDULED,
    "running": RUNNING,
    "stopping": RUNNING,
    "completed": COMPLETED,
    "failed": FAILED,
    "rejected": FAILED,
    "lost": FAILED,
}

# The book's restart policies are Docker's. What is not always restarted may end: a batch job.
_POLICIES = {
    "always": ("service", "always"),
    "unless-stopped": ("service", "always"),
    "on-failure": ("batch", "on-failure"),
    "no": ("batch", "never"),
    "": ("batch", "never"),
}
# What the book's client may send and only its own worker ever sets. Accepted, and of no effect.
_IGNORED = (
    "State", "ContainerID", "HostPorts", "StartTime", "FinishTime", "RestartCount", "Timestamp",
)  # fmt: skip
_BOOK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_PORT_PROTOCOL = re.compile(r"([0-9]{1,5})(?:/(tcp|udp))?")
_PUBLISH = re.compile(r"(?:([0-9]{1,5}):)?([0-9]{1,5})(?:/(tcp|udp))?")


def simple_job(
    *,
    image: str = "",
    command: Sequence[str] = (),
    name: str = "",
    count: int = 1,
    publish: Sequence[str] = (),
    env: Sequence[str] = (),
) -> JobSpec:
    """The service that `cube run [--image I] [--name N --count C -p P -e K=V] [-- CMD]` means.

    Without an image it is a process. `publish` is HOST:TARGET, or TARGET alone (a container: on a
    host port that the scheduler picks; a process: the port it listens on), with /udp if need be; a
    word instead is the name of a port that the scheduler picks. Raises BadConfig.
    """
    errors = Errors()
    driver = DriverName.DOCKER if image else DriverName.PROCESS
    group: dict[str, object] = {"count": count, "driver": driver.value, "command": list(command)}
    if image:
        group["image"] = image
    elif not command:
        errors.add("command", "is required without --image", "write: cube run -- python3 app.py")
    group["ports"] = _published(errors, publish, driver)
    variables: dict[str, object] = {}
    for pair in env:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            errors.add("env", f"{shown(pair)} is not KEY=VALUE")
        variables[key] = value
    group["env"] = variables
    errors.raise_if_any()
    job = name or safe_name(_last_part(image) if image else _last_part(command[0])) or "job"
    return parse_tree({"name": job, "type": "service", "groups": {GROUP: group}})


def book_task(data: object) -> JobSpec:
    """The one-task job that the book's `POST /tasks` asks for: an event with its Task, or a Task.

    The job is named after Name, else after ID; meta[BOOK_ID] keeps the ID. Raises BadConfig.
    """
    tree = json_tree(data) if isinstance(data, bytes) else data
    errors = Errors()
    event = Table(errors, "", tree)
    if event.has("Task"):
        _ignore(event)
        event.text("ID", chars_max=BOOK_ID_CHARS_MAX)
        task = event.table("Task")
        event.close()
    else:
        task = event
    job = _book_job(task)
    task.close()
    errors.raise_if_any()
    try:
        return parse_tree(job)
    except BadConfig as error:
        raise BadConfig([_in_book_words(problem) for problem in error.errors]) from None


def book_state(state: str) -> int:
    """The book's number for one of our task states."""
    return BOOK_STATES[state]


def safe_name(text: str) -> str:
    """The text as a job's name as far as that is possible: `Test Chapter-9.1` is test-chapter-9-1."""
    name = re.sub(r"[^a-z0-9]+", "-", text[: 4 * NAME_CHARS_MAX].lower()).strip("-")
    return name[:NAME_CHARS_MAX].strip("-")


def _last_part(reference: str) -> str:
    """nginx of docker.io/library/nginx:1.27@sha256:…, python3 of /usr/bin/python3."""
    return re.split(r"[:@]", reference.rstrip("/").rpartition("/")[2])[0]


def _published(
    errors: Errors, publish: Sequence[str], driver: DriverName
) -> dict[str, dict[str, object]]:
    ports: dict[str, dict[str, object]] = {}
    for text in publish:
        match = _PUBLISH.fullmatch(text)
        if match is None:
            if driver is DriverName.PROCESS and NAME.fullmatch(text):
                ports[text] = {}
                continue
            errors.add("publish", f"{shown(text)} is not accepted", "write 8080:80, 80 or 53/udp")
            continue
        host, target, protocol = match[1], int(match[2]), match[3] or "tcp"
        port: dict[str, object] = {"target": target, "protocol": protocol}
        if host is not None:
            port["host"] = int(host)
        elif driver is DriverName.PROCESS:
            port["host"] = target
        name = str(target) if protocol == "tcp" else f"{target}-{protocol}"
        if name in ports:
            errors.add("publish", f"{target}/{protocol} is published more than once")
        ports[name] = port
    return ports


def _ignore(table: Table) -> None:
    for key in _IGNORED:
        table.raw(key)
    state = table.raw("State")
    if isinstance(state, int) and state >= COMPLETED:
        table.error("State", f"{shown(state)} is the end of a task", "DELETE /tasks/{id} stops it")


def _book_job(task: Table) -> dict[str, object]:
    _ignore(task)
    hint = "accepted: letters, digits and -"
    task_id = task.text("ID", pattern=_BOOK_ID, accepted=hint, chars_max=BOOK_ID_CHARS_MAX)
    name = safe_name(task.text("Name"))
    if not name and not task_id and task.ok("Name", "ID"):
        task.error("Name", "is required", "a task needs a Name or an ID")
    policy = task.text("RestartPolicy")
    if policy not in _POLICIES:
        accepted = ", ".join(word for word in _POLICIES if word)
        task.error("RestartPolicy", f"{shown(policy)} is not accepted", f"accepted: {accepted}")
    type_, restart = _POLICIES.get(policy, _POLICIES["always"])
    group: dict[str, object] = {
        "image": task.text("Image", required=True),
        "resources": _book_resources(task),
        "ports": _book_ports(task),
        "restart": {"policy": restart},
        "checks": [],
    }
    if path := task.text("HealthCheck"):
        group["checks"] = [{"type": "http", "path": path, "port": _first_tcp(task, group["ports"])}]
    return {
        "name": name or safe_name(f"task-{task_id}"),
        "type": type_,
        "meta": {BOOK_ID: task_id} if task_id else {},
        "groups": {GROUP: group},
    }


def _book_resources(task: Table) -> dict[str, object]:
    """Cpu in cores, Memory and Disk in bytes. The book's zero means: not said."""
    resources: dict[str, object] = {}
    for key, ours in (("Cpu", "cpu"), ("Memory", "memory"), ("Disk", "disk")):
        value = task.raw(key)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            task.error(key, "must be a number")
        elif value:
            resources[ours] = value
    return resources


def _book_ports(task: Table) -> dict[str, dict[str, object]]:
    ports: dict[str, dict[str, object]] = {}
    for key in ("ExposedPorts", "PortBindings"):
        table = task.table(key)
        for text, value in table.entries(BOOK_PORTS_MAX, "ports"):
            match = _PORT_PROTOCOL.fullmatch(text)
            if match is None:
                table.error(text, "is not a port", 'write "7777/tcp"')
                continue
            protocol = match[2] or "tcp"
            name = match[1] if protocol == "tcp" else f"{match[1]}-{protocol}"
            port = ports.setdefault(name, {"target": int(match[1]), "protocol": protocol})
            host = as_text(value) if key == "PortBindings" else ""
            if host is None or (host and not re.fullmatch(r"[0-9]{1,5}", host)):
                table.error(text, "is not bound to a port", 'write {"7777/tcp": "7777"}')
            elif host:
                port["host"] = int(host)
    return ports


def _first_tcp(task: Table, ports: object) -> str:
    if isinstance(ports, dict):
        for name, port in ports.items():
            if port["protocol"] == "tcp":
                return str(name)
    task.error("HealthCheck", "needs a tcp port", 'expose one in ExposedPorts: {"7777/tcp": {}}')
    return ""


_BOOK_WORDS = {
    f"groups.{GROUP}.image": "Image",
    f"groups.{GROUP}.resources.cpu": "Cpu",
    f"groups.{GROUP}.resources.memory": "Memory",
    f"groups.{GROUP}.resources.disk": "Disk",
    f"groups.{GROUP}.checks[0].path": "HealthCheck",
    "name": "Name",
}


def _in_book_words(error: ConfigError) -> ConfigError:
    path = _BOOK_WORDS.get(error.path, error.path)
    if path.startswith(f"groups.{GROUP}.ports."):
        path = "PortBindings" if path.endswith(".host") else "ExposedPorts"
    return ConfigError(path, error.problem, error.hint)
