"""`cube why`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from cube.cli.context import Settings, command
from cube.cli.output import Style, age, clean, out, plural, raw, table
from cube.client.client import Client
from cube.client.errors import ApiProblem
from cube.model.views import ExplanationView, ReasonView

NODES_SHOWN = 20
_SLOTS_SHOWN = 5


def print_explanations(
    explanations: Sequence[ExplanationView], line: Callable[[str], None]
) -> None:
    """Each cause with its nodes and reasons, then what would help."""
    for item in explanations:
        line(f"{_names(item)}: {clean(item.summary)}")
        for reason in item.reasons:
            line(f"  {clean(reason.message)}")
        width = max((len(node.node) for node in item.nodes), default=0)
        for node in item.nodes[:NODES_SHOWN]:
            told = "; ".join(_with_figures(reason) for reason in node.reasons) or "fits"
            line(f"  {node.node:<{width}}  {told}")
        if len(item.nodes) > NODES_SHOWN:
            line(f"  … and {plural(len(item.nodes) - NODES_SHOWN, 'more node')}")
        for number, suggestion in enumerate(item.suggestions):
            line(f"  {'try:' if number == 0 else '    '} {clean(suggestion)}")


def _with_figures(reason: ReasonView) -> str:
    """`not enough cpu (needs 0.1, 0.067 free)`; without what there is none of."""
    figures = [("needs ", reason.need), ("", reason.have)]
    told = ", ".join(word + text for word, text in figures if text and text not in reason.message)
    return clean(f"{reason.message} ({told})" if told else reason.message)


def _names(item: ExplanationView) -> str:
    names = [f"{item.job}.{item.group}.{slot}" for slot in item.slots[:_SLOTS_SHOWN]]
    if not names:
        return f"{item.job}.{item.group}"
    more = len(item.slots) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def job_of(client: Client, name: str) -> tuple[str, str | None]:
    """The job that a word names, and the task when it names one."""
    if "." not in name:
        try:
            return client.job(name).name, None
        except ApiProblem as problem:
            if problem.status != 404:
                raise
            missing = problem
        try:
            found = client.task(name)
        except ApiProblem:
            raise missing from None
        return found.job, found.id
    found = client.task(name)
    return found.job, found.id


@command("why")
@click.argument("name", metavar="JOB|TASK")
def why(settings: Settings, name: str) -> None:
    """Why a job or task is not running as wanted, node by node, and what would help."""
    client = settings.client
    job, task_id = job_of(client, name)
    if settings.output == "json":
        raw(client.read_raw(f"/v1/jobs/{job}/why"))
        return
    answer = client.why(job)
    explanations = answer.explanations
    if task_id is not None:
        task = client.task(task_id)
        explanations = tuple(
            item for item in explanations if item.group == task.group and task.slot in item.slots
        )
        _print_task(settings, task)
    print_explanations(explanations, out)
    if not explanations and task_id is None:
        style = Style(settings)
        out(f"{job} is {style.state(answer.status)}: every task is as it is wanted")
        out(f"next: cube ps {job}")


def _print_task(settings: Settings, task: Any) -> None:
    style = Style(settings)
    health = f", {task.health}" if task.health else ""
    place = f" on {task.node_name}" if task.node_name else ""
    out(f"{task.name} is {style.state(task.state)}{health}{place}")
    rows = [
        [age(entry.at), entry.state, str(entry.attempt), clean(entry.reason), clean(entry.message)]
        for entry in task.history
    ]
    if rows:
        table(["AGO", "STATE", "ATTEMPT", "REASON", "MESSAGE"], rows)
