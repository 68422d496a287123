"""`cube cluster recover`: what it shows, whom it asks, and what it leaves alone."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cube.adapters.raft.commands import stamped, unstamped
from cube.adapters.raft.journal import FileJournal
from cube.adapters.raft.offline import read_contents
from cube.adapters.trust.envelope import open_envelope, seal_envelope
from cube.agent.recovery import replayed
from cube.agent.restoring import read_keys
from cube.model import commands as c
from cube.model.codec import encode_command
from cube.model.ids import CommandId
from cube.model.stored import StoredKind
from tests.data_dirs import CLUSTER, KEYS, LAST, TERM, make_data_dir
from tests.fakes.cluster import START_MS
from tests.unit.raft.test_raft_offline import files

ROOT = Path(__file__).resolve().parents[3]


def recover(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cube", "cluster", "recover", "--data-dir", str(directory), *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def answer(directory: Path, word: str) -> tuple[int, str]:
    """As on a terminal, on which somebody types `word`. The exit code, and all that was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cube", "cluster", "recover", "--data-dir", str(directory)],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, word.encode() + b"\n")
    shown = b""
    while True:
        try:
            shown += os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    return process.wait(timeout=60), shown.decode()


def test_what_it_would_keep_is_shown_and_the_rest_is_told(tmp_path: Path) -> None:
    done = recover(make_data_dir(tmp_path / "n1"), "--yes")
    assert done.returncode == 0, done.stderr
    for told in (
        f"cluster    prod  {CLUSTER}",
        "survivor   n1",
        "voters     n1, n2, n3",
        f"kept       the log up to entry {LAST} of term 4 (snapshot at 0)",
        "2 jobs: late, shop",
        f"proved     up to entry {LAST - 1}",
        "unproved   1 entry behind that",
        f"{LAST} (term 4)  SubmitJob late",
        "removed    n2, n3",
        "Never start n2, n3 again with the old data",
    ):
        assert told in done.stdout, (told, done.stdout)
    assert "n1 is the only voter now" in done.stderr
    assert "raft.before-recover-" in done.stderr


def test_the_state_afterwards_has_every_job_and_no_other_node(tmp_path: Path) -> None:
    directory = make_data_dir(tmp_path / "n1")
    before = files(directory / "raft")
    told = json.loads(recover(directory, "--yes", "-o", "json").stdout.splitlines()[-1])
    assert told["unproved"] == [{"index": LAST, "term": 4, "what": "SubmitJob late"}]
    assert files(Path(told["copy"])) == before
    contents = read_contents(directory / "raft")
    state = replayed(contents)
    assert set(state.job_names) == {"shop", "late"}
    assert set(state.node_names) == {"n1"}
    assert set(state.trust.removed_nodes) == {"id-n2", "id-n3"}
    assert len(contents.voters) == 1 and contents.lineage
    again = recover(directory, "--yes")
    assert again.returncode == 5
    assert "only voter of its cluster already" in again.stderr


def test_without_a_terminal_and_without_consent_nothing_is_done(tmp_path: Path) -> None:
    directory = make_data_dir(tmp_path / "n1")
    before = files(directory)
    done = recover(directory)
    assert done.returncode == 2
    assert f"try: cube cluster recover --data-dir {directory} --yes" in done.stderr
    assert "Never start" in done.stdout
    assert files(directory) == before


@pytest.mark.parametrize(("word", "code"), [("n", 1), ("", 1), ("y", 0)])
def test_on_a_terminal_it_asks(tmp_path: Path, word: str, code: int) -> None:
    directory = make_data_dir(tmp_path / "n1")
    before = files(directory)
    ended, shown = answer(directory, word)
    assert ended == code, shown
    assert "Make n1 the only voter of a recovered cluster? [y/N]" in shown
    assert (files(directory) == before) is (code == 1)
    assert ("nothing was changed" in shown) is (code == 1)


@pytest.mark.parametrize(
    ("case", "code", "told"),
    [
        ("missing", 4, "no data directory"),
        ("empty", 4, "no data directory"),
        ("the raft directory", 4, "no data directory"),
        ("damaged log", 1, "is damaged at byte"),
        ("damaged record", 1, "node.json in the data directory is damaged"),
        ("damaged member", 1, "member cannot be read"),
        ("running agent", 5, "another agent runs"),
    ],
)
def test_a_directory_that_cannot_be_recovered_is_left_alone(
    tmp_path: Path, case: str, code: int, told: str
) -> None:
    directory = make_data_dir(tmp_path / "n1")
    asked, held = directory, None
    match case:
        case "missing":
            asked = tmp_path / "nobody"
        case "empty":
            asked = tmp_path / "empty"
            asked.mkdir()
        case "the raft directory":
            asked = directory / "raft"
        case "damaged log":
            path = directory / "raft" / "journal" / "0000000001.log"
            data = bytearray(path.read_bytes())
            data[90] ^= 1
            path.write_bytes(data)
        case "damaged record":
            (directory / "node.json").write_bytes(b"{}")
        case "damaged member":
            (directory / "raft" / "member").write_bytes(b"{")
        case _:
            held = (directory / "lock").open("w")
            fcntl.flock(held, fcntl.LOCK_EX)
    before = files(directory)
    done = recover(asked, "--yes")
    assert (done.returncode, done.stdout) == (code, ""), done
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert files(directory) == before
    assert case != "missing" or not asked.exists()
    if held is not None:
        held.close()


def test_secrets_are_kept_and_open_with_the_keys_that_were_there(tmp_path: Path) -> None:
    directory = make_data_dir(tmp_path / "n1")
    sealed = seal_envelope(KEYS.cluster_key, "secret/db", b"canary")
    journal = FileJournal(directory / "raft" / "journal", fsync=False)
    body = c.StoreVersion(StoredKind.SECRET, "db", sealed, 6, b"f" * 32)
    data = encode_command(c.Command(CommandId("secret"), body, "test"))
    journal.add(stamped(unstamped(data), START_MS + LAST + 1), LAST + 1, TERM)
    journal._destroy()
    done = recover(directory, "--yes")
    assert done.returncode == 0, done.stderr
    assert "StoreVersion secret db" in done.stdout
    assert "canary" not in done.stdout + done.stderr
    stored = replayed(read_contents(directory / "raft")).stored["secret/db"]
    keys = read_keys(directory / "keys.json")
    assert open_envelope(keys.cluster_key, stored.ref.key, stored.newest.data) == b"canary"
