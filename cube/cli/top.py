"""`cube top`: who uses what, now."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence

import click
import msgspec

from cube.cli.context import Settings, command
from cube.cli.output import Style, clean, note, raw, table
from cube.client.client import Client
from cube.client.errors import ClientError
from cube.model.units import format_size
from cube.model.views import NodeView, TaskStatsView

REFRESH_S = 2.0
SAMPLE_S = 1.0  # between the two looks that make one table
# Key, order, its word: largest first, but names.
_SORTS = {"c": "cpu", "m": "memory", "i": "io", "w": "network", "p": "pids", "n": "name"}


class Row(msgspec.Struct, frozen=True):
    """Of one task. Rates are per second; None: nobody knows."""

    task: str
    id: str
    node: str
    cpu: float | None  # cores
    memory_bytes: int | None
    memory_limit_bytes: int | None
    pids: int | None
    read_rate: float | None = None
    written_rate: float | None = None
    received_rate: float | None = None
    sent_rate: float | None = None


class Sample(msgspec.Struct, frozen=True):
    nodes: tuple[NodeView, ...]
    tasks: dict[str, TaskStatsView]
    silent: tuple[str, ...]  # nodes that were not heard


@command("top")
@click.argument("job", required=False, metavar="[JOB]")
@click.option(
    "--sort", type=click.Choice(list(_SORTS.values())), default="cpu", help="By what (cpu)."
)
@click.option("--once", is_flag=True, help="One table, also on a terminal.")
def top(settings: Settings, job: str | None, sort: str, once: bool) -> None:
    """What nodes and tasks use: cpu, memory, input and output, processes. Live on a terminal: q ends
    it; c, m, i, w, p, n sort by cpu, memory, io, network, pids, name."""
    client = settings.client
    if job is not None:
        client.job(job)  # that it does not exist is an error, no empty list
    first = take(client, job)
    is_live = sys.stdout.isatty() and sys.stdin.isatty() and not once and settings.output != "json"
    if not is_live:
        time.sleep(SAMPLE_S)
        second = take(client, job)
        rows = sorted_rows(rates(first, second), sort)
        if settings.output == "json":
            raw(msgspec.json.encode({"nodes": second.nodes, "tasks": rows}))
            return
        show(settings, second, rows)
        for name in second.silent:
            note(f"cube: node {name} does not answer: its tasks are not shown")
        return
    _live(settings, client, job, sort, first)


def take(client: Client, job: str | None) -> Sample:
    """One request to each node that is not down."""
    nodes = tuple(client.nodes())
    tasks: dict[str, TaskStatsView] = {}
    silent = []
    for node in nodes:
        if node.status in ("down", "left"):
            continue
        try:
            found = client.node_stats(node.id)
        except ClientError:
            silent.append(node.name)
            continue
        for item in found.tasks:
            if job is None or item.name.partition(".")[0] == job:
                tasks[item.id] = item
    return Sample(nodes, tasks, tuple(silent))


def rates(before: Sample, now: Sample) -> list[Row]:
    """Each task of now, with what it used per second since before."""
    names = {node.id: node.name for node in now.nodes}
    rows = []
    for item in now.tasks.values():
        old = before.tasks.get(item.id)
        if old is not None and old.attempt != item.attempt:
            old = None  # another process or container, which counts from nothing

        rate = _rate_of(old, item)
        rows.append(
            Row(
                item.name, item.id, names.get(item.node_id, item.node_id),
                cpu=rate("cpu_seconds"), memory_bytes=item.memory_bytes,
                memory_limit_bytes=item.memory_limit_bytes, pids=item.pids,
                read_rate=rate("read_bytes"), written_rate=rate("written_bytes"),
                received_rate=rate("received_bytes"), sent_rate=rate("sent_bytes"),
            )
        )  # fmt: skip
    return rows


def _rate_of(old: TaskStatsView | None, item: TaskStatsView) -> Callable[[str], float | None]:
    def rate(name: str) -> float | None:
        if old is None or item.at_ms <= old.at_ms:
            return None
        value, earlier = getattr(item, name), getattr(old, name)
        if value is None or earlier is None or value < earlier:
            return None
        return float((value - earlier) * 1000 / (item.at_ms - old.at_ms))

    return rate


def sorted_rows(rows: Sequence[Row], by: str) -> list[Row]:
    def size(row: Row) -> float:
        match by:
            case "cpu":
                return row.cpu or 0
            case "memory":
                return row.memory_bytes or 0
            case "io":
                return (row.read_rate or 0) + (row.written_rate or 0)
            case "network":
                return (row.received_rate or 0) + (row.sent_rate or 0)
            case "pids":
                return row.pids or 0
            case _:
                return 0

    return sorted(rows, key=lambda row: (-size(row), row.task, row.id))


def show(settings: Settings, sample: Sample, rows: Sequence[Row]) -> None:
    """Nodes, then tasks."""
    style = Style(settings)
    table(
        ["NODE", "STATUS", "CPU", "OF", "MEMORY", "OF", "TASKS"],
        [
            [
                node.name, style.state(node.status),
                _number(None if node.used is None else node.used.cpu), f"{node.capacity.cpu:g}",
                _size(None if node.used is None else node.used.memory),
                format_size(node.capacity.memory), str(node.tasks),
            ]
            for node in sample.nodes
        ],
    )  # fmt: skip
    sys.stdout.write("\n")
    table(
        ["TASK", "NODE", "CPU", "MEMORY", "OF", "PIDS", "READ/S", "WRITTEN/S", "IN/S", "OUT/S"],
        [
            [
                clean(row.task), row.node, _number(row.cpu), _size(row.memory_bytes),
                _size(row.memory_limit_bytes), "–" if row.pids is None else str(row.pids),
                *(_size(rate) for rate in (
                    row.read_rate, row.written_rate, row.received_rate, row.sent_rate,
                )),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _size(value: float | None) -> str:
    return "–" if value is None else format_size(round(value))


def _live(settings: Settings, client: Client, job: str | None, sort: str, first: Sample) -> None:
    before, now, notice = first, first, ""
    with _screen():
        while True:
            rows = sorted_rows(rates(before, now), sort)
            height = shutil.get_terminal_size((80, 24)).lines - len(now.nodes) - 5
            sys.stdout.write("\x1b[H\x1b[J")
            show(settings, now, rows[: max(1, height)])
            silent = f"no answer from {', '.join(now.silent)}; " if now.silent else ""
            sys.stdout.write(f"\n{notice or silent}by {sort}; q ends, c m i w p n sort")
            sys.stdout.flush()
            key = _key(REFRESH_S)
            if key in ("q", "Q", "\x03", "\x04"):
                return
            if key in _SORTS:
                sort = _SORTS[key]
                continue
            if key:
                continue
            try:
                before, now, notice = now, take(client, job), ""
            except ClientError as error:
                notice = f"{error}; "[: shutil.get_terminal_size((80, 24)).columns - 40]


def _key(timeout_s: float) -> str:
    """What was typed within this time; empty: nothing."""
    fd = sys.stdin.fileno()
    if not select.select([fd], [], [], timeout_s)[0]:
        return ""
    return os.read(fd, 1).decode(errors="replace") or "q"  # its end is an end as well


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen, keys as they are typed; afterwards all is as it was."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        sys.stdout.write("\x1b[?1049h\x1b[?25l")
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
