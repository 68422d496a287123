"""One agent: everything a node runs, wired together, in the order in which it comes up and goes down.

Decides nothing that a test would want to look at: what decides is in the services and machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

import cube
from cube.adapters import entropy, host
from cube.adapters.file_disk import FileDisk
from cube.adapters.host_ports import port_free
from cube.adapters.http_peers import HttpPeers
from cube.adapters.prober import SocketProber
from cube.adapters.process.lease import FILE as LEASE_FILE
from cube.adapters.process.lease import read_lease, write_lease
from cube.adapters.raft.log import PySyncObjLog
from cube.adapters.system_clock import SystemClock
from cube.adapters.trust.envelope import open_envelope, seal_envelope
from cube.adapters.trust.gossip_seal import AesSeal
from cube.adapters.trust.tickets import Ed25519Tickets
from cube.agent.drivers import make_drivers, reapers_of
from cube.agent.housekeeping import make_housekeeping
from cube.agent.listening import ApiServer
from cube.agent.making import make_gossip, make_log
from cube.agent.trust import NodeTrust, check_cluster
from cube.api.app import make_app
from cube.api.auth import Access
from cube.config import Config
from cube.model.addresses import join_address
from cube.model.cluster import ClusterSettings, NodeFacts
from cube.model.commands import InitCluster, ReportTasks
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import ClusterId, CommandId, NodeId
from cube.model.resources import Resources
from cube.model.trust import JoinToken
from cube.ports.cluster import BootstrapView, JoinRequest
from cube.ports.driver import Driver
from cube.ports.log import Role
from cube.scheduler.liveness import Liveness
from cube.services.cluster_view import ClusterView, Parts
from cube.services.disk_watch import DiskWatch
from cube.services.driver_facts import DriverFacts
from cube.services.exec_audit import ExecAudit
from cube.services.formation import Formation, NodeRecord, Records
from cube.services.heartbeats import Heartbeats, Leases
from cube.services.keyring import Keyring, follow_keys, rotate_keys
from cube.services.leader_clock import LeaderClock
from cube.services.leader_loop import LeaderLoop
from cube.services.lease_keeper import LeaseKeeper
from cube.services.local_tasks import DriverTasks
from cube.services.log_follower import LogFollower
from cube.services.orphans import Orphans
from cube.services.peers import PeerDesk
from cube.services.proposer import Proposer
from cube.services.registration import Registration
from cube.services.roll_call import RollCall, encode_meta
from cube.services.state_feed import StateFeed
from cube.services.stored_values import StoredValues
from cube.services.supervisor import keep_running
from cube.services.voter_loop import VoterLoop
from cube.services.worker_loop import WorkerLoop
from cube.worker.machine import Worker
from cube.worker.settings import WorkerSettings

CATCH_UP_MS = 2_000  # one barrier; asked again until it comes back
FOLLOWED_LOOK_S = 0.05  # a newcomer looks this often whether it has heard of a leader

_log = logging.getLogger(__name__)


class Agent:
    """Starts with start(), ends with run() coming back or raising what a loop died of."""

    def __init__(self, config: Config, *, is_root: bool) -> None:
        """The data directory is ours. Raises Unavailable when it is not, BadPacket when its record
        is damaged."""
        self._config = config
        self._is_root = is_root
        bind = config.bind
        advertise = bind.advertise or bind.address
        self.advertise = advertise
        self.http_address = join_address(advertise, bind.http)
        self.raft_address = join_address(advertise, bind.raft)
        self.gossip_address = join_address(advertise, bind.gossip)
        self._data_dir = Path(config.node.data_dir)
        self._disk = FileDisk(self._data_dir)
        self._lease_file = self._data_dir / LEASE_FILE
        self._records = Records(
            self._disk,
            NodeRecord(node_id=NodeId(entropy.new_id()), raft_address=self.raft_address),
        )
        self._keyring = Keyring(self._disk)
        self.node_id = self._records.now.node_id
        self.name = config.node.name or socket.gethostname()
        self._clock = SystemClock()
        self._feed = StateFeed()
        self._trust = NodeTrust(
            config, self._disk, self._keyring, self.node_id, self._clock, lambda: self._feed.state
        )
        self._values = StoredValues(
            lambda: self._feed.state, self._keyring, open_envelope, seal_envelope
        )
        self._remote = HttpPeers(None if config.insecure else self._trust.tls.client)
        self._view = ClusterView(self.node_id, self._feed)
        self._drivers: dict[str, Driver] = {}
        free_min = config.gc.disk_free_min_bytes
        disk_watch = DiskWatch(str(self._data_dir), free_min, host.disk_free_bytes)
        self._exec_audit = ExecAudit(self._clock, entropy.new_id)
        self._driver_facts = DriverFacts(self._drivers, disk_watch.judge)
        self._housekeeping = make_housekeeping(
            config.gc, self.node_id, self._disk, self._clock, lambda: self._feed.state,
            lambda: self._is_caught_up, self._drivers, self._driver_facts,
        )  # fmt: skip
        self._capacity = self._detect_capacity()
        self._request = JoinRequest(
            node_id=self.node_id,
            name=self.name,
            raft_address=self.raft_address,
            gossip_address=self.gossip_address,
            http_address=self.http_address,
            version=cube.__version__,
        )
        self._formation = Formation(
            self._records,
            self._remote,
            self._request,
            self._set_obstacle,
            None if config.insecure else self._trust.look,
        )
        self._desk = PeerDesk(
            self._view,
            self._bootstrap_view,
            self._gossip_seeds,
            self._trust.desk,
            self._trust.seal_shared,
        )
        self._is_caught_up = False
        self._log: PySyncObjLog | None = None
        self._web: ApiServer | None = None
        self.join_token: JoinToken | None = None  # of the cluster that this very process has made

    # Facts

    def _detect_capacity(self) -> Resources:
        """What is there, unless configured otherwise, less what is kept for the host."""
        node = self._config.node
        found = host.capacity(self._data_dir)
        whole = Resources(
            node.cpu_milli or found.cpu_milli,
            node.memory_bytes or found.memory_bytes,
            node.disk_bytes or found.disk_bytes,
        )
        return whole - node.reserved

    def _facts(self) -> NodeFacts:
        bind = self._config.bind
        return NodeFacts(
            id=self.node_id,
            name=self.name,
            advertise=self.advertise,
            http_address=self.http_address,
            raft_address=self.raft_address,
            gossip_address=self.gossip_address,
            version=cube.__version__,
            capacity=self._capacity,
            labels=self._config.node.labels,
            attributes=host.attributes(),
            drivers=self._driver_facts.infos,
            port_first=bind.port_first,
            port_last=bind.port_last,
        )

    def _set_obstacle(self, why: str) -> None:
        if why != self._view.obstacle:
            _log.info("not_ready why=%s", why)
        self._view.obstacle = why

    def _bootstrap_view(self) -> BootstrapView:
        view = self._formation.bootstrap_view(self._config.cluster.bootstrap_expect)
        if view.cluster_id is None:
            return view
        return msgspec.structs.replace(view, ca_fingerprint=self._trust.ca_fingerprint())

    def _gossip_seeds(self) -> tuple[str, ...]:
        """Where a newcomer may begin: this node and those it knows."""
        known = {node.facts.gossip_address for node in self._feed.state.nodes.values()}
        return (self.gossip_address, *sorted(known - {self.gossip_address}))

    # Life

    async def run(self, stop: asyncio.Event, on_ready: Callable[[Agent], None]) -> None:
        """A node of its cluster until `stop` is set; then leadership is handed over, tasks go on.
        `on_ready` is called once, when requests are answered fully. Raises Unavailable when a port
        is taken or the data directory cannot be used, and whatever a loop died of (a bug)."""
        self._feed.open(asyncio.get_running_loop())
        try:
            self._trust.show_meanwhile()
            await self._open_http()
            async with asyncio.TaskGroup() as group:
                life = group.create_task(self._live(on_ready), name="life")
                await stop.wait()
                _log.info("stopping")
                life.cancel()
        finally:
            await self._close()

    async def _open_http(self) -> None:
        app = make_app(
            self._view,
            DriverTasks(self._drivers, self._clock, self._exec_audit.note),
            self._desk,
            self._trust.tokens,
            self._values.seal,
            access=Access(
                tokens=not self._config.insecure,
                node_of=self._trust.node_of,
                node_tls=None if self._config.insecure else self._trust.tls.client,
                peer=None if self._config.insecure else self._trust.tls.peer,
                signer=Ed25519Tickets(),
                hosts=frozenset(
                    name.lower()
                    for name in (
                        self._config.bind.address,
                        self.advertise,
                        self.name,
                        socket.gethostname(),
                    )
                ),
            ),
            housekeeping=self._housekeeping,
            clock=self._clock,
            new_id=entropy.short_id,
        )
        tls = None if self._config.insecure else self._trust.tls.api_server
        self._web = ApiServer(app, self._config.bind, tls)
        await self._web.open()

    async def _close(self) -> None:
        if self._log is not None:
            await self._log.stop()
        if self._web is not None:
            await self._web.close()
        await self._remote.close()
        self._disk.close()

    async def _form(self) -> NodeRecord:
        """This node's record, once it belongs to a cluster."""
        record = self._records.now
        if record.cluster_id is not None:
            if record.raft_address != self.raft_address:
                raise Unavailable(
                    f"this data directory belongs to a node whose Raft address is "
                    f"{record.raft_address}, not {self.raft_address}; start it with that address "
                    "and port, or with an empty data directory as a new node"
                )
            self._check_mode(record)
            check_cluster(self._trust.open(), record.cluster_id)
            return record
        cluster, insecure = self._config.cluster, self._config.insecure
        addresses: tuple[str, ...] = cluster.join
        fingerprint = ""
        if cluster.bootstrap_expect:
            through = await self._formation.bootstrap(cluster.bootstrap_expect, cluster.join)
            if through is None:
                addresses = ()
            else:
                fingerprint = through.ca_fingerprint
                addresses = (through.address, *(a for a in cluster.join if a != through.address))
        if not addresses:
            cluster_id = ClusterId(entropy.new_id())
            self.join_token = self._trust.found(cluster_id)
            record = self._formation.create(cluster_id, cluster.name, insecure=insecure)
            self._trust.open()
            return record
        others = tuple(address for address in addresses if address != self.http_address)
        if not others:
            raise Unavailable(
                f"join names only this node itself, {self.http_address}; name another one, or leave "
                "join out to make a new cluster"
            )
        await self._trust.enrol(others, fingerprint, self._set_obstacle)
        cluster_id = self._trust.open()
        record = await self._formation.join(others, insecure=insecure)
        check_cluster(cluster_id, record.cluster_id or "")
        return record

    def _check_mode(self, record: NodeRecord) -> None:
        """Raises Unavailable: the other nodes would not understand this one."""
        if record.insecure is None:  # the first start after a restore decides
            self._records.update(insecure=self._config.insecure)
        elif record.insecure != self._config.insecure:
            word = "with" if record.insecure else "without"
            raise Unavailable(
                f"this data directory belongs to a cluster that was made {word} --insecure; start "
                f"the agent {word} it, or with an empty data directory"
            )

    async def _live(self, on_ready: Callable[[Agent], None]) -> None:
        record = await self._form()
        assert record.cluster_id is not None
        cluster_id = ClusterId(record.cluster_id)
        self._set_obstacle("this node is catching up with its cluster")
        leader_clock = LeaderClock(self._clock, lambda: self._feed.state.now_ms)
        log = self._log = make_log(
            self._config, self.raft_address, record, self._feed, leader_clock.now_ms, self._trust
        )
        await log.start()
        await self._load_drivers(cluster_id)
        timeout_ms = self._config.cluster.write_timeout_ms
        proposer = Proposer(log, self._clock, timeout_ms, entropy.short_id)
        self._housekeeping.images.attach()
        seal = self._make_seal(cluster_id)
        meta = encode_meta(self.name, self.http_address, self.raft_address, log.status().lineage)
        gossip = make_gossip(
            self._config, self.node_id, self.gossip_address, meta, self._clock, seal
        )
        roll_call = RollCall(gossip, lambda: host.stats(self._data_dir, log.status().applied_index))
        leader_loop = self._make_leader_loop(log, leader_clock, proposer, roll_call)
        registration = Registration(self._facts, proposer.propose, self._driver_facts.known)
        voter_loop = self._make_voter_loop(log)
        prober = SocketProber()
        worker_loop = self._make_worker_loop(cluster_id, proposer, prober)
        keeper = LeaseKeeper(
            functools.partial(write_lease, str(self._lease_file)), worker_loop.on_leased
        )
        heartbeats = self._make_heartbeats(log, leader_loop, worker_loop, keeper)
        follower = self._make_follower(log, roll_call, record)
        self._view.attach(Parts(log, proposer, leader_clock, roll_call.members, voter_loop))
        self._desk.leader_loop = leader_loop
        self._desk.voter_loop = voter_loop
        for watch in (proposer.on_log_status, leader_loop.on_log_status, voter_loop.on_log_status):
            log.watch(watch)
        await gossip.start(self._seeds(record))
        opening = asyncio.create_task(worker_loop.open(), name="opening")
        try:
            async with asyncio.TaskGroup() as group:
                following = group.create_task(follower.run(), name="following")
                await self._be_member(record, proposer)
                following.cancel()
            await self._run_loops(
                {
                    "gossip": gossip.wait(),
                    "keys": follow_keys(self._feed, self._keyring, open_envelope, seal.set_keys),
                    "rotation": self._rotation(log, roll_call, proposer),
                    "leader": keep_running("leader", leader_loop.run),
                    "following": follower.run(),
                    "voters": keep_running("voters", voter_loop.run),
                    "worker": worker_loop.run(),
                    "heartbeats": heartbeats.run(),
                    "leases": keeper.run(),
                    "roll_call": roll_call.run(),
                    "exec_audit": self._exec_audit.run(proposer.propose),
                    "registration": registration.run(),
                    "drivers": self._watch_drivers(opening, registration),
                    "orphans": Orphans(self._feed, self.node_id, reapers_of(self._drivers)).run(),
                    "housekeeping": self._housekeeping.run(),
                    "certificate": self._trust.renewal().run(),
                    "removals": self._trust.watch_removals(self._feed, log.recheck_peers),
                    "catch_up": self._catch_up(worker_loop, registration, on_ready),
                }
            )
        finally:
            opening.cancel()
            await prober.close()
            await gossip.stop()

    async def _load_drivers(self, cluster_id: ClusterId) -> None:
        """On a thread: their libraries take a tenth of a second, while the log looks for a leader."""
        made = await asyncio.to_thread(
            make_drivers, self._config, cluster_id, self.node_id, self._clock, is_root=self._is_root
        )
        self._drivers.update(made)

    async def _rotation(self, log: PySyncObjLog, roll_call: RollCall, proposer: Proposer) -> None:
        await rotate_keys(
            self._feed,
            lambda: log.status().role is Role.LEADER,
            roll_call.members,
            lambda body: proposer.propose(body, actor="leader"),
        )

    async def _run_loops(self, loops: Mapping[str, Coroutine[Any, Any, None]]) -> None:
        """All at once; the first that dies of a bug ends the others and is raised."""
        async with asyncio.TaskGroup() as group:
            for name, loop in loops.items():
                group.create_task(loop, name=name)

    def _make_seal(self, cluster_id: ClusterId) -> AesSeal:
        keys = self._keyring.known.gossip_keys
        return AesSeal(cluster_id, self.node_id, keys, self._disk, self._clock.now_ms())

    def _seeds(self, record: NodeRecord) -> list[str]:
        known = {*record.gossip_seeds, *self._gossip_seeds()}
        return sorted(known - {self.gossip_address})

    def _make_heartbeats(
        self,
        log: PySyncObjLog,
        leader_loop: LeaderLoop,
        worker_loop: WorkerLoop,
        keeper: LeaseKeeper,
    ) -> Heartbeats:
        leases = Leases(
            self._clock,
            lambda: worker_loop.wants_lease,
            lambda: leader_loop.lease(self.node_id),
            keeper.put,
        )
        made = Heartbeats(
            self.node_id, self._remote, self._leader_to_tell, lambda: log.ask().index, leases
        )
        worker_loop.on_lease_wanted = made.hurry
        return made

    def _leader_to_tell(self) -> str | None:
        """Where heartbeats go: nowhere while this node leads itself."""
        leader = self._view.leader_http()
        return None if leader == self.http_address else leader

    def _make_worker_loop(
        self, cluster_id: ClusterId, proposer: Proposer, prober: SocketProber
    ) -> WorkerLoop:
        async def propose(reports: ReportTasks) -> None:
            await proposer.propose(reports, actor="node")

        worker = Worker(
            WorkerSettings(),
            cluster_id,
            self.node_id,
            self.advertise,
            sorted(self._drivers),
            read_lease(str(self._lease_file)),
        )
        return WorkerLoop(
            worker,
            self.node_id,
            self._drivers,
            prober,
            self._clock,
            self._feed,
            lambda: self._is_caught_up,
            propose,
            port_free,
            self._values,
        )

    async def _be_member(self, record: NodeRecord, proposer: Proposer) -> None:
        """This node knows who leads, in a cluster that has a name."""
        assert self._log is not None
        while self._log.status().leader is None:  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(FOLLOWED_LOOK_S)
        if record.created and not self._feed.state.cluster_id:
            chosen, kept = self._config.scheduler, self._config.gc
            settings = ClusterSettings(
                chosen.policy,
                chosen.preemption,
                chosen.rebalance,
                kept.finished_per_slot,
                kept.finished_for_ms,
                kept.finished_beyond_ms,
            )
            init = InitCluster(ClusterId(record.cluster_id or ""), record.cluster_name, settings)
            while not self._feed.state.cluster_id:
                with contextlib.suppress(Unavailable, OutcomeUnknown):
                    await proposer.propose(
                        init, actor="node", command_id=CommandId(f"init-{record.cluster_id}")
                    )
        if record.created:
            await self._trust.tell(record.cluster_id or "", proposer.propose)

    def _peers(self, record: NodeRecord) -> tuple[str, ...]:
        """Where other nodes may answer: those it knows, and those it was told of at first."""
        known = {node.facts.http_address for node in self._feed.state.nodes.values()}
        told = record.peers or self._config.cluster.join
        return tuple(sorted({*known, *told} - {self.http_address}))

    def _make_leader_loop(
        self, log: PySyncObjLog, leader_clock: LeaderClock, proposer: Proposer, roll_call: RollCall
    ) -> LeaderLoop:
        async def load_numpy() -> None:
            await asyncio.to_thread(importlib.import_module, "numpy")

        return LeaderLoop(
            self.node_id,
            log,
            self._feed,
            self._clock,
            leader_clock,
            proposer.propose,
            roll_call.states,
            entropy.short_id,
            lambda: Liveness(node_grace_ms=self._config.cluster.node_grace_ms),
            load_numpy,
        )

    def _make_follower(
        self, log: PySyncObjLog, roll_call: RollCall, record: NodeRecord
    ) -> LogFollower:
        def on_obstacle(why: str) -> None:
            if not self._is_caught_up:  # later it is weather, which requests say themselves
                self._set_obstacle(why)

        return LogFollower(
            self.node_id,
            log,
            self._feed,
            self._clock,
            self._remote,
            roll_call.states,
            lambda: self._answering(record, roll_call),
            on_obstacle,
        )

    def _answering(self, record: NodeRecord, roll_call: RollCall) -> tuple[str, ...]:
        """_peers(), and who gossips with this node: when all it knew are gone, those alive know it."""
        heard = {member.http_address for member in roll_call.members() if member.state == "alive"}
        return tuple(sorted({*self._peers(record), *heard} - {"", self.http_address}))

    def _make_voter_loop(self, log: PySyncObjLog) -> VoterLoop:
        return VoterLoop(
            log,
            self.raft_address,
            self._feed,
            self._clock,
            self._remote,
            self._view.leader_http,
            self._config.raft.voters,
            self._config.cluster.dead_voter_grace_ms,
        )

    async def _watch_drivers(self, opening: asyncio.Task[None], registration: Registration) -> None:
        async def on_change(_infos: object) -> None:
            registration.touch()

        await opening
        await self._driver_facts.run(on_change)

    async def _catch_up(
        self,
        worker_loop: WorkerLoop,
        registration: Registration,
        on_ready: Callable[[Agent], None],
    ) -> None:
        """Everything that was committed when this process started is applied here: only then may
        tasks be started or stopped, and requests be answered."""
        assert self._log is not None
        while not self._is_caught_up:
            try:
                await self._log.barrier(CATCH_UP_MS)
            except Unavailable as error:
                self._set_obstacle(f"this node is catching up with its cluster: {error}")
                await asyncio.sleep(0.1)
                continue
            self._is_caught_up = True
        worker_loop.on_caught_up()
        self._view.obstacle = None
        self.name = await registration.name()
        status = self._log.status()
        _log.info(
            "ready node=%s leads=%s term=%d", self.name, status.role is Role.LEADER, status.term
        )
        on_ready(self)


def is_root() -> bool:
    return os.geteuid() == 0
