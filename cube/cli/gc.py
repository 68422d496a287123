"""`cube node gc`: what nodes could be rid of, and its end."""

from __future__ import annotations

import click

from cube.cli.context import Settings, command
from cube.cli.exits import FAILED, CommandError
from cube.cli.output import age, answer, clean, note, out, plural, raw, table
from cube.client.client import Client
from cube.client.errors import ApiProblem
from cube.model.gcviews import GcDiskView, GcDoneView, GcImageView, GcOutputView
from cube.model.units import format_size
from cube.model.views import NodeView

ID_CHARS = 12  # of an image without a name, as docker shows it


@command("gc")
@click.argument("name", required=False, metavar="[NODE]")
@click.option(
    "--plan", is_flag=True, help="Only show what would be removed, and what is kept and why."
)
def node_gc(settings: Settings, name: str | None, plan: bool) -> None:
    """Remove unused images that Cube pulled, and what forgotten tasks left, now: on a node, or on all."""
    client = settings.client
    nodes = [client.node(name)] if name else _that_can_be_asked(client)
    rows: list[list[str]] = []
    notes: list[str] = []
    failed: list[str] = []
    for node in nodes:
        try:
            if plan:
                problems = _plan(settings, client, node, rows, notes)
            else:
                problems = _clean(settings, client, node)
        except ApiProblem as problem:
            if name:
                raise
            problems = (problem.detail,)
        for text in problems:
            note(f"note: {node.name}: {clean(text)}")
        if problems:
            failed.append(node.name)
    if rows:
        table(["NODE", "", "WHAT", "NAME", "SIZE", "LAST USED", "WHY"], rows)
    for text in notes:
        note(text)
    if failed:
        what = "could not look at everything" if plan else "could not clean everything"
        raise CommandError(
            FAILED,
            f"{', '.join(failed)} {what}",
            hint="\n".join(f"cube node show {n}" for n in failed),
        )


def _that_can_be_asked(client: Client) -> list[NodeView]:
    found = []
    for node in client.nodes():
        if node.status in ("down", "left"):
            note(f"note: {node.name} is {node.status}; nothing is removed on it")
        else:
            found.append(node)
    return found


# -- the plan ---------------------------------------------------------------------------------------


def _plan(
    settings: Settings, client: Client, node: NodeView, rows: list[list[str]], notes: list[str]
) -> tuple[str, ...]:
    """Adds to what will be printed of all nodes. Returns what could not be looked at."""
    if settings.output == "json":
        raw(client.read_raw(f"/v1/nodes/{node.id}/gc"))
        return ()
    found = client.gc_plan(node.id)
    goes = [one for one in found.images if one.keep is None]
    left = [one for one in found.outputs if one.keep is None]
    if settings.output == "name":
        for text in [*(_name(one) for one in goes), *(one.task_id for one in left)]:
            out(text)
        return found.problems
    mine = [_image_row(one) for one in goes]
    mine += [["remove", "output", one.task_id, "–", "–", "its task is forgotten"] for one in left]
    mine += [_image_row(one) for one in found.images if one.keep is not None and one.names]
    if settings.output == "wide":
        mine += [_output_row(one) for one in found.outputs if one.keep is not None]
    rows += [[found.node, *row] for row in mine]
    if found.disk is not None:
        notes.append(f"{found.node}: {_disk(found.disk)}")
    if remembered := len(found.outputs) - len(left):
        notes.append(
            f"{found.node}: output of {plural(remembered, 'finished task')} stays while the cluster "
            "remembers the task (cube cluster settings)"
        )
    if goes or left:
        what = _counted(len(goes), len(left))
        notes.append(f"{found.node}: {what} would go. next: cube node gc {found.node}")
    elif not found.problems:
        notes.append(f"{found.node}: nothing to remove")
    return found.problems


def _disk(disk: GcDiskView) -> str:
    free = f"{format_size(disk.free_bytes)} of {format_size(disk.total_bytes)} free in {disk.path}"
    if disk.wanted_free_bytes is None:
        return f"{free}; images stay until they are removed by hand ([gc] image_disk_percent = 100)"
    least = format_size(disk.wanted_free_bytes)
    if disk.free_bytes < disk.wanted_free_bytes:
        return f"{free}, less than {least}: unused images go by themselves"
    return f"{free}; below {least} unused images go by themselves"


def _image_row(one: GcImageView) -> list[str]:
    used = "–" if one.used_at is None else f"{age(one.used_at)} ago"
    what = "remove" if one.keep is None else "keep"
    why = "nothing uses it" if one.keep is None else clean(one.keep)
    return [what, "image", _name(one), format_size(one.size_bytes), used, why]


def _output_row(one: GcOutputView) -> list[str]:
    ended = "–" if one.ended_at is None else f"{age(one.ended_at)} ago"
    return ["keep", "output", one.task or one.task_id, "–", ended, clean(one.keep or "")]


def _name(one: GcImageView) -> str:
    """Its tag, where it has one."""
    if not one.names:
        return one.id.removeprefix("sha256:")[:ID_CHARS]
    tags = [name for name in one.names if "@" not in name]
    return clean((tags or list(one.names))[0])


# -- and its end ------------------------------------------------------------------------------------


def _clean(settings: Settings, client: Client, node: NodeView) -> tuple[str, ...]:
    """What could not be cleaned."""
    images = outputs = freed_bytes = 0
    problems: dict[str, None] = {}
    while True:
        done = client.run_gc(node.id)
        answer(settings, done)
        images += len(done.images)
        outputs += len(done.outputs)
        freed_bytes += done.freed_bytes
        problems.update(dict.fromkeys(done.problems))
        if settings.output != "json":
            _print(settings, done)
        if not done.more:
            break
    if not images and not outputs and not problems:
        note(f"{node.name}: nothing was removed. next: cube node gc {node.name} --plan")
    elif images or outputs:
        freed = f"; {format_size(freed_bytes)} more are free" if images else ""
        note(f"{node.name}: {_counted(images, outputs)} removed{freed}")
    return tuple(problems)


def _print(settings: Settings, done: GcDoneView) -> None:
    is_bare = settings.output == "name"
    for image in done.images:
        size = format_size(image.size_bytes)
        out(_name(image) if is_bare else f"{done.node}  removed image {_name(image)}  {size}")
    for one in done.outputs:
        out(
            one.task_id
            if is_bare
            else f"{done.node}  removed output of {one.task_id}  {one.driver}"
        )


def _counted(images: int, outputs: int) -> str:
    parts = [plural(images, "image")] if images else []
    if outputs:
        parts.append(f"output of {plural(outputs, 'forgotten task')}")
    return " and ".join(parts)
