"""`cube node`."""

from __future__ import annotations

import click

from cube.cli.context import Settings, command, group
from cube.cli.exits import FAILED, INTERRUPTED, USAGE, CommandError
from cube.cli.gc import node_gc
from cube.cli.output import Style, age, answer, clean, note, out, plural, raw, table
from cube.model.launch import DISK_FACT, DISK_SHORT
from cube.model.units import format_size
from cube.model.views import NodeView


@group("node", invoke_without_command=True)
@click.pass_context
def node(ctx: click.Context) -> None:
    """Nodes: the hosts of this cluster."""
    if ctx.invoked_subcommand is None:  # the book's `cube node` lists them
        settings = ctx.find_object(Settings)
        assert settings is not None
        _list(settings)


@command("ls")
def node_ls(settings: Settings) -> None:
    """All nodes."""
    _list(settings)


def _list(settings: Settings) -> None:
    client = settings.client
    if settings.output == "json":
        raw(client.read_raw("/v1/nodes", limit="1000"))
        return
    nodes = client.nodes()
    if settings.output == "name":
        for found in nodes:
            out(found.name)
        return
    print_nodes(settings, nodes)
    if not any(found.role == "leader" for found in nodes):
        note("no leader: the others are shown as the last one left them. next: cube status")


def print_nodes(settings: Settings, nodes: list[NodeView]) -> None:
    """A line per node."""
    style = Style(settings)
    wide = settings.output == "wide"
    header = [
        "NODE",
        "ADDRESS",
        "STATUS",
        "ROLE",
        "CPU",
        "MEMORY",
        "TASKS",
        "DRIVERS",
        "AGE",
        "LABELS",
    ]
    header += ["ID", "VERSION"] if wide else []
    rows = []
    for found in nodes:
        status = style.state(found.status)
        if found.draining:
            status += ",draining"
        elif not found.eligible:
            status += ",cordoned"
        if _is_short(found):
            status += ",disk short"
        drivers = ",".join(name for name, info in sorted(found.drivers.items()) if info.healthy)
        memory = f"{format_size(found.reserved.memory)} / {format_size(found.capacity.memory)}"
        row = [
            found.name,
            found.http_address,
            status,
            style.paint(found.role, "cyan") if found.role == "leader" else found.role,
            f"{found.reserved.cpu:g}/{found.capacity.cpu:g}",
            memory,
            str(found.tasks),
            drivers or "–",
            age(found.joined_at),
            " ".join(f"{k}={v}" for k, v in sorted(found.labels.items())) or "–",
        ]
        rows.append(row + ([found.id, found.version] if wide else []))
    table(header, rows)


@command("show")
@click.argument("name", metavar="NODE")
def node_show(settings: Settings, name: str) -> None:
    """One node: what it has, what is reserved, its drivers and its tasks."""
    from cube.cli.tasks import present, print_tasks

    client = settings.client
    found = client.node(name)
    if settings.output == "json":
        raw(client.read_raw(f"/v1/nodes/{found.id}"))
        return
    print_nodes(settings, [found])
    for driver, info in sorted(found.drivers.items()):
        facts = " ".join(f"{k}={clean(v)}" for k, v in sorted(info.attributes.items()))
        out(f"  {driver}: {'healthy' if info.healthy else clean(info.reason)}  {facts}".rstrip())
    tasks = present(client.tasks(node=found.id))
    if tasks:
        out()
        print_tasks(settings, tasks)
    if _is_short(found):
        note(f"its disk is nearly full. next: cube node gc {found.name} --plan")


def _is_short(node: NodeView) -> bool:
    return any(info.attributes.get(DISK_FACT) == DISK_SHORT for info in node.drivers.values())


@command("drain")
@click.argument("name", metavar="NODE")
@click.option("--deadline", default="5m", help="After this, what is left is stopped.")
@click.option("--detach", is_flag=True, help="Do not wait until the tasks have moved.")
def node_drain(settings: Settings, name: str, deadline: str, detach: bool) -> None:
    """Move a node's tasks elsewhere, as their groups' update policies say, and place none there."""
    from cube.cli.drain import DrainWatch

    client = settings.client
    changed = client.drain(name, deadline)
    answer(settings, changed)
    undrain = f"cube node undrain {changed.name}"
    note(f"{changed.name} drains. {undrain} ends it")
    if detach:
        note(f"next: cube node show {changed.name}")
        return
    watch = DrainWatch(client, changed.id, changed.name, settings.timeout_s)
    try:
        moved = watch.until_empty()
    except KeyboardInterrupt:
        note(f"\n{changed.name} goes on draining without us. next: cube node show {changed.name}")
        raise click.exceptions.Exit(INTERRUPTED) from None
    note(f"{plural(moved, 'task')} moved away from {changed.name}")
    if watch.staying:
        note(f"until the deadline stay {', '.join(watch.staying)}")
    note(f"next: {undrain}   cube node rm {changed.name} once it is down")


@command("undrain")
@click.argument("name", metavar="NODE")
def node_undrain(settings: Settings, name: str) -> None:
    """End a drain."""
    changed = settings.client.end_drain(name)
    answer(settings, changed)
    note(
        f"{changed.name} takes tasks again" if changed.changed else f"{changed.name} did not drain"
    )


@command("cordon")
@click.argument("name", metavar="NODE")
def node_cordon(settings: Settings, name: str) -> None:
    """Place no new tasks on a node; those it has stay."""
    changed = settings.client.set_eligible(name, False)
    answer(settings, changed)
    note(f"{changed.name} is cordoned. next: cube node uncordon {changed.name}")


@command("uncordon")
@click.argument("name", metavar="NODE")
def node_uncordon(settings: Settings, name: str) -> None:
    """A node takes new tasks again."""
    changed = settings.client.set_eligible(name, True)
    answer(settings, changed)
    note(f"{changed.name} takes tasks again")


@command("label")
@click.argument("name", metavar="NODE")
@click.argument("labels", nargs=-1, required=True, metavar="K=V... K-")
def node_label(settings: Settings, name: str, labels: tuple[str, ...]) -> None:
    """Set labels (K=V) or take them away (K-)."""
    client = settings.client
    wanted = dict(client.node(name).labels)
    for text in labels:
        key, equals, value = text.partition("=")
        if equals and key:
            wanted[key] = value
        elif text.endswith("-") and len(text) > 1:
            wanted.pop(text[:-1], None)
        else:
            raise CommandError(
                USAGE, f"{text!r} is neither K=V nor K-", hint=f"cube node label {name} zone=a"
            )
    changed = client.set_labels(name, wanted)
    answer(settings, changed)
    note(
        f"{changed.name}: "
        + (" ".join(f"{k}={v}" for k, v in sorted(wanted.items())) or "no labels")
    )


@command("rm")
@click.argument("name", metavar="NODE")
def node_rm(settings: Settings, name: str) -> None:
    """Forget a node that is down for good."""
    changed = settings.client.remove_node(name)
    answer(settings, changed)
    if not changed.changed:
        raise CommandError(FAILED, f"{name} was not removed")
    note(f"{changed.name} is removed")


for item in (
    node_ls, node_show, node_drain, node_undrain, node_cordon, node_uncordon, node_label, node_gc,
    node_rm,
):  # fmt: skip
    node.add_command(item)
