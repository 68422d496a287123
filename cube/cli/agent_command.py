"""`cube agent`."""

from __future__ import annotations

import gc
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
    # What is loaded stays: to look through it for garbage, over and over while it grows, takes a
    # fifth of the time until the agent takes up its tasks again.
    gc.disable()
    try:
        from cube.agent.run import run
    except ImportError as error:
        from cube.cli.exits import complain

        complain(f"this installation lacks a library: {error.name}", hint="scripts/dev")
        return FAILED
    finally:
        gc.freeze()
        gc.enable()
    return run(config, flags)
