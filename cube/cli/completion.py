"""`cube completion`."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """A script that completes cube's commands: eval "$(cube completion bash)"."""
    from click.shell_completion import get_completion_class

    from cube.cli.root import make_root

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(make_root(), {}, "cube", "_CUBE_COMPLETE").source())
