"""`cube raft snapshot`: the cluster's state as a file, and back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import msgspec

from cube.cli.context import Settings, command, group
from cube.cli.exits import CONFLICT, FAILED, NOT_FOUND, USAGE, CommandError
from cube.cli.output import note, out, plural, raw
from cube.model.errors import BadConfig, BadPacket, Unavailable
from cube.model.savedstate import (
    PREFIX_BYTES,
    DigestOf,
    SavedHeader,
    check,
    decode_head,
    head_bytes,
)
from cube.model.units import format_size

if TYPE_CHECKING:
    from cube.agent.restoring import Saved

READ_BYTES = 1 << 20


@group("snapshot")
def snapshot() -> None:
    """The cluster's state as a file: save, inspect, restore."""


@command("save")
@click.argument("file", metavar="FILE")
@click.option("--force", is_flag=True, help="Replace FILE when it is there.")
def save(settings: Settings, file: str, force: bool) -> None:
    """Save the cluster's state, through any node, with all that was committed before.

    FILE is there whole or not at all. Secrets in it are sealed with the cluster key, which is in
    keys.json of every node's data directory and not in FILE: keep a copy of one, elsewhere.
    """
    path = Path(file)
    if path.is_dir():
        raise CommandError(USAGE, f"{file} is a directory; name a file in it")
    if path.exists() and not force:
        raise CommandError(
            CONFLICT, f"{file} is there already", hint=f"cube raft snapshot save {file} --force"
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _new_file(partial) as target:
            header = _receive(settings.client.save_state(), target.write)
            target.flush()
            os.fsync(target.fileno())
        os.rename(partial, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise CommandError(FAILED, f"cannot write {file}: {error.strerror or error}") from None
    except BadPacket as error:
        raise CommandError(
            FAILED, f"what came is no whole state: {error}", hint=f"cube raft snapshot save {file}"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    _print(settings, header)
    note(
        "keep with it, but elsewhere: keys.json of any node's data directory (it opens the secrets)"
    )
    note(f"next: cube raft snapshot inspect {file}")


def _new_file(path: Path) -> BinaryIO:
    """For its owner only: it has the environment of every task."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


def _receive(pieces: Iterator[bytes], write: Callable[[bytes], object]) -> SavedHeader:
    """All of it was given to `write`, and is what its header says. Raises BadPacket."""
    head = b""
    header: SavedHeader | None = None
    found = DigestOf()
    for piece in pieces:
        write(piece)
        if header is not None:
            found.add(piece)
            continue
        head += piece
        if len(head) < PREFIX_BYTES or len(head) < head_bytes(head):
            continue
        header = decode_head(head)
        found.add(head[head_bytes(head) :])
    if header is None:
        header = decode_head(head)
    check(header, found)
    return header


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@command("inspect")
@click.argument("file", metavar="FILE")
def inspect(settings: Settings, file: str) -> None:
    """What a saved state is of, and whether it is whole. Needs no agent."""
    try:
        with open(file, "rb") as saved:
            pieces = iter(lambda: saved.read(READ_BYTES), b"")
            header = _receive(pieces, lambda _: None)
    except FileNotFoundError:
        raise CommandError(NOT_FOUND, f"there is no file {file}") from None
    except OSError as error:
        raise CommandError(USAGE, f"cannot read {file}: {error.strerror}") from None
    except BadPacket as error:
        raise CommandError(FAILED, f"{file}: {error}") from None
    _print(settings, header)


def _print(settings: Settings, header: SavedHeader) -> None:
    if settings.output == "json":
        raw(msgspec.json.encode(header))
        return
    from cube.cli.output import clean

    at = _time(header.saved_at_ms)
    out(f"cluster    {clean(header.cluster_name)}  {clean(header.cluster_id)}")
    out(f"state      at index {header.index}, term {header.term}, saved {at}")
    out(
        f"           {plural(header.jobs, 'job')}, {plural(header.nodes, 'node')}, "
        f"{plural(header.tasks, 'task')}, {format_size(header.size)}"
    )
    out(f"digest     {clean(header.digest)}")


def _time(at_ms: int) -> str:
    import datetime

    at = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


@command("restore")
@click.argument("file", metavar="FILE")
@click.option("--data-dir", metavar="DIR", required=True, help="Empty; its agent is off.")
@click.option("--keys", metavar="KEYS", help="keys.json of a node of the cluster; else DIR has it.")
@click.option("--force", is_flag=True, help="Move aside what DIR holds.")
@click.option("--insecure", is_flag=True, help="As for the agent that will start in DIR.")
@click.option("--config", metavar="FILE", help="As for the agent that will start in DIR.")
@click.option("--bind", metavar="A", help="As for the agent that will start in DIR.")
@click.option("--advertise", metavar="A", help="As for the agent that will start in DIR.")
@click.option("--raft", type=int, metavar="P", help="As for the agent that will start in DIR.")
def restore(
    settings: Settings, file: str, data_dir: str, keys: str | None, force: bool,
    config: str | None, insecure: bool, **places: Any,
) -> None:  # fmt: skip
    """Make a cluster of one node from a saved state, offline.

    DIR becomes the data directory of a new node, the only voter of the same cluster: same id, CA
    and jobs. No node of before is in it; they join anew, with empty data directories. The secrets
    of the state are sealed with the cluster key, which FILE does not have: it is in keys.json of
    every node, so a copy of one is needed.
    """
    saved = _read(file)
    raft_address, names = _places(config, {**places, "data_dir": data_dir, "insecure": insecure})
    aside = _restore(
        saved, data_dir, raft_address, names, keys, file, is_insecure=insecure, is_forced=force
    )
    _print(settings, saved.header)
    if aside is not None:
        note(f"what was in {data_dir}: {aside}")
    given = "".join(f" --{name} {value}" for name, value in places.items() if value is not None)
    given = (" --insecure" if insecure else "") + given
    given += f" --config {config}" if config else ""
    note(f"restored: {data_dir} is a new node's, at Raft address {raft_address}, and leads alone")
    note(
        "Never start nodes of the old cluster again with their old data: they would be a second"
        " cluster\nwith the same jobs. Delete their data directories first."
    )
    note(f"next: cube agent --data-dir {data_dir}{given}")


def _read(file: str) -> Saved:
    from cube.agent.restoring import read_saved

    try:
        return read_saved(Path(file))
    except FileNotFoundError:
        raise CommandError(NOT_FOUND, f"there is no file {file}") from None
    except OSError as error:
        raise CommandError(USAGE, f"cannot read {file}: {error.strerror}") from None
    except BadPacket as error:
        raise CommandError(FAILED, f"{file}: {error}") from None


def _places(config_file: str | None, flags: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The Raft address that the agent will have, and the names it will be found at."""
    from cube.agent.trust import host_names
    from cube.config import load
    from cube.model.addresses import join_address

    try:
        config = load(config_file, os.environ, flags)
    except BadConfig as bad:
        raise CommandError(
            USAGE, "this is no configuration of an agent",
            "\n".join(str(error) for error in bad.errors),
        ) from None  # fmt: skip
    bind = config.bind
    return join_address(bind.advertise or bind.address, bind.raft), host_names(config)


def _restore(
    saved: Saved, data_dir: str, raft_address: str, names: tuple[str, ...], keys: str | None,
    file: str, *, is_insecure: bool, is_forced: bool,
) -> Path | None:  # fmt: skip
    from cube.agent.restoring import NoKeys, NotEmpty, restore

    again = f"cube raft snapshot restore {file} --data-dir {data_dir}"
    try:
        return restore(
            saved, Path(data_dir), raft_address, names, Path(keys) if keys else None,
            is_insecure=is_insecure, is_forced=is_forced,
        )  # fmt: skip
    except NotEmpty:
        raise CommandError(
            CONFLICT, f"{data_dir} is not empty",
            hint=f"{again} --force    (moves aside what is there)",
        ) from None  # fmt: skip
    except NoKeys:
        raise CommandError(
            USAGE, "the keys of the cluster are needed to restore its state",
            "the secrets in it are sealed with a key that is in keys.json of every node's data "
            "directory",
            f"{again} --keys KEYS.JSON",
        ) from None  # fmt: skip
    except Unavailable as error:
        raise CommandError(CONFLICT, str(error)) from None
    except BadPacket as error:
        raise CommandError(FAILED, str(error)) from None
    except FileNotFoundError as error:
        raise CommandError(NOT_FOUND, f"there is no file {error.filename}") from None
    except OSError as error:
        raise CommandError(
            FAILED, f"cannot write in {data_dir}: {error.strerror or error}",
            "no agent starts in it as it is now", f"{again}    (the same again)",
        ) from None  # fmt: skip


for item in (save, inspect, restore):
    snapshot.add_command(item)
