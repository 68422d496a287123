"""What every command has: the global options, a client, and the ways to print."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from cube.cli.exits import USAGE, CommandError

if TYPE_CHECKING:
    from cube.client.client import Client

ADDRESS_DEFAULT = "127.0.0.1:7700"
FORMATS = ("table", "wide", "json", "name")


class Settings:
    """Global options, given before or after the command; the later one wins."""

    def __init__(self) -> None:
        self.addr: str | None = None
        self.token: str | None = None
        self.cacert: str | None = None
        self.output = "table"
        self.no_color = False
        self.timeout: str | None = None
        self._client: Client | None = None

    def take(self, **given: Any) -> None:
        for name, value in given.items():
            if value not in (None, False):
                setattr(self, name, value)
        _ = self.timeout_s  # a wrong one is told before anything is done

    @property
    def client(self) -> Client:
        """Connected lazily; the addresses are --addr, CUBE_ADDR, or this machine's agent."""
        if self._client is None:
            self._client = self.another_client()
        return self._client

    def another_client(self) -> Client:
        """One of its own, for a thread."""
        from cube.client.client import Client
        from cube.client.credentials import find

        text = self.addr or os.environ.get("CUBE_ADDR") or ADDRESS_DEFAULT
        addresses = [part.strip() for part in text.split(",") if part.strip()]
        try:
            return Client(addresses, find(os.environ, token=self.token, ca_file=self.cacert))
        except ValueError as error:
            raise CommandError(USAGE, f"--addr: {error}") from None

    @property
    def timeout_s(self) -> float | None:
        """None: as long as it takes."""
        if self.timeout is None:
            return None
        from cube.model.units import parse_duration_ms

        text: str | float = self.timeout
        with contextlib.suppress(ValueError):
            text = float(self.timeout)  # a plain number is seconds
        try:
            return parse_duration_ms(text) / 1000
        except ValueError as error:
            raise CommandError(USAGE, f"--timeout: {error}") from None

    @property
    def colored(self) -> bool:
        """Standard output is a terminal that wants colours."""
        return (
            not self.no_color
            and not os.environ.get("NO_COLOR")
            and not os.environ.get("CUBE_NO_COLOR")
            and os.environ.get("TERM") != "dumb"
            and sys.stdout.isatty()
        )


GLOBAL_OPTIONS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--addr",), {"metavar": "URL", "help": "Agent to talk to; several, comma-separated."}),
    (("--token",), {"metavar": "TOKEN", "help": "API token (CUBE_TOKEN)."}),
    (("--cacert",), {"metavar": "FILE", "help": "The cluster's CA, ca.crt (CUBE_CACERT)."}),
    (("-o", "--output"), {"type": click.Choice(FORMATS), "help": "How to print."}),
    (("--no-color",), {"is_flag": True, "help": "No colours (NO_COLOR)."}),
    (("--timeout",), {"metavar": "TIME", "help": "How long to wait, such as 30s."}),
]
GLOBAL_NAMES = ("addr", "token", "cacert", "output", "no_color", "timeout")


def _add_global_options(command: click.Command) -> None:
    own = {option for parameter in command.params for option in parameter.opts}
    for names, values in GLOBAL_OPTIONS:
        if not own & set(names):
            command.params.append(click.Option(list(names), **values))


def _take_global_options(ctx: click.Context) -> Settings:
    settings = ctx.find_object(Settings)
    assert settings is not None
    settings.take(**{name: ctx.params.pop(name) for name in GLOBAL_NAMES if name in ctx.params})
    return settings


class Command(click.Command):
    """A command that takes the global options too. Its function gets Settings as `settings`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _add_global_options(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # so that the advice names this command's help
            raise

    def invoke(self, ctx: click.Context) -> Any:
        ctx.params["settings"] = _take_global_options(ctx)
        return super().invoke(ctx)


class Group(click.Group):
    """Commands about one noun. Global options may stand between the noun and the verb."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _add_global_options(self)

    def invoke(self, ctx: click.Context) -> Any:
        _take_global_options(ctx)
        return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0] if args else ""
        if word not in self.commands:
            near = difflib.get_close_matches(word, self.commands, n=1)
            known = (
                f"did you mean `{near[0]}`?" if near else f"it knows {', '.join(self.commands)}."
            )
            raise click.UsageError(f"`{ctx.command_path} {word}` is no command; {known}", ctx)
        return super().resolve_command(ctx, args)


def command(name: str, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Decorator: a Command of this name. The function's keyword `settings` is the Settings."""
    return click.command(name, cls=Command, **kwargs)


def group(name: str, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Group]:
    """Decorator: a Group of this name."""
    return click.group(name, cls=Group, **kwargs)
