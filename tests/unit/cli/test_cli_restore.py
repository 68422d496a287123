"""`cube raft snapshot inspect` and `restore`: what comes of a saved state, and what is left alone."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from cube.adapters.raft.offline import read_contents
from cube.adapters.trust.authority import X509Certificates
from cube.adapters.trust.envelope import open_envelope, seal_envelope
from cube.agent import restoring
from cube.agent.recovery import replayed
from cube.agent.restoring import read_keys, read_saved
from cube.api.saving import encoded
from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.ids import ClusterId
from cube.model.savedstate import encode_head
from cube.model.stored import StoredKind
from cube.model.trust import NodeKeys, TokenRole, parse_api_token, secret_matches
from cube.services.enrolment import CA_KEY_PURPOSE
from cube.services.formation import NodeRecord
from cube.services.keyring import Keyring, first_gossip_key
from cube.services.stored_values import StoredValues
from cube.statemachine.snapshot import digest
from tests.data_dirs import KEYS, make_data_dir
from tests.fakes.cluster import START_MS, World, job_spec
from tests.fakes.disk import FakeDisk
from tests.ports import free_ports
from tests.unit.raft.test_raft_offline import files

ROOT = Path(__file__).resolve().parents[3]
CERTIFICATES = X509Certificates()


def cube(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cube", *map(str, arguments)], capture_output=True, text=True,
        timeout=60, check=False, cwd=ROOT, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def a_world(keys: NodeKeys = KEYS, *, has_ca: bool = False) -> World:
    """Two nodes, three tasks; its gossip key, and its CA's, are sealed."""
    world = World()
    gossip_key = first_gossip_key(keys, seal_envelope)
    if has_ca:
        ca_key = CERTIFICATES.make_key()
        world.apply(
            c.InitTrust(
                ca_certificate_pem=CERTIFICATES.make_ca(ClusterId("cluster-1"), ca_key, START_MS),
                ca_key_sealed=seal_envelope(keys.cluster_key, CA_KEY_PURPOSE, ca_key.encode()),
                join_token_hash=b"h" * 32,
                gossip_key=gossip_key,
            )
        )
    else:
        world.apply(c.InstallGossipKey(gossip_key))
    world.running(job_spec("shop", web={"count": 3}))
    return world


def save(path: Path, state: ClusterState) -> Path:
    header, pieces = encoded(state, START_MS, "0.1.0", pause=lambda _: None)
    path.write_bytes(encode_head(header) + b"".join(pieces))
    return path


def keys_file(path: Path, keys: NodeKeys = KEYS) -> Path:
    path.write_bytes(msgspec.json.encode(keys))
    return path


def restored_state(directory: Path) -> tuple[ClusterState, ClusterState]:
    """As it was saved, and as it is once the first entries are applied."""
    contents = read_contents(directory / "raft")
    before = replayed(msgspec.structs.replace(contents, entries=()))
    return before, replayed(contents)


def test_a_saved_state_becomes_a_cluster_of_one_without_its_old_nodes(tmp_path: Path) -> None:
    world = a_world()
    file = save(tmp_path / "s", world.state)
    directory = tmp_path / "data"
    done = cube(
        "raft", "snapshot", "restore", file, "--data-dir", directory, "--raft", "7801",
        "--keys", keys_file(tmp_path / "k"), "--insecure",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"next: cube agent --data-dir {directory} --insecure --raft 7801" in done.stderr
    assert "Never start nodes of the old cluster" in done.stderr
    before, after = restored_state(directory)
    assert digest(before) == digest(world.state) == read_saved(file).header.digest
    assert set(after.job_names) == {"shop"}
    assert (len(after.nodes), len(after.tasks)) == (0, 0)
    assert set(after.trust.removed_nodes) == set(world.state.nodes)
    record = msgspec.json.decode((directory / "node.json").read_bytes(), type=NodeRecord)
    assert (record.cluster_id, record.raft_address) == ("cluster-1", "127.0.0.1:7801")
    assert record.insecure and not (directory / "operator-token").exists()
    assert record.node_id not in world.state.nodes
    contents = read_contents(directory / "raft")
    assert contents.voters == ("127.0.0.1:7801",)
    assert contents.lineage
    assert read_keys(directory / "keys.json") == KEYS
    for name in ("keys.json", "node.json"):
        assert os.stat(directory / name).st_mode & 0o777 == 0o600


def test_secrets_open_with_the_keys_that_a_restore_asks_for(tmp_path: Path) -> None:
    """Keys of another cluster are refused (below): so what is restored can be opened."""
    world = a_world()
    keyring = Keyring(FakeDisk())
    keyring.take(KEYS)
    values = StoredValues(lambda: world.state, keyring, open_envelope, seal_envelope)
    data, fingerprint = values.seal("db", b"canary")
    world.apply(c.StoreVersion(StoredKind.SECRET, "db", data, 6, fingerprint))
    directory = tmp_path / "data"
    file = save(tmp_path / "s", world.state)
    done = cube(
        "raft", "snapshot", "restore", file, "--data-dir", directory,
        "--keys", keys_file(tmp_path / "k"), "--insecure",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stored = restored_state(directory)[1].stored["secret/db"]
    kept = read_keys(directory / "keys.json").cluster_key
    assert open_envelope(kept, stored.ref.key, stored.newest.data) == b"canary"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"canary" in path.read_bytes() for path in written)


def test_the_new_node_has_a_certificate_of_the_old_ca(tmp_path: Path) -> None:
    world = a_world(has_ca=True)
    directory = tmp_path / "data"
    done = cube(
        "raft", "snapshot", "restore", save(tmp_path / "s", world.state), "--data-dir", directory,
        "--keys", keys_file(tmp_path / "k"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ca = world.state.trust.ca_certificate_pem
    assert (directory / "ca.crt").read_text() == ca
    certificate = (directory / "node.crt").read_text()
    CERTIFICATES.verify_issued(certificate, ca, (directory / "node.key").read_text())
    record = msgspec.json.decode((directory / "node.json").read_bytes(), type=NodeRecord)
    assert CERTIFICATES.node_of(certificate).node_id == record.node_id
    # Who may restore may use it, though every token is lost.
    token = parse_api_token((directory / "operator-token").read_text().strip())
    kept = restored_state(directory)[1].trust.tokens[token.id]
    assert kept.role is TokenRole.OPERATOR
    assert secret_matches(token.secret, kept.hash)


def test_inspect_tells_what_a_file_is_and_whether_it_is_whole(tmp_path: Path) -> None:
    world = a_world()
    file = save(tmp_path / "s", world.state)
    shown = cube("raft", "snapshot", "inspect", file).stdout
    assert "1 job, 2 nodes, 3 tasks" in shown
    assert digest(world.state) in shown
    told = json.loads(cube("raft", "snapshot", "inspect", file, "-o", "json").stdout)
    assert (told["index"], told["digest"]) == (world.state.index, digest(world.state))
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    done = cube("raft", "snapshot", "inspect", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not match its checksum" in done.stderr
    assert cube("raft", "snapshot", "inspect", tmp_path / "none").returncode == 4
    assert cube("raft", "snapshot", "inspect", tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("case", "code", "told"),
    [
        ("no file", 4, "there is no file"),
        ("flipped byte", 1, "does not match its checksum"),
        ("cut", 1, "bytes of state, and should have"),
        ("something else", 1, "it is no saved state"),
        ("no keys", 2, "--keys KEYS.JSON"),
        ("missing keys", 4, "there is no file"),
        ("damaged keys", 1, "holds no keys of a node"),
        ("another cluster's keys", 1, "the keys are another cluster's"),
        ("not empty", 5, "--force"),
        ("running agent", 5, "another agent runs"),
        ("bad port", 2, "--raft: must be between"),
    ],
)
def test_what_cannot_be_restored_changes_nothing(
    tmp_path: Path, case: str, code: int, told: str
) -> None:
    file = save(tmp_path / "s", a_world().state)
    keys = keys_file(tmp_path / "k")
    directory = tmp_path / "data"
    more: list[str | Path] = ["--keys", keys]
    held = None
    match case:
        case "no file":
            file.unlink()
        case "flipped byte":
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "something else":
            file.write_text('name = "shop"\n' * 10)
        case "no keys":
            more = []
        case "missing keys":
            keys.unlink()
        case "damaged keys":
            keys.write_text("{}")
        case "another cluster's keys":
            keys_file(keys, NodeKeys(cluster_key=b"x" * 32, gossip_keys=(b"g" * 32,)))
        case "not empty":
            make_data_dir(directory)
        case "running agent":
            directory.mkdir()
            held = (directory / "lock").open("w")
            fcntl.flock(held, fcntl.LOCK_EX)
            more.append("--force")
        case _:
            more += ["--raft", "0"]
    before = files(directory) if directory.exists() else {}
    done = cube("raft", "snapshot", "restore", file, "--data-dir", directory, *more)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert (files(directory) if directory.exists() else {}) == before
    if held is not None:
        held.close()


def test_with_force_what_was_there_is_kept_aside(tmp_path: Path) -> None:
    """Its own keys.json serves, when it is this cluster's."""
    directory = make_data_dir(tmp_path / "data")
    (directory / "tasks").mkdir()
    before = files(directory)
    world = a_world()
    file = save(tmp_path / "s", world.state)
    done = cube("raft", "snapshot", "restore", file, "--data-dir", directory, "--force")
    assert done.returncode == 0, done.stderr
    (aside,) = directory.glob("before-restore-*")
    assert files(aside) == before
    assert (directory / "tasks").is_dir()  # what runs there is ended by the new node
    assert set(restored_state(directory)[1].job_names) == {"shop"}


@pytest.mark.parametrize("name", ["_certify", "_make_raft", "make_member"])
def test_what_was_cut_short_starts_no_agent_and_may_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    saved = read_saved(save(tmp_path / "s", a_world().state))
    keys = keys_file(tmp_path / "k")
    directory = tmp_path / "data"

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    def restore() -> None:
        restoring.restore(
            saved, directory, "127.0.0.1:7801", (), keys, is_insecure=True, is_forced=False
        )

    with monkeypatch.context() as patch:
        patch.setattr(restoring, name, die)
        with pytest.raises(Killed):
            restoring.restore(
                saved, directory, "127.0.0.1:7801", (), keys, is_insecure=True, is_forced=False
            )
    http, raft, gossip = map(str, free_ports(3))
    ports = ("--http", http, "--raft", raft, "--gossip", gossip)
    started = cube("agent", "--insecure", "--data-dir", directory, *ports)
    assert started.returncode == 1
    assert "node.json in the data directory is damaged" in started.stderr
    restoring.restore(
        saved, directory, "127.0.0.1:7801", (), keys, is_insecure=True, is_forced=False
    )
    assert set(restored_state(directory)[1].job_names) == {"shop"}
