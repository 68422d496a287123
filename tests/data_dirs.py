"""A node's data directory as an agent leaves it, made without one."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cube.adapters.raft.commands import encode_members, stamped, unstamped
from cube.adapters.raft.directory import MemberFile, write_member
from cube.adapters.raft.journal import FileJournal
from cube.model import commands as c
from cube.model.codec import encode_command
from cube.model.ids import ClusterId, CommandId, JobId, NodeId
from cube.model.trust import NodeKeys
from cube.services.formation import NodeRecord
from tests.builders import facts
from tests.fakes.cluster import START_MS, job_spec

CLUSTER = ClusterId("11111111-2222-4333-8444-555555555555")
NAMES = ("n1", "n2", "n3")
KEYS = NodeKeys(cluster_key=b"k" * 32, gossip_keys=(b"g" * 32,))
TERM = 4
LAST = 8  # the newest entry: job `late`, the only one that is not noted as committed


def make_data_dir(path: Path, voters: int = 3) -> Path:
    """Node n1 of three, with jobs `shop` and `late`; its agent was killed."""
    path.mkdir(parents=True)
    known = [facts(name) for name in NAMES]
    record = NodeRecord(
        node_id=NodeId(known[0].id),
        raft_address=known[0].raft_address,
        cluster_id=CLUSTER,
        cluster_name="prod",
        created=True,
    )
    (path / "node.json").write_bytes(msgspec.json.encode(record))
    (path / "keys.json").write_bytes(msgspec.json.encode(KEYS))
    raft = path / "raft"
    raft.mkdir()
    write_member(
        raft / "member", MemberFile(record.raft_address, (record.raft_address,), joining=False)
    )
    journal = FileJournal(raft / "journal", fsync=False)
    addresses = frozenset(one.raft_address for one in known[:voters])
    bodies: list[c.Body] = [
        c.InitCluster(CLUSTER, "prod"),
        *(c.RegisterNode(one) for one in known),
        c.SubmitJob(job_spec("shop"), JobId("j1")),
        c.SubmitJob(job_spec("late"), JobId("j2")),
    ]
    journal.add(encode_members(addresses), 2, TERM)
    for number, body in enumerate(bodies, 3):
        data = encode_command(c.Command(CommandId(f"c{number}"), body, "test"))
        journal.add(stamped(unstamped(data), START_MS + number), number, TERM)
    assert journal.last_index == LAST
    journal.setRaftCommitIndex(LAST - 1)
    journal.setCurrentTerm(TERM, None)
    journal._destroy()
    return path
