"""`cube cluster recover`: a cluster whose quorum is lost for good goes on from one survivor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cube.cli.context import Settings, command
from cube.cli.exits import CONFLICT, FAILED, NOT_FOUND, USAGE, CommandError
from cube.cli.output import clean, note, out, plural, raw
from cube.model.errors import BadPacket, Unavailable

if TYPE_CHECKING:
    from cube.agent.recovery import Findings, Recovery

UNPROVED_SHOWN = 10  # entries; their number is always told


@command("recover")
@click.option("--data-dir", metavar="DIR", required=True, help="Of the survivor; its agent is off.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def recover(settings: Settings, data_dir: str, yes: bool) -> None:
    """Go on from one survivor when a majority of the voters is lost for good.

    Offline: end the agent of the survivor first. Shows what its log holds and which entries cannot
    be proved, asks, and makes it the only voter of the cluster. All other nodes are left behind:
    they join anew, with empty data directories.
    """
    found = _open(Path(data_dir))
    try:
        findings = found.findings()
        if findings.is_finished:
            raise CommandError(
                CONFLICT, f"{findings.node} is the only voter of its cluster already",
                hint=f"cube agent --data-dir {data_dir}",
            )  # fmt: skip
        _show(findings)
        _confirm(findings, yes=yes)
        try:
            copy = found.carry_out()
        except OSError as error:
            raise CommandError(
                FAILED, f"cannot write in {data_dir}: {error.strerror or error}",
                "the log may be as it was, or be recovered at the next start of the agent",
                "make room, or mend the disk, and run this command again",
            ) from None  # fmt: skip
        except (BadPacket, Unavailable) as error:
            raise CommandError(FAILED, str(error)) from None
    finally:
        found.close()
    if settings.output == "json":
        raw(msgspec.json.encode({**msgspec.to_builtins(findings), "copy": str(copy)}))
    note(f"recovered: {findings.node or findings.raft_address} is the only voter now")
    if not findings.is_begun:
        note(f"the log as it was: {copy}")
    note(
        f"next: cube agent --data-dir {data_dir}   (as you started it before)\n"
        "then, on each other host: delete its data directory, and cube agent --join this node"
    )


def _open(data_dir: Path) -> Recovery:
    from cube.agent.recovery import NoDataDirectory, Recovery

    try:
        return Recovery(data_dir)
    except NoDataDirectory:
        raise CommandError(
            NOT_FOUND, f"{data_dir} is no data directory of a node in a cluster",
            hint="the directory that `cube agent` was given with --data-dir",
        ) from None  # fmt: skip
    except Unavailable as error:
        raise CommandError(
            CONFLICT, str(error), hint="end that agent first; its tasks go on"
        ) from None
    except BadPacket as error:
        raise CommandError(FAILED, str(error)) from None
    except OSError as error:
        raise CommandError(FAILED, f"cannot read {data_dir}: {error.strerror or error}") from None


def _show(findings: Findings) -> None:
    here = findings.node or findings.raft_address
    others = [name for name in findings.nodes if name != findings.node]
    left_voters = [name for name in findings.voters if name not in (here, findings.raft_address)]
    out(f"cluster    {findings.cluster_name}  {findings.cluster_id}")
    out(
        f"survivor   {here}  {findings.raft_address}"
        + ("" if findings.was_voter else "  (no vote)")
    )
    out(f"voters     {', '.join(findings.voters)}")
    out(
        f"kept       the log up to entry {findings.last_index} of term {findings.last_term}"
        f" (snapshot at {findings.snapshot_index}):"
    )
    out(
        f"           {plural(len(findings.jobs), 'job')}: {', '.join(findings.jobs) or '–'}\n"
        f"           {plural(findings.tasks_here, 'task')} on {here}, untouched;"
        f" {findings.tasks_elsewhere} on other nodes, which are placed anew"
    )
    out(
        f"proved     up to entry {findings.commit_index}, as last noted on this disk"
        " (up to a second before its end)"
    )
    out(
        f"unproved   {_entries(len(findings.unproved))} behind that: kept, and committed from now on"
    )
    for entry in findings.unproved[:UNPROVED_SHOWN]:
        out(f"           {entry.index} (term {entry.term})  {clean(entry.what)}")
    if len(findings.unproved) > UNPROVED_SHOWN:
        out(f"           … and {len(findings.unproved) - UNPROVED_SHOWN} more")
    if findings.torn_bytes:
        out(f"torn       {findings.torn_bytes} bytes that were being written, and told to nobody")
    out(
        "lost       what the others had committed and had not yet sent here: nobody can tell from here"
    )
    out(f"removed    {', '.join(others) or '–'}")
    if left_voters and not findings.is_begun:
        out(
            f"\nNever start {', '.join(left_voters)} again with the old data: together they are a"
            " majority of\nthe old voters, and would go on as a second cluster with the same jobs."
            " Delete their data\ndirectories first. One of them alone does nothing: it is told that"
            " it was removed.\nIf another survivor has a later entry than this one, recover that one"
            " instead, and no two."
        )


def _entries(count: int) -> str:
    return "no entries" if count == 0 else "1 entry" if count == 1 else f"{count} entries"


def _confirm(findings: Findings, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(
            USAGE, "this needs a person's consent, and there is no terminal to ask on",
            hint=f"cube cluster recover --data-dir {findings.data_dir} --yes",
        )  # fmt: skip
    here = findings.node or findings.raft_address
    if not click.confirm(f"\nMake {here} the only voter of a recovered cluster?", err=True):
        raise CommandError(FAILED, "nothing was changed")
