"""`cube plan`: what would come of a job file, of a drain, of the loss of a node."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click

from cube.cli.context import Settings, command
from cube.cli.exits import FAILED, OK, UNPLACED, USAGE, CommandError
from cube.cli.jobfiles import JobFiles, job_files, named, read_job, unnamed
from cube.cli.output import Style, answer, clean, note, out, plural, table
from cube.cli.why import print_explanations
from cube.model.jobkeys import DURATION_KEYS, SIZE_KEYS
from cube.model.planviews import (
    ChangeView,
    GroupEffectView,
    JobEffectView,
    JobPlanView,
    MoveView,
    NodePlanView,
)
from cube.model.units import exact_duration, exact_size
from cube.model.views import ExplanationView

ROWS_SHOWN = 100  # of a table of slots: more is for `-o json`
VALUE_CHARS_MAX = 60  # of a value in the list of changes
_ACTIONS = ("drain", "lose")


@command("plan")
@click.argument("words", nargs=-1, metavar="FILE|- | drain NODE | lose NODE")
@job_files
@click.option("--deadline", default="5m", help="Of the drain.")
@click.pass_context
def plan(
    ctx: click.Context,
    settings: Settings,
    words: tuple[str, ...],
    filenames: tuple[str, ...],
    format_: str | None,
    profiles: tuple[str, ...],
    deadline: str,
) -> None:
    """What a job file would change and where its tasks would go, or what would move when a node is
    drained or lost. Nothing is changed.

    Exit: 0 nothing would change, 1 something would. drain and lose: 0 everything finds a place, 3
    something does not.
    """
    if len(words) == 2 and words[0] in _ACTIONS and not filenames:
        ctx.exit(_plan_node(settings, words[0], words[1], deadline))
    if (not words and not filenames) or (len(words) > 1 and words[0] in _ACTIONS):
        raise CommandError(
            USAGE, f"{' '.join(words)!r} is nothing to plan" if words else "plan what?",
            hint=f"{unnamed('plan') or 'cube plan FILE'}\ncube plan drain NODE\ncube plan lose NODE",
        )  # fmt: skip
    ctx.exit(_plan_job(settings, named(words, filenames, format_, profiles, "plan")))


def _plan_job(settings: Settings, files: JobFiles) -> int:
    data, content_type = read_job(files)
    found = settings.client.plan_job(data, content_type)
    answer(settings, found)
    groups = [group for group in found.groups.values() if _changes(group)]
    code = FAILED if found.changed or groups else OK
    if settings.output == "json":
        return code
    for warning in found.warnings:
        note(f"warning: {warning}")
    style = Style(settings)
    _print_title(found)
    _print_changes(style, found.changes)
    if any(_changes(group) or group.unplaced for group in found.groups.values()):
        out()
        _print_groups(style, found.groups)
    _print_moves(style, found.moves, "")
    _print_rest(found.explanations, found.cut)
    if found.fails:
        out(f"so it would end: {clean(found.fails)}")
    for other in found.others:
        out()
        out(f"also changed: {other.job}")
        _print_moves(style, other.moves, f"{other.job}.")
        print_explanations(other.explanations, out)
    if code == OK:
        out(f"next: cube status {found.name}")
        return code
    out()
    out("to do exactly this, unless the job has moved on meanwhile (then exit 5):")
    out(f"  cube run --check-version {found.version} {files.words()}")
    return code


def _plan_node(settings: Settings, action: str, name: str, deadline: str) -> int:
    found = settings.client.plan_node(name, action, deadline)
    answer(settings, found)
    code = OK if found.fits else UNPLACED
    if settings.output != "json":
        _print_node_plan(settings, found)
    return code


def _print_node_plan(settings: Settings, found: NodePlanView) -> None:
    style = Style(settings)
    verb = "draining" if found.action == "drain" else "losing"
    if not found.jobs:
        out(f"{verb} {found.node} would change nothing")
    else:
        out(f"{verb} {found.node} would change {plural(len(found.jobs), 'job')}:")
        moves = [(job, move) for job in found.jobs for move in job.moves]
        _print_rows(style, [(f"{job.job}.{move.group}.{move.slot}", move) for job, move in moves])
    lacking = [job for job in found.jobs if job.displaced]
    if lacking:
        count = sum(job.displaced for job in lacking)
        out()
        out(f"{plural(count, 'task')} would find no place:")
        print_explanations(_of_displaced(lacking), out)
    elif found.jobs:
        out("everything that has to leave finds a place")
    if found.cut:
        out(f"note: {found.cut}")
    if found.action == "drain":
        out(f"next: cube node drain {found.node}")


def _of_displaced(jobs: Iterable[JobEffectView]) -> list[ExplanationView]:
    return [one for job in jobs for one in job.explanations]


def _changes(group: GroupEffectView) -> bool:
    return bool(group.create or group.stop or group.update_in_place or group.replace)


def _print_title(found: JobPlanView) -> None:
    if found.version == 0:
        out(f"job {found.name} is new:")
    elif not found.changed:
        out(f"job {found.name} v{found.version} is as the file says")
    elif not found.changes:
        out(f"job {found.name} v{found.version} is started again")
    else:
        out(f"job {found.name} v{found.version} → v{found.version + 1}:")


def _print_changes(style: Style, changes: Sequence[ChangeView]) -> None:
    width = max((len(change.path) for change in changes), default=0)
    for change in changes:
        path = f"{change.path:<{width}}"
        old, new = (_value(change.path, value) for value in (change.old, change.new))
        if change.old is None:
            out(style.paint(f"  + {path}  {new}", "green"))
        elif change.new is None:
            out(style.paint(f"  - {path}  {old}", "red"))
        else:
            out(style.paint(f"  ~ {path}  {old} → {new}", "yellow"))


def _value(path: str, value: object) -> str:
    """As a job file would say it, on one line."""
    key = path.rpartition(".")[2]
    if isinstance(value, str):
        text = value
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and ".env." not in path:
        if key in SIZE_KEYS:
            text = exact_size(int(value))
        elif key in DURATION_KEYS:
            text = exact_duration(round(value * 1000))
        else:
            text = f"{value:g}"
    else:
        text = json.dumps(value)
    text = clean(text.replace("\n", " "))
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 1] + "…"


def _print_groups(style: Style, groups: dict[str, GroupEffectView]) -> None:
    table(
        ["GROUP", "CREATE", "REPLACE", "IN PLACE", "STOP", "UNPLACED"],
        [
            [
                name,
                *(
                    str(number) if number else "–"
                    for number in (one.create, one.replace, one.update_in_place, one.stop)
                ),
                style.paint(str(one.unplaced), "red") if one.unplaced else "–",
            ]
            for name, one in groups.items()
        ],
    )


def _print_moves(style: Style, moves: Sequence[MoveView], prefix: str) -> None:
    _print_rows(style, [(f"{prefix}{move.group}.{move.slot}", move) for move in moves])


def _print_rows(style: Style, rows: Sequence[tuple[str, MoveView]]) -> None:
    """A slot that had no task and gets none is among what has no place, with the reasons."""
    rows = [(name, move) for name, move in rows if move.came_from or move.node]
    if not rows:
        return
    out()
    table(
        ["SLOT", "NOW", "THEN"],
        [
            [name, move.came_from or "–", move.node or style.paint("–", "red")]
            for name, move in rows[:ROWS_SHOWN]
        ],
    )
    if len(rows) > ROWS_SHOWN:
        out(f"… and {plural(len(rows) - ROWS_SHOWN, 'more slot')}: -o json has all")


def _print_rest(explanations: Sequence[ExplanationView], cut: str) -> None:
    if explanations:
        out()
        print_explanations(explanations, out)
    if cut:
        out(f"note: {cut}")
