"""The tree of commands. Knows each command's name and one sentence, and imports it only to run it."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from typing import Any

import click

from cube.cli.context import GLOBAL_OPTIONS, Settings
from cube.cli.exits import FAILED, INTERRUPTED, OK, USAGE, complain, report

# name → (module:attribute, sentence), in the order of the help.
COMMANDS: dict[str, tuple[str, str]] = {
    "agent": ("cube.cli.agent_command:agent", "Run this host's agent."),
    "dev": ("cube.cli.dev:dev", "A throw-away cluster on this machine, and its dashboard."),
    "run": ("cube.cli.run:run_command", "Submit a job and watch it become healthy."),
    "plan": ("cube.cli.plan:plan", "What a job file would change, or a node's drain or loss."),
    "status": ("cube.cli.status:status", "The cluster, or one job."),
    "ps": ("cube.cli.tasks:ps", "Tasks."),
    "logs": ("cube.cli.logs:logs", "What tasks print."),
    "exec": (
        "cube.cli.exec:exec_command",
        "Run a command in a task, with a terminal if you have one.",
    ),
    "cp": ("cube.cli.copy:cp", "Copy files out of a task, or into it."),
    "top": ("cube.cli.top:top", "What nodes and tasks use, live on a terminal."),
    "why": ("cube.cli.why:why", "Why a job or task is not running, and what would help."),
    "scale": ("cube.cli.jobs:scale", "Change how many tasks a group has."),
    "restart": (
        "cube.cli.deployments:restart",
        "Replace every task of a job, one after the other.",
    ),
    "rollback": ("cube.cli.deployments:rollback", "Go back to an older version of a job."),
    "deployment": (
        "cube.cli.deployments:deployment",
        "Rollouts: ls, show, watch, promote, pause, resume, fail.",
    ),
    "stop": ("cube.cli.jobs:stop", "Stop a job (it keeps its spec) or one task."),
    "start": ("cube.cli.jobs:start", "Start a stopped job again."),
    "rm": ("cube.cli.jobs:rm", "Stop a job and remove it."),
    "node": (
        "cube.cli.nodes:node",
        "Nodes: ls, show, drain, undrain, cordon, uncordon, label, gc, rm.",
    ),
    "job": ("cube.cli.jobs:job", "Jobs: ls, show, runs, trigger, validate, versions, init."),
    "rebalance": ("cube.cli.rebalance:rebalance", "Move tasks to where they are better off."),
    "task": ("cube.cli.tasks:task", "Tasks: show, restart, stop, signal."),
    "service": ("cube.cli.cluster:service", "Healthy endpoints: ls, resolve."),
    "events": ("cube.cli.cluster:events", "What happened lately; with -f, what happens."),
    "raft": ("cube.cli.raft:raft", "The replicated log: members, transfer, snapshot."),
    "secret": ("cube.cli.stored:secret", "Secrets of jobs: set, ls, show, rm."),
    "config": ("cube.cli.stored:config", "Configs of jobs: set, ls, show, versions, rm."),
    "token": ("cube.cli.trust:token", "Tokens for the API: create, ls, rm."),
    "cluster": (
        "cube.cli.trust:cluster",
        "The cluster as a whole: settings, join-token, rotate-keys, new-secret, recover.",
    ),
    "volume": ("cube.cli.volumes:volume", "Named volumes: ls, rm."),
    "ui": ("cube.cli.cluster:ui", "Where the dashboard is."),
    "version": ("cube.cli.cluster:version", "The version of this program."),
    "completion": ("cube.cli.completion:completion", "Shell completion: bash, zsh, fish."),
}
# Named in the design and not built yet: an honest answer instead of "no such command".
LATER = (
    "debug",
)  # fmt: skip
MOVED = {
    "manager": "Cube has one process, the same on every host: cube agent",
    "worker": "Cube has one process, the same on every host: cube agent",
}


class Root(click.Group):
    """Loads the module of the command that was asked for, and no other: that is what keeps it quick."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read our output has enough (`| head`): nothing more to say. Caught here, since
            # click would make it a failure.
            _drop_output()
            return OK

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        module, _, attribute = found[0].partition(":")
        loaded = getattr(importlib.import_module(module), attribute)
        assert isinstance(loaded, click.Command)
        return loaded

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name == "help":
            click.echo(self.get_help(ctx))
            ctx.exit(OK)
        if name in LATER:
            raise click.UsageError(f"`cube {name}` comes in a later version of Cube.")
        if name in MOVED:
            raise click.UsageError(MOVED[name])
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean `cube {near[0]}`?" if near else " `cube --help` lists them."
            raise click.UsageError(f"there is no command `{name}`.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])


@click.pass_context
def _root(ctx: click.Context, /, **given: Any) -> None:
    settings = ctx.ensure_object(Settings)
    settings.take(**given)


def make_root() -> Root:
    root = Root(
        "cube",
        callback=_root,
        params=[click.Option(list(names), **values) for names, values in GLOBAL_OPTIONS],
        help="Cube runs containers and processes on 1 to a few hundred hosts, and survives the "
        "loss of any of them.\n\nFirst steps: cube dev --run hello",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    root.params.append(
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version,
            help="The version of this program.",
        )
    )  # fmt: skip
    return root


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        from cube import __version__

        click.echo(f"cube {__version__}")
        ctx.exit(OK)


def run(arguments: list[str] | None = None) -> int:
    """The exit code of the command line."""
    from cube.cli.exits import CommandError

    _make_streams_safe()
    try:
        code = make_root().main(arguments, prog_name="cube", standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.Abort:
        sys.stderr.write("\n")
        return INTERRUPTED
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as asked:
        sys.stderr.write(asked.ctx.get_help() + "\n")
        return USAGE
    except click.ClickException as error:
        return _usage(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF):
            return report(error)
        _drop_output()
        complain(f"cannot write the output: {error.strerror}")
        return FAILED
    except CommandError as error:
        return report(error)
    except Exception as error:  # noqa: BLE001 - the boundary: told, or raised again by report()
        return report(error)
    return code if isinstance(code, int) else OK


def _make_streams_safe() -> None:
    """Printing never fails because of what is printed: a terminal without UTF-8 gets `?`, and a
    closed stream swallows."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - to the end
        elif name != "stdin" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """What could not be written is not tried again, with a traceback, when Python ends."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def _usage(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context is not None else "cube --help"
    complain(error.format_message(), hint=hint)
    return USAGE if isinstance(error, click.UsageError) else FAILED
