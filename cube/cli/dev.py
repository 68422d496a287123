"""`cube dev`: a throw-away cluster of real agents, each a process of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import click

from cube.cli.context import Settings, command
from cube.cli.dev_leftovers import LOCK, PREFIX, end_agents, end_all, end_tasks, hold
from cube.cli.exits import FAILED, NOT_FOUND, CommandError
from cube.cli.output import Style, note, out, plural
from cube.cli.rollout import Watch, serves, tasks_gone, wait_until
from cube.client.client import Client
from cube.client.errors import ClientError
from cube.model.addresses import join_address

PORT_FIRST = 7700
PORT_STEP = 10  # http, raft, gossip, and room to see which node a port is of
PORT_CLAIM = 9  # of a block, bound as long as it is in use: two `cube dev` at once take two blocks
PORT_BLOCKS = 50  # tried in turn when other agents hold the first ports
NODES_MAX = 9  # more would share the same few cores to nobody's benefit
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START_S = 60.0
STOP_S = 15.0
QUIET_S = 2.0  # a wait that is longer is told


@dataclass
class DevAgent:
    """One agent of the throw-away cluster: where it listens, what it keeps, and its process."""

    name: str
    http: int
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.http}"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class DevCluster:
    directory: Path
    agents: list[DevAgent] = field(default_factory=list)
    claim: socket.socket | None = None  # of its block of ports
    is_complete: bool = False

    def client(self) -> Client:
        """Of those that still run: the user may kill some."""
        alive = [agent.address for agent in self.agents if agent.is_running]
        return Client(alive or [self.agents[0].address])


@command("dev")
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), default=3, help="How many agents (3).")
@click.option("--run", "job", metavar="NAME|FILE", help="A first job: hello, or a job file.")
@click.option("--keep", is_flag=True, help="Keep the data directory.")
def dev(settings: Settings, nodes: int, job: str | None, keep: bool) -> int:
    """A throw-away cluster on this machine: real agents, real Raft, real failures. Ctrl-C stops
    everything it started."""
    data = _job_bytes(job)
    end_all()
    cluster = DevCluster(Path(tempfile.mkdtemp(prefix=PREFIX)))
    hold(cluster.directory)
    for number in ENDING:  # SIGINT is ignored at first in a script's `&`
        signal.signal(number, _interrupt)
    code = 0
    try:
        note(f"Starting {plural(nodes, 'agent')} in {cluster.directory} …")
        _start(cluster, nodes)
        _print_drivers(cluster.client())
        if data is not None:
            _run_job(settings, cluster.client(), data)
        _print_cluster(settings, cluster, data is not None)
        _sleep_until_all_ended(cluster)
        note("every agent has ended")
        code = FAILED
    except KeyboardInterrupt:
        note("\nStopping everything …")
    finally:
        for number in ENDING:  # a second Ctrl-C must not leave tasks behind
            signal.signal(number, signal.SIG_IGN)
        _stop(cluster)
        if keep:
            (cluster.directory / LOCK).unlink(missing_ok=True)
            note(f"The data is kept in {cluster.directory}")
        else:
            shutil.rmtree(cluster.directory, ignore_errors=True)
    return code


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _job_bytes(job: str | None) -> bytes | None:
    if job is None:
        return None
    from importlib.resources import files

    packaged = files("cube") / "examples" / f"{job}.toml"
    if packaged.is_file():
        return packaged.read_bytes()
    try:
        return Path(job).read_bytes()
    except OSError as error:
        raise CommandError(
            NOT_FOUND, f"there is no job {job}: {error.strerror}", hint="cube dev --run hello"
        ) from None


# Start


def _start(cluster: DevCluster, nodes: int) -> None:
    base, cluster.claim = _claim_ports(nodes)
    if base != PORT_FIRST:
        note(f"Ports from {PORT_FIRST} on are in use, by another cluster perhaps: taking {base} …")
    for number in range(nodes):
        http = base + PORT_STEP * number
        agent = DevAgent(f"n{number + 1}", http, cluster.directory / f"n{number + 1}")
        cluster.agents.append(agent)
        agent.process = _spawn(agent, nodes, join=cluster.agents[0] if number else None)
    deadline = time.monotonic() + START_S
    while not _is_complete(cluster):
        dead = [agent for agent in cluster.agents if not agent.is_running]
        if dead:
            raise CommandError(FAILED, f"agent {dead[0].name} ended", _last_lines(dead[0]))
        if time.monotonic() > deadline:
            raise CommandError(
                FAILED,
                f"the cluster is not ready after {START_S:g} s",
                _last_lines(cluster.agents[0]),
            )
        time.sleep(0.1)
    cluster.is_complete = True


def _claim_ports(nodes: int) -> tuple[int, socket.socket]:
    """The first block of ports of which all are free, and the socket that claims it."""
    for block in range(PORT_BLOCKS):
        base = PORT_FIRST + 100 * block
        claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            claim.bind(("127.0.0.1", base + PORT_CLAIM))
        except OSError:
            claim.close()
            continue
        ports = [base + PORT_STEP * n + kind for n in range(nodes) for kind in range(3)]
        if all(_is_free(port) for port in ports):
            return base, claim
        claim.close()
    raise CommandError(FAILED, "no free ports found from 7700 on")


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def _spawn(agent: DevAgent, nodes: int, join: DevAgent | None) -> subprocess.Popen[bytes]:
    agent.directory.mkdir(mode=0o700)
    arguments = [sys.executable, "-m", "cube", *_arguments(agent)]
    if join is not None:
        arguments += ["--join", join.address]
    with (agent.directory / "agent.log").open("ab") as log:
        # A session of its own: the terminal's Ctrl-C is ours to act on, in our order.
        return subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, **_share(nodes)},
        )  # fmt: skip


def _arguments(agent: DevAgent) -> list[str]:
    return [
        "agent", "--insecure", "--data-dir", str(agent.directory), "--name", agent.name,
        "--http", str(agent.http), "--raft", str(agent.http + 1), "--gossip", str(agent.http + 2),
    ]  # fmt: skip


def _share(nodes: int) -> dict[str, str]:
    """Each node has its part of the host, so that three of them do not promise it three times."""
    cores = os.cpu_count() or 1
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "CUBE_NODE_CPU": f"{1000 * cores // nodes / 1000:.3f}",
        "CUBE_NODE_MEMORY": str(pages * page_bytes // nodes),
    }


def _is_complete(cluster: DevCluster) -> bool:
    """Every node is there, ready, and its process driver works."""
    try:
        with cluster.client() as client:
            nodes = client.nodes()
            return (
                len(nodes) == len(cluster.agents)
                and client.status().quorum
                and all(node.status == "ready" and "process" in node.drivers for node in nodes)
                and all(node.drivers["process"].healthy for node in nodes)
            )
    except ClientError:
        return False


def _last_lines(agent: DevAgent) -> str:
    try:
        lines = (agent.directory / "agent.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-5:])


def _print_drivers(client: Client) -> None:
    docker = client.nodes()[0].drivers.get("docker")
    if docker is not None and docker.healthy:
        version = docker.attributes.get("version", "")
        note(f"Docker Engine {version} found: docker jobs run, and plain processes too.")
    else:
        why = docker.reason if docker is not None else "switched off"
        note(f"No Docker ({why}): docker jobs wait, process jobs run.")


# The first job, and what to try


def _run_job(settings: Settings, client: Client, data: bytes) -> None:
    changed = client.submit(data)
    for warning in changed.warnings:
        note(f"warning: {warning}")
    note(f"Running {changed.name} …")
    Watch(client, changed.name, changed.version, settings.timeout_s).until_done()


def _print_cluster(settings: Settings, cluster: DevCluster, ran: bool) -> None:
    style = Style(settings)
    client = cluster.client()
    leader = client.status().leader
    out()
    for agent in cluster.agents:
        assert agent.process is not None
        role = style.paint("  leader", "cyan") if leader and leader.name == agent.name else ""
        out(f"  {agent.name}  pid {agent.process.pid}  http://{agent.address}/ui/{role}")
    tasks = [task for task in client.tasks() if serves(task)]
    for task in tasks:
        for port in task.ports.values():
            out(
                f"  {task.name} on {task.node_name}  http://{join_address(task.address or '?', port.host)}/"
            )
    survivor = next((a for a in cluster.agents if leader is None or a.name != leader.name), None)
    victim = next((a for a in cluster.agents if leader and a.name == leader.name), None)
    here = "" if cluster.agents[0].http == PORT_FIRST else f"--addr {cluster.agents[0].address} "
    out("\nTry, in another terminal:")
    out(f"  {_cube()} {here}ps")
    out(f"  {_cube()} {here}" + ("scale hello/web=5" if ran else "run --name hi -- sleep 1000"))
    if victim is not None and survivor is not None and victim.process is not None:
        out(f"  kill -9 {victim.process.pid}   # the leader; then ask another:")
        out(f"  {_cube()} --addr {survivor.address} node ls")
    out("\nCtrl-C stops everything.")
    sys.stdout.flush()


def _cube() -> str:
    """How this program is called here."""
    program = Path(sys.executable).parent / "cube"
    if shutil.which("cube") == str(program) or not program.exists():
        return "cube"
    try:
        return str(program.relative_to(Path.cwd()))
    except ValueError:
        return str(program)


def _sleep_until_all_ended(cluster: DevCluster) -> None:
    told: set[str] = set()
    while any(agent.is_running for agent in cluster.agents):
        for agent in cluster.agents:
            if not agent.is_running and agent.name not in told:
                told.add(agent.name)
                note(f"{agent.name} has ended; the others go on. To start it again:")
                note(f"  {_cube()} {shlex.join(_arguments(agent))}")
        time.sleep(0.2)


# Stop


def _stop(cluster: DevCluster) -> None:
    """No task, no agent is left: asked first, killed where that does not help."""
    if cluster.is_complete and any(agent.is_running for agent in cluster.agents):
        _end_jobs(cluster)
    for agent in cluster.agents:
        if agent.is_running and agent.process is not None:
            agent.process.terminate()
    deadline = time.monotonic() + STOP_S
    for agent in cluster.agents:
        if agent.process is None:
            continue
        try:
            agent.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            agent.process.kill()
            agent.process.wait()
    end_agents(cluster.directory)  # those that the user started again
    end_tasks(cluster.directory)


def _end_jobs(cluster: DevCluster) -> None:
    """Politely, through the API: stop signals, time to end. What that misses is ended after."""
    try:
        with cluster.client() as client:
            if not client.status().quorum:
                return
            names = [job.name for job in client.jobs()]
            for name in names:
                client.stop_job(name)
            is_quick = wait_until(lambda: all(tasks_gone(client, n) for n in names), QUIET_S)
            if not is_quick:
                note(f"waiting up to {STOP_S:g} s for tasks to end …")
                wait_until(lambda: all(tasks_gone(client, n) for n in names), STOP_S)
    except ClientError as error:
        note(f"could not stop the jobs in good order ({error})")
