"""`cube agent`."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from typing import Any

import click

from cube.cli.exits import FAILED


@click.command("agent")
@click.option("--insecure", is_flag=True, help="No encryption and no tokens; loopback only.")
@click.option("--config", metavar="FILE", help="Configuration (see cluster.example.toml).")
@click.option("--data-dir", metavar="DIR", help="Where this node keeps its state.")
@click.option("--join", multiple=True, metavar="HOST[:PORT]", help="A node of the cluster to join.")
@click.option("--token", metavar="T", help="Join token.")
@click.option("--name", metavar="N", help="This node's name; by default the host's.")
@click.option("--bind", metavar="A", help="Address to listen on.")
@click.option("--advertise", metavar="A", help="Address at which others reach this node.")
@click.option("--http", type=int, metavar="P", help="Port of the API and dashboard (7700).")
@click.option("--raft", type=int, metavar="P", help="Port of Raft (7701).")
@click.option("--gossip", type=int, metavar="P", help="Port of gossip, UDP and TCP (7702).")
@click.option("--label", multiple=True, metavar="K=V", help="A label of this node.")
def agent(config: str | None, **flags: Any) -> int:
    """Run this host's agent: the same command on every host.

    Without --join and with an empty data directory it makes a new cluster; with --join it joins
    one; with a data directory that was used before it goes on as the node that it was.
    """
    try:
        with _quick_loading():
            from cube.agent.run import run
    except ImportError as error:
        from cube.cli.exits import complain

        complain(f"this installation lacks a library: {error.name}", hint="scripts/dev")
        return FAILED
    return run(config, flags)


@contextlib.contextmanager
def _quick_loading() -> Iterator[None]:
    """Loading is most of the time until an agent takes its tasks up again; this spares a quarter of it.

    What is loaded stays: it is not looked through for garbage, over and over while it grows. And
    aiohttp does not read all of the system's CAs, for a context of its own that nothing here uses (an
    agent trusts its cluster's CA and no other): should anybody come to use it, it trusts nobody."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, os.devnull))
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
