"""`cube volume`: where data is, who has a right to it, and its end, which only a person can ask for."""

from __future__ import annotations

import sys

import click

from cube.cli.context import Settings, command, group
from cube.cli.exits import FAILED, NOT_FOUND, USAGE, CommandError
from cube.cli.output import Style, age, answer, note, out, plural, raw, table
from cube.client.client import Client
from cube.client.errors import ApiProblem
from cube.model.views import NodeView

SHOWN_MAX = 3  # names of tasks in one row


@group("volume")
def volume() -> None:
    """Named volumes: where they are, and who uses them."""


@command("ls")
def volume_ls(settings: Settings) -> None:
    """The volumes of all slots, and those on the nodes' disks that no job has a right to any more."""
    client = settings.client
    if settings.output == "json":
        raw(client.read_raw("/v1/volumes", limit="1000"))
        return
    volumes = client.volumes()
    left = left_over(client, client.nodes())
    if settings.output == "name":
        for name in dict.fromkeys([*(one.name for one in volumes), *(name for _, name in left)]):
            out(name)
        return
    style = Style(settings)
    rows = []
    for one in volumes:
        used = ", ".join(one.tasks[:SHOWN_MAX]) or "–"
        where = one.node_name
        if one.node_status != "ready":
            where += f" ({style.state(one.node_status)})"
        rows.append(
            [one.name, where, f"{one.job}.{one.group}.{one.slot}", used, age(one.created_at)]
        )
    rows += [[name, node.name, "–", "–", "–"] for node, name in left]
    if rows:
        table(["VOLUME", "NODE", "BELONGS TO", "USED BY", "AGE"], rows)
    else:
        note("no volumes")
    if left:
        several = "belongs to no job" if len(left) == 1 else "belong to no job"
        note(f"{plural(len(left), 'volume')} {several} any more. next: cube volume rm NAME")


def left_over(client: Client, nodes: list[NodeView]) -> list[tuple[NodeView, str]]:
    """What is on the disks and no slot's; once for each host. Nodes that cannot say are told of."""
    found: dict[tuple[str, str], NodeView] = {}
    for node in nodes:
        if node.status in ("down", "left"):
            note(f"note: {node.name} is {node.status}; what is on its disk is not shown")
            continue
        try:
            there = client.node_volumes(node.name)
        except ApiProblem as problem:
            note(f"note: {node.name} does not say what is on its disk: {problem.detail}")
            continue
        host = node.http_address.rpartition(":")[0]
        for item in there.items:
            if not item.claims:
                found.setdefault((item.name, host), node)
    return [(node, name) for (name, _), node in sorted(found.items())]


@command("rm")
@click.argument("name", metavar="VOLUME")
@click.option("--node", "node_name", metavar="NODE", help="Where, if several nodes have one.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def volume_rm(settings: Settings, name: str, node_name: str | None, yes: bool) -> None:
    """Remove a volume that belongs to no job, with its data, for good."""
    client = settings.client
    node_name = node_name or _where(client, name)
    if not yes and sys.stdin.isatty():
        question = f"Remove volume {name} on {node_name} and all that is in it, for good?"
        if not click.confirm(question, err=True):
            raise CommandError(FAILED, "nothing was removed")
    answer(settings, client.remove_volume(node_name, name))
    note(f"volume {name} on {node_name} is gone. next: cube volume ls")


def _where(client: Client, name: str) -> str:
    """The one node whose disk has it. Raises CommandError: none, several, or slots have it."""
    owned = [one for one in client.volumes() if one.name == name]
    places = [node.name for node, found in left_over(client, client.nodes()) if found == name]
    if len(places) == 1:
        return places[0]
    if len(places) > 1:
        raise CommandError(
            USAGE, f"{len(places)} nodes have a volume {name}; say which",
            hint="\n".join(f"cube volume rm {name} --node {place}" for place in places),
        )  # fmt: skip
    if owned:
        return owned[0].node_name  # the node says why not
    raise CommandError(NOT_FOUND, f"there is no volume {name}", hint="cube volume ls")


for item in (volume_ls, volume_rm):
    volume.add_command(item)
