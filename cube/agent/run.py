"""`cube agent`: configuration in, a running node, an exit code out."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping

from cube.agent.agent import Agent, is_root
from cube.agent.garbage import keep_collections_short
from cube.config import Config, load
from cube.config.settings import HTTP_PORT
from cube.model.addresses import is_loopback, join_address
from cube.model.errors import BadConfig, BadPacket, Unavailable
from cube.model.places import OPERATOR_TOKEN_FILE, default_data_dir
from cube.model.trust import format_join_token
from cube.services.turns import take_short_turns

EXIT_FAILED = 1
EXIT_USAGE = 2

_log = logging.getLogger("cube")


def run(config_file: str | None, flags: Mapping[str, object]) -> int:
    """The exit code. The agent ran until SIGTERM or SIGINT (0), could not start or died (1), or its
    configuration is wrong (2)."""
    try:
        config = load(config_file, os.environ, flags)
    except BadConfig as error:
        for problem in error.errors:
            _complain(str(problem))
        return EXIT_USAGE
    taken = _taken_ports(config)
    for where, flag, why in taken:
        _complain(
            f"cannot listen on {where}: {why}",
            hint=f"another --{flag} port; or end what listens there, if it is another agent",
        )
    if taken:
        return EXIT_FAILED
    _configure_logging(config)
    keep_collections_short()
    take_short_turns()
    try:
        asyncio.run(_serve(config))
    except KeyboardInterrupt:
        return 0
    except BadConfig as error:
        for problem in error.errors:
            _complain(str(problem))
        return EXIT_USAGE
    except (Unavailable, BadPacket) as error:
        _complain(str(error))
        return EXIT_FAILED
    except BaseExceptionGroup as group:
        return _of_group(group)
    return 0


def _of_group(group: BaseExceptionGroup[BaseException]) -> int:
    """What could not be had is a sentence; anything else is a bug, and told as one."""
    expected, bugs = group.split((Unavailable, BadPacket, BadConfig))
    wrong = False
    for error in _leaves(expected) if expected is not None else ():
        wrong = wrong or isinstance(error, BadConfig)
        for problem in error.errors if isinstance(error, BadConfig) else (error,):
            _complain(str(problem))
    if bugs is not None:
        _log.critical("agent_died", exc_info=bugs)
    return EXIT_USAGE if wrong and bugs is None else EXIT_FAILED


def _taken_ports(config: Config) -> list[tuple[str, str, str]]:
    """(address, flag, reason) of each port that cannot be had. Asked before anything is made in the
    data directory: a cluster made at a wrong port would keep it."""
    bind = config.bind
    wanted = (
        ("http", bind.http, socket.SOCK_STREAM),
        ("raft", bind.raft, socket.SOCK_STREAM),
        ("gossip", bind.gossip, socket.SOCK_STREAM),
        ("gossip", bind.gossip, socket.SOCK_DGRAM),
    )
    taken: dict[str, tuple[str, str, str]] = {}
    for flag, port, kind in wanted:
        family = socket.AF_INET6 if ":" in bind.address else socket.AF_INET
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:  # what ended a moment ago is no obstacle
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((bind.address, port))
            except OSError as error:
                where = join_address(bind.address, port)
                taken[flag] = (where, flag, (error.strerror or str(error)).lower())
    return list(taken.values())


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    agent = Agent(config, is_root=is_root())
    await agent.run(stop, lambda ready: _announce(config, ready))


def _announce(config: Config, agent: Agent) -> None:
    scheme = "http" if config.insecure else "https"
    lines = [
        f"Cube agent {agent.name} is ready.",
        f"  API and dashboard  {scheme}://{agent.http_address}/ui/",
        f"  data directory     {config.node.data_dir}",
        *_next_host(config, agent),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _next_host(config: Config, agent: Agent) -> list[str]:
    """What to type for the next node. The token is shown once, by who has made the cluster."""
    if config.insecure:
        ports = "--data-dir DIR --http P --raft P --gossip P"
        return [f"  another node       cube agent --insecure --join {agent.http_address} {ports}"]
    if agent.join_token is None:
        return ["  another node       cube cluster join-token   (prints the line to paste there)"]
    lines = [
        f"  operator's token   {config.node.data_dir}/{OPERATOR_TOKEN_FILE}",
        *_where_to_look(config, agent),
        f"  on the next host   cube agent --join {agent.http_address} --token "
        f"{format_join_token(agent.join_token)} --advertise ITS-ADDRESS",
    ]
    if is_loopback(agent.advertise):
        lines.append(
            "  note: this node is reached from this host only; for other hosts start it with "
            "--advertise ADDRESS and an empty data directory"
        )
    return lines


def _where_to_look(config: Config, agent: Agent) -> list[str]:
    """What the command line needs to be told when not all is at its usual place."""
    told = []
    if config.node.data_dir != default_data_dir(os.environ, is_root=is_root()):
        told.append(f"CUBE_DATA_DIR={config.node.data_dir}")
    if agent.http_address != join_address("127.0.0.1", HTTP_PORT):
        told.append(f"CUBE_ADDR={agent.http_address}")
    return [f"  another terminal   export {' '.join(told)}"] if told else []


def _complain(what: str, why: str = "", hint: str = "") -> None:
    sys.stderr.write(f"error: {what}\n")
    if why:
        sys.stderr.write(f"  why: {why}\n")
    if hint:
        sys.stderr.write(f"  try: {hint}\n")


def _configure_logging(config: Config) -> None:
    logging.basicConfig(
        level=config.logs.level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    # Libraries speak up when something is wrong, not when it is not.
    for name in ("asyncio", "aiohttp", "docker", "urllib3", "pysyncobj"):
        logging.getLogger(name).setLevel(logging.WARNING)
