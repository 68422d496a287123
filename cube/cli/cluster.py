"""Commands about the cluster itself: services, events, the dashboard's address."""

from __future__ import annotations

import datetime
import json

import click

from cube.cli.context import Settings, command, group
from cube.cli.output import Style, clean, note, now, out, raw, table

TAIL = 100  # as of `cube logs`


@group("service")
def service() -> None:
    """Where healthy tasks can be reached."""


@command("ls")
def service_ls(settings: Settings) -> None:
    """All services: job.group.port."""
    client = settings.client
    if settings.output == "json":
        raw(client.read_raw("/v1/services", limit="1000"))
        return
    services = client.services()
    if settings.output == "name":
        for found in services:
            out(found.name)
        return
    rows = [[s.name, s.protocol, " ".join(e.address for e in s.endpoints) or "–"] for s in services]
    table(["SERVICE", "PROTOCOL", "ENDPOINTS"], rows)


@command("resolve")
@click.argument("name", metavar="JOB.GROUP.PORT")
def service_resolve(settings: Settings, name: str) -> None:
    """The addresses of one service, a line each."""
    if settings.output == "json":
        raw(settings.client.read_raw(f"/v1/services/{name}"))
        return
    for endpoint in settings.client.service(name).endpoints:
        out(endpoint.address)


@command("events")
@click.option("-f", "--follow", is_flag=True, help="Go on as they come, until Ctrl-C.")
@click.option(
    "--topic",
    multiple=True,
    help="cluster, node, job, deployment, task, exec, secret or config.",
)
@click.option("--tail", type=click.IntRange(min=0), help="Events of the past (100).")
@click.option("--since", default="", help="All after this event id (index.n), as -o json shows it.")
def events(
    settings: Settings, follow: bool, topic: tuple[str, ...], tail: int | None, since: str
) -> None:
    """What happened lately, as far as the node remembers it; with -f, what happens."""
    style = Style(settings)
    if tail is None and not since:
        tail = TAIL
    is_silent = True
    for event in settings.client.events(topic, since, tail=tail, follow=follow):
        is_silent = False
        if settings.output == "json":
            out(json.dumps({"id": event.id, "event": event.name, "data": event.data}))
            continue
        if event.name == "reset":
            note("some events are missing" + ("; what follows is new" if follow else ""))
            continue
        told = event.data
        what = str(
            told.get("task") or told.get("job") or told.get("node") or told.get("name") or ""
        )
        word = str(told.get("state") or told.get("status") or "")
        why = clean(str(told.get("message") or told.get("reason") or ""))
        out(
            f"{_clock_time(told.get('at'))}  {event.name:<7} {what:<28} {told.get('kind', ''):<10} "
            f"{style.state(word)}  {why}".rstrip()
        )
    if is_silent:
        note("the node remembers no such events; -f waits for the next")


def _clock_time(at: object) -> str:
    """Of the leader's stamp, in this terminal's time zone."""
    if not isinstance(at, str):
        return "--:--:--"
    then = datetime.datetime.fromisoformat(at).astimezone()
    is_today = then.date() == now().astimezone().date()
    return f"{then:%H:%M:%S}" if is_today else f"{then:%Y-%m-%d %H:%M:%S}"


@command("ui")
def ui(settings: Settings) -> None:
    """Where the dashboard is."""
    seen = settings.client.status()
    http = seen.leader.http if seen.leader and seen.leader.http else None
    scheme = settings.client.scheme
    out(f"{scheme}://{http}/ui/" if http else "no leader; try any node's /ui/")
    if scheme == "https":
        note("it asks for an API token: the operator's is in the first node's data directory")


@command("version")
def version(settings: Settings) -> None:
    """The version of this program."""
    from cube import __version__

    out(
        json.dumps({"version": __version__}) if settings.output == "json" else f"cube {__version__}"
    )


for item in (service_ls, service_resolve):
    service.add_command(item)
