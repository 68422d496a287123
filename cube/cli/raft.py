"""`cube raft`: who holds the log, and copies of what it has made."""

from __future__ import annotations

import click

from cube.cli.context import Settings, command, group
from cube.cli.exits import FAILED, NO_CLUSTER, CommandError
from cube.cli.output import Style, answer, note, out, raw, table
from cube.cli.saved import snapshot
from cube.model.units import format_duration
from cube.model.views import RaftMemberView

ID_CHARS = 8  # of a node's id: enough to name it


@group("raft")
def raft() -> None:
    """The replicated log: who holds it, who leads."""


@command("members")
def raft_members(settings: Settings) -> None:
    """Who leads, who votes, who follows without a vote, and how far behind each is."""
    client = settings.client
    if settings.output == "json":
        raw(client.read_raw("/v1/raft"))
        return
    seen = client.raft()
    members = [*seen.voters, *seen.learners]
    if settings.output == "name":
        for member in members:
            out(member.name)
        return
    style = Style(settings)
    wide = settings.output == "wide"
    rows = [
        [
            (member.id or "–") if wide else (member.id or "–")[:ID_CHARS],
            member.name,
            member.address,
            style.paint(member.role, "cyan") if member.leader else member.role,
            _caught_up(member),
            "–" if member.silent_s is None else f"{_since(member.silent_s)} ago",
        ]
        for member in members
    ]
    table(["ID", "NODE", "ADDRESS", "ROLE", "LOG", "ANSWERED"], rows)
    note(f"term {seen.term}, commit {seen.commit_index}, applied here {seen.applied_index}")
    if seen.leader is None:
        note("no leader is known here. next: cube status")


def _caught_up(member: RaftMemberView) -> str:
    if member.lag is None:
        return "unknown"
    if member.lag == 0:
        return "all of it"
    entries = "entry" if member.lag == 1 else "entries"
    return f"{member.lag} {entries} behind" + ("" if member.caught_up else ", catching up")


def _since(seconds: float) -> str:
    """To the second above one: below it a voter answers all the time."""
    return format_duration(int(seconds) * 1000) if seconds >= 1 else f"{seconds:.1f}s"


@command("transfer")
@click.argument("name", metavar="[NODE]", required=False, default="")
def raft_transfer(settings: Settings, name: str) -> None:
    """Another node leads: NODE, if given, else any voter that has the whole log."""
    client = settings.client
    before = client.raft().leader
    wanted = client.node(name) if name else None
    seen = client.transfer_leadership(wanted.id if wanted else "")
    answer(settings, seen)
    leader = seen.leader
    if leader is None:
        raise CommandError(NO_CLUSTER, "nobody leads yet", hint="cube raft members")
    if wanted is not None and leader.id != wanted.id:
        raise CommandError(
            FAILED, f"{leader.name} leads, not {wanted.name}", "another election came in between",
            f"cube raft transfer {wanted.name}",
        )  # fmt: skip
    if before is None or leader.id != before.id:
        note(f"{leader.name} leads now" + (f", {before.name} did before" if before else ""))
    elif wanted is not None:
        note(f"{leader.name} leads already")
    else:
        raise CommandError(
            FAILED, f"{leader.name} leads again", "another election came in between",
            "cube raft transfer",
        )  # fmt: skip


for item in (raft_members, raft_transfer, snapshot):
    raft.add_command(item)
