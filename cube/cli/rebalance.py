"""`cube rebalance`."""

from __future__ import annotations

import click

from cube.cli.context import Settings, command
from cube.cli.output import answer, note, plural, raw, table


@command("rebalance")
@click.option("--plan", is_flag=True, help="Only show what would be moved.")
def rebalance(settings: Settings, plan: bool) -> None:
    """Move tasks to where they are better off, a few at a time, each new one before its old one."""
    client = settings.client
    if plan and settings.output == "json":
        raw(client.read_raw("/v1/rebalance"))
        return
    if plan:
        found = client.rebalance_plan()
        if not found.moves:
            note("nothing would gain enough by a move")
            return
        rows = [
            [m.task, m.from_node, m.to_node, str(m.crowding or "–"), f"{m.use:.3f}"]
            for m in found.moves
        ]
        table(["TASK", "FROM", "TO", "CROWDING", "USE"], rows)
        more = " or more" if found.cut else ""
        doing = "this is being done" if found.running else "next: cube rebalance"
        note(f"{plural(len(found.moves), 'move')}{more}; {doing}")
        return
    started = client.start_rebalance()
    answer(settings, started)
    note("rebalancing" if started.changed else "it is under way already")
    note("next: cube rebalance --plan   cube ps")
