"""`cube token`, `cube cluster`: who may use the API, and how other hosts become nodes."""

from __future__ import annotations

import os
import secrets
import sys

import click

from cube.cli.context import Settings, command, group
from cube.cli.exits import CONFLICT, FAILED, USAGE, CommandError
from cube.cli.output import answer, note, out, raw, table
from cube.cli.recover import recover

SECRET_BYTES = 32  # of a new [cluster] secret_file, shown as hex
ROLES = ("viewer", "deployer", "operator")


@group("token")
def token() -> None:
    """Tokens for the API: who holds one may do what its role may."""


@command("create")
@click.option(
    "--role", type=click.Choice(ROLES), default="viewer", show_default=True,
    help="viewer reads, deployer runs jobs, operator does everything.",
)  # fmt: skip
@click.option("--lifetime", metavar="TIME", help="Such as 12h; without it, until it is removed.")
@click.option("--description", default="", help="For whom it is.")
def token_create(settings: Settings, role: str, lifetime: str | None, description: str) -> None:
    """A new token, printed this once."""
    made = settings.client.create_token(role, lifetime, description)
    answer(settings, made)
    if settings.output == "json":
        return
    out(made.token)
    until = f"until {made.expires_at}" if made.expires_at else "until it is removed"
    note(f"token {made.id}, {role}, {until}; it is not shown again")
    note(f"use it as CUBE_TOKEN or --token; cube token rm {made.id} ends it")


@command("ls")
def token_ls(settings: Settings) -> None:
    """All tokens, without their secrets."""
    client = settings.client
    if settings.output == "json":
        raw(client.read_raw("/v1/tokens", limit="1000"))
        return
    tokens = client.tokens()
    if settings.output == "name":
        for found in tokens:
            out(found.id)
        return
    rows = [
        [t.id, t.role, t.created_at or "–", t.expires_at or "never", t.description] for t in tokens
    ]
    table(["ID", "ROLE", "CREATED", "EXPIRES", "DESCRIPTION"], rows)


@command("rm")
@click.argument("id_", metavar="ID")
def token_rm(settings: Settings, id_: str) -> None:
    """The token opens nothing any more, at once."""
    settings.client.remove_token(id_)
    note(f"token {id_} is removed")


@group("cluster")
def cluster() -> None:
    """The cluster as a whole."""


@command("join-token")
@click.option("--rotate", is_flag=True, help="A new one; the old one is worth nothing at once.")
def join_token(settings: Settings, rotate: bool) -> None:
    """What to type on the next host."""
    shown = settings.client.join_token(rotate=rotate)
    answer(settings, shown)
    if settings.output == "json":
        return
    where = shown.join or "HOST:7700"
    if not shown.needed:
        out(f"cube agent --insecure --join {where}")
        note("with --insecure nobody is asked for a token")
        return
    out(f"cube agent --join {where} --token {shown.token} --advertise ITS-ADDRESS")
    note("who has the token can join; --rotate makes a new one")


@command("rotate-keys")
def rotate_keys(settings: Settings) -> None:
    """A new key for gossip. Nodes go over to it by themselves, without a gap. Secrets are sealed with
    another one, which stays."""
    changed = settings.client.rotate_keys()
    answer(settings, changed)
    note(f"gossip key {changed.key} is on its way; the old one goes once every node alive has it")
    note(
        "secrets stay sealed with the cluster's key, which is in keys.json of each node and is not renewed"
    )


@command("settings")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
def cluster_settings(settings: Settings, changes: tuple[str, ...]) -> None:
    """What all nodes agree on: policy, preemption=on|off, rebalance=on|off; and which finished tasks are
    kept: finished_per_slot=N, finished_for=DURATION (0: however old), finished_beyond=DURATION (of slots
    that are no longer wanted)."""
    given = dict(_setting(word) for word in changes)
    if not given and settings.output == "json":
        raw(settings.client.read_raw("/v1/cluster/settings"))
        return
    if given:
        changed = settings.client.change_settings(given)
        answer(settings, changed)
        if settings.output == "json":
            return
        shown = changed.settings
    else:
        shown = settings.client.settings()
    rows = [
        ["policy", shown.policy],
        ["preemption", "on" if shown.preemption else "off"],
        ["rebalance", "on" if shown.rebalance else "off"],
        ["finished_per_slot", str(shown.finished_per_slot)],
        ["finished_for", shown.finished_for],
        ["finished_beyond", shown.finished_beyond],
    ]
    table(["SETTING", "VALUE"], rows)


NUMBER_CHARS_MAX = 9  # of a setting; seconds where it is a duration
_SWITCH = {"on": True, "true": True, "off": False, "false": False}


_EXAMPLES = (
    "policy=epvm", "preemption=on", "rebalance=off", "finished_per_slot=5", "finished_for=7d",
    "finished_beyond=10m",
)  # fmt: skip
_KEYS = tuple(example.partition("=")[0] for example in _EXAMPLES)


def _setting(word: str) -> tuple[str, str | bool | int]:
    key, equals, value = word.partition("=")
    if key not in _KEYS or not equals:
        raise CommandError(USAGE, f"{word} is no setting", "", ", ".join(_EXAMPLES))
    is_number = value.isascii() and value.isdigit() and len(value) <= NUMBER_CHARS_MAX
    if key == "finished_per_slot" and not is_number:
        raise CommandError(USAGE, f"{key} is a number, not {value or 'nothing'}")
    if key.startswith("finished_") and is_number:
        return key, int(value)
    if key not in ("preemption", "rebalance"):
        return key, value
    if value not in _SWITCH:
        raise CommandError(USAGE, f"{key} is on or off, not {value or 'nothing'}")
    return key, _SWITCH[value]


@command("new-secret")
@click.argument("file", required=False, metavar="[FILE]")
def new_secret(settings: Settings, file: str | None) -> None:
    """A secret for [cluster] secret_file: the same file on every host of bootstrap_expect."""
    del settings
    text = secrets.token_hex(SECRET_BYTES) + "\n"
    if file is None or file == "-":
        sys.stdout.write(text)
        return
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CommandError(
            CONFLICT, f"{file} exists", "another host may have it already", "another file name"
        ) from None
    except OSError as error:
        code = USAGE if isinstance(error, FileNotFoundError | NotADirectoryError) else FAILED
        raise CommandError(code, f"cannot write {file}: {error.strerror}") from None
    with open(fd, "w", encoding="ascii") as written:
        written.write(text)
    note(f"{file} is written (0600); copy it to every host and name it in [cluster] secret_file")


for noun, items in (
    (token, (token_create, token_ls, token_rm)),
    (cluster, (cluster_settings, join_token, rotate_keys, new_secret, recover)),
):
    for item in items:
        noun.add_command(item)
