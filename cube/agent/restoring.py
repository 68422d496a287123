"""A saved state becomes a cluster again: one voter, in a data directory that was empty."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from cube.adapters import entropy
from cube.adapters.file_disk import FileDisk
from cube.adapters.raft.files import sync_directory, write_atomically
from cube.adapters.raft.offline import TERM_LEAP, make_member
from cube.adapters.system_clock import SystemClock
from cube.adapters.trust.authority import X509Certificates
from cube.adapters.trust.envelope import open_envelope
from cube.agent.drivers import TASKS_DIRECTORY
from cube.agent.recovery import RAFT, free_path, make_order, now_text
from cube.model.cluster import ClusterState
from cube.model.commands import Body, CreateToken
from cube.model.errors import BadPacket
from cube.model.ids import ClusterId, NodeId
from cube.model.places import OPERATOR_TOKEN_FILE
from cube.model.savedstate import (
    HEADER_BYTES_MAX,
    PREFIX_BYTES,
    DigestOf,
    SavedHeader,
    check,
    decode_head,
    head_bytes,
)
from cube.model.trust import (
    TOKENS_MAX,
    NodeIdentity,
    NodeKeys,
    NodeRole,
    TokenRole,
    format_api_token,
    secret_hash,
)
from cube.services.enrolment import CA, CA_KEY_PURPOSE, CERTIFICATE, KEY
from cube.services.formation import RECORD, NodeRecord
from cube.services.founding import make_api_token
from cube.services.keyring import KEYS, cluster_gossip_keys
from cube.statemachine import snapshot

ASIDE = "before-restore-"  # with the time: where what was there is kept
UNFINISHED = b'{"unfinished": "cube raft snapshot restore ended before its time: run it again"}\n'
# What there may be in a directory that counts as empty: ours, and a file system's own.
_NOTHING = frozenset({"lock", "lost+found"})


class Saved(msgspec.Struct, frozen=True):
    """A saved state, read and found whole."""

    header: SavedHeader
    state: ClusterState


class NotEmpty(Exception):
    """Somebody's data is there."""


class NoKeys(Exception):
    """Neither given nor in the data directory."""


def read_saved(path: Path) -> Saved:
    """Raises BadPacket for a damaged file or another one, OSError."""
    with path.open("rb") as file:
        prefix = file.read(PREFIX_BYTES)
        header = decode_head(prefix + file.read(head_bytes(prefix) - PREFIX_BYTES))
        data = file.read(header.size + HEADER_BYTES_MAX)
    found = DigestOf()
    found.add(data)
    check(header, found)
    state = snapshot.load(data)
    if (state.cluster_id, state.index) != (header.cluster_id, header.index):
        raise BadPacket("its header is another state's")
    return Saved(header, state)


def read_keys(path: Path) -> NodeKeys:
    """Raises BadPacket, without what the file says: it might quote a key. Raises OSError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=NodeKeys)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise BadPacket(f"{path} holds no keys of a node") from None


def restore(
    saved: Saved,
    data_dir: Path,
    raft_address: str,
    names: tuple[str, ...],
    keys_file: Path | None,
    *,
    is_insecure: bool,
    is_forced: bool,
) -> Path | None:
    """The directory is a new node's, the only voter of the cluster with the saved state, without
    any node of before. Where what was in it is kept, if anything was.

    `names`: the hosts at which HTTPS clients will find the node. A kill leaves a directory that no
    agent starts in, and that may be restored again. Raises NotEmpty, NoKeys, BadPacket (also for
    keys of another cluster), Unavailable while an agent holds the directory, OSError.
    """
    disk = FileDisk(data_dir)
    try:
        there = sorted(path for path in data_dir.iterdir() if path.name not in _NOTHING)
        is_begun = disk.read(RECORD) == UNFINISHED
        if there and not (is_forced or is_begun or _is_only_keys(there)):
            raise NotEmpty(str(data_dir))
        keys = read_keys(keys_file or _own_keys(data_dir))
        _check_keys(saved.state, keys)
        aside = _move_aside(disk, data_dir, there)
        disk.replace(KEYS, msgspec.json.encode(keys))
        node_id = NodeId(entropy.new_id())
        _certify(disk, saved.state, keys, node_id, names)
        more = () if is_insecure else _own_token(disk, saved.state)
        _make_raft(data_dir, saved.state, raft_address, more)
        record = NodeRecord(
            node_id=node_id,
            raft_address=raft_address,
            cluster_id=saved.state.cluster_id,
            cluster_name=saved.state.cluster_name,
            created=True,
            insecure=is_insecure,
        )
        disk.replace(RECORD, msgspec.json.format(msgspec.json.encode(record)))
        return aside
    finally:
        disk.close()


def _is_only_keys(there: list[Path]) -> bool:
    return [path.name for path in there] == [KEYS]


def _own_keys(data_dir: Path) -> Path:
    if not (data_dir / KEYS).is_file():
        raise NoKeys
    return data_dir / KEYS


def _check_keys(state: ClusterState, keys: NodeKeys) -> None:
    try:
        cluster_gossip_keys(state.trust, keys.cluster_key, open_envelope)
        if state.trust.ca_key_sealed:
            open_envelope(keys.cluster_key, CA_KEY_PURPOSE, state.trust.ca_key_sealed)
    except BadPacket:
        raise BadPacket("the keys are another cluster's: they open nothing of this state") from None


def _move_aside(disk: FileDisk, data_dir: Path, there: list[Path]) -> Path | None:
    """From here on no agent starts in the directory. What its tasks write stays: whoever is the
    node next ends them."""
    record = disk.read(RECORD)
    is_a_node = record not in (None, UNFINISHED)
    disk.replace(RECORD, UNFINISHED)
    old = [
        path
        for path in there
        if path.name not in (TASKS_DIRECTORY, RECORD) and not path.name.startswith(ASIDE)
    ]
    if not is_a_node and (not old or _is_only_keys(old)):
        return None
    aside = free_path(data_dir / f"{ASIDE}{now_text()}")
    aside.mkdir(mode=0o700)
    if record is not None and is_a_node:
        write_atomically(aside / RECORD, record)
    for path in old:
        os.rename(path, aside / path.name)
    sync_directory(aside)
    sync_directory(data_dir)
    return aside


def _certify(
    disk: FileDisk, state: ClusterState, keys: NodeKeys, node_id: NodeId, names: tuple[str, ...]
) -> None:
    """The node has a certificate of the cluster's CA, if there is one."""
    trust = state.trust
    if not trust.ca_certificate_pem:
        return
    certificates = X509Certificates()
    ca_key = open_envelope(keys.cluster_key, CA_KEY_PURPOSE, trust.ca_key_sealed).decode()
    key = certificates.make_key()
    certificate = certificates.issue(
        trust.ca_certificate_pem,
        ca_key,
        certificates.make_request(key),
        NodeIdentity(ClusterId(state.cluster_id), NodeRole.NODE, node_id),
        names,
        SystemClock().now_ms(),
    )
    for name, pem in ((KEY, key), (CA, trust.ca_certificate_pem), (CERTIFICATE, certificate)):
        disk.replace(name, pem.encode())


def _own_token(disk: FileDisk, state: ClusterState) -> tuple[Body, ...]:
    """Creates a token of an operator, which is in the data directory, where the command line looks:
    who restores a cluster may use it, though all tokens are lost."""
    if not state.trust.ca_certificate_pem or len(state.trust.tokens) >= TOKENS_MAX:
        return ()
    token = make_api_token(entropy.secret)
    disk.replace(OPERATOR_TOKEN_FILE, format_api_token(token).encode() + b"\n")
    return (
        CreateToken(
            token.id,
            secret_hash(token.secret),
            TokenRole.OPERATOR,
            description="made by a restore",
            key=X509Certificates().token_key(token.secret),
        ),
    )


def _make_raft(
    data_dir: Path, state: ClusterState, raft_address: str, more: tuple[Body, ...]
) -> None:
    fresh = data_dir / f"{RAFT}.restoring"
    shutil.rmtree(fresh, ignore_errors=True)
    order = make_order(state, None, state.term + TERM_LEAP, more)
    slices = list(snapshot.dump_slices(state))
    make_member(fresh, raft_address, state.index, state.term, slices, order)
    os.rename(fresh, data_dir / RAFT)
    sync_directory(data_dir)
