"""`cube secret` and `cube config`: what the cluster keeps for jobs. A secret is never shown again."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from cube.cli.context import Settings, command, group
from cube.cli.exits import USAGE, CommandError
from cube.cli.output import age, answer, clean, note, out, plural, raw, table
from cube.model.stored import VALUE_BYTES_MAX


@group("secret")
def secret() -> None:
    """Passwords, keys and tokens that tasks need: sealed before they are stored, never shown again."""


@group("config")
def config() -> None:
    """Files of settings that tasks need; as secrets, but not sealed, and shown to who asks."""


def _set_command(kind: str) -> click.Command:
    @command("set")
    @click.argument("name")
    @click.argument("file", required=False, metavar="[FILE|-]")
    @click.option("--check-version", type=int, help="Only if this is its version; 0: it is new.")
    def set_(settings: Settings, name: str, file: str | None, check_version: int | None) -> None:
        value = _value(kind, name, file)
        changed = settings.client.store(kind, name, value, check_version)
        answer(settings, changed)
        if settings.output == "json":
            return
        if not changed.changed:
            note(f"{kind} {name} has this value already, at version {changed.version}")
            return
        note(f"{kind} {name} is at version {changed.version} ({plural(len(value), 'byte')})")
        if kind == "secret" and value.endswith(b"\n"):
            note(
                "it ends with a line break; if that is not part of it: printf %s … | cube secret set"
            )
        if changed.jobs:
            more = changed.job_count - len(changed.jobs)
            others = f" and {more} more" if more else ""
            note(f"rolled out anew because of it: {', '.join(changed.jobs)}{others}")
            note(f"cube deployment watch {changed.jobs[0]} shows how far it is")
        elif changed.version == 1:
            note(f'in a job file: mounts = [ {{ type = "{kind}", source = "{name}" }} ]')

    set_.help = (
        f"A new version of a {kind}, from a file, from standard input, or typed on a terminal. "
        "Services that use it are rolled out anew."
    )
    return set_


def _value(kind: str, name: str, file: str | None) -> bytes:
    try:
        if file is None and sys.stdin.isatty():
            if kind == "config":
                raise CommandError(
                    USAGE, f"no value for config {name}", "", f"cube config set {name} FILE"
                )
            typed: str = click.prompt(
                f"Value of {name} (not shown)", hide_input=True, confirmation_prompt=True, err=True
            )
            value = typed.encode()
        elif file is None or file == "-":
            value = sys.stdin.buffer.read(VALUE_BYTES_MAX + 1)
        else:
            with open(file, "rb") as opened:
                value = opened.read(VALUE_BYTES_MAX + 1)
    except OSError as error:
        raise CommandError(
            USAGE, f"cannot read {file}: {error.strerror}",
            "the second word names a file; a value is never typed on the command line, where others "
            "see it", f"printf %s … | cube {kind} set {name}",
        ) from None  # fmt: skip
    if len(value) > VALUE_BYTES_MAX:
        raise CommandError(
            USAGE, f"the value has more than {VALUE_BYTES_MAX} bytes",
            f"{kind}s are kept in the cluster's own log", "a volume, or an image, for what is larger",
        )  # fmt: skip
    if not value and kind == "secret":
        raise CommandError(
            USAGE, f"the value of {name} is empty", "", f"cube secret set {name} FILE"
        )
    return value


def _ls_command(kind: str) -> click.Command:
    @command("ls")
    def ls(settings: Settings) -> None:
        client = settings.client
        if settings.output == "json":
            raw(client.read_raw(f"/v1/{kind}s", limit="1000"))
            return
        found = client.stored(kind)
        if settings.output == "name":
            for one in found:
                out(one.name)
            return
        rows = [
            [one.name, str(one.version), str(one.size), age(one.modified_at), _short(one.used_by)]
            for one in found
        ]
        table(["NAME", "VERSION", "BYTES", "SET", "USED BY"], rows)

    ls.help = f"All {kind}s, without their values."
    return ls


def _short(names: tuple[str, ...]) -> str:
    if not names:
        return "–"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _show(settings: Settings, kind: str, name: str) -> None:
    client = settings.client
    if settings.output == "json":
        raw(client.read_raw(client.stored_path(kind, name)))
        return
    shown = client.stored_one(kind, name)
    out(f"{kind} {shown.name}, version {shown.version}")
    out(f"used by: {', '.join(shown.used_by) or 'nobody'}")
    rows = [
        [str(one.version), str(one.size), age(one.created_at), clean(one.actor)]
        for one in reversed(shown.versions)
    ]
    table(["VERSION", "BYTES", "SET", "BY"], rows)


@command("show")
@click.argument("name")
def secret_show(settings: Settings, name: str) -> None:
    """What is known of a secret; its value is not."""
    _show(settings, "secret", name)


@command("show")
@click.argument("name")
@click.option(
    "--version", "version", type=int, help="An older one; `cube config versions` has them."
)
def config_show(settings: Settings, name: str, version: int | None) -> None:
    """The config itself, byte for byte."""
    value = settings.client.config_value(name, version)
    sys.stdout.buffer.write(value)
    sys.stdout.flush()


@command("versions")
@click.argument("name")
def config_versions(settings: Settings, name: str) -> None:
    """Which versions of a config are kept, and who uses it."""
    _show(settings, "config", name)


def _rm_command(kind: str) -> click.Command:
    @command("rm")
    @click.argument("name")
    def rm(settings: Settings, name: str) -> None:
        removed = settings.client.remove_stored(kind, name)
        answer(settings, removed)
        note(f"{kind} {name} is removed")

    rm.help = f"Remove a {kind} with all its versions; refused while a job uses it."
    return rm


_MAKERS: tuple[Callable[[str], click.Command], ...] = (_set_command, _ls_command, _rm_command)
for noun, kind_, more in (
    (secret, "secret", (secret_show,)),
    (config, "config", (config_show, config_versions)),
):
    for item in (*(maker(kind_) for maker in _MAKERS), *more):
        noun.add_command(item)
