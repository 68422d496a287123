"""The first node's part: a CA, and tokens that open what they should."""

from __future__ import annotations

from pathlib import Path

import pytest

from cube.adapters import entropy
from cube.adapters.file_disk import FileDisk
from cube.adapters.trust.authority import X509Certificates, read_node_certificate
from cube.adapters.trust.envelope import open_envelope, seal_envelope
from cube.adapters.trust.tickets import token_key
from cube.adapters.trust.tls import NodeTls
from cube.api.auth import Standing, identify
from cube.model import codec
from cube.model import commands as c
from cube.model.ids import ClusterId, CommandId, NodeId
from cube.model.outcome import Done
from cube.model.trust import NodeKeys, format_api_token, format_join_token, parse_join_token
from cube.ports.trust import EnrolGrant, EnrolRequest
from cube.services.enrolment import EnrolDesk
from cube.services.founding import Founding, found
from cube.services.keyring import Keyring
from cube.statemachine.snapshot import dump
from tests.builders import Machine
from tests.fakes.cluster import FakeClock
from tests.fakes.disk import FakeDisk

CLUSTER, FIRST = ClusterId("cluster"), NodeId("first")
CERTIFICATES = X509Certificates()
KEYS = NodeKeys(cluster_key=entropy.secret(32), gossip_keys=(entropy.secret(32),))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


def founded(directory: Path) -> Founding:
    disk = FileDisk(directory)
    try:
        return found(
            CLUSTER, FIRST, ["127.0.0.1"], KEYS, disk, CERTIFICATES, seal_envelope, entropy.secret,
            FakeClock().now_ms(),
        )  # fmt: skip
    finally:
        disk.close()


def test_the_first_node_has_its_files_and_the_log_what_others_need(directory: Path) -> None:
    made = founded(directory)
    machine = Machine()
    assert machine.do(made.command) == Done()
    assert NodeTls(directory, CLUSTER).client is not None
    assert {p.stat().st_mode & 0o777 for p in directory.iterdir()} == {0o600}
    certificate = (directory / "node.crt").read_text()
    assert read_node_certificate(certificate).node_id == FIRST
    CERTIFICATES.verify_issued(
        certificate, machine.state.trust.ca_certificate_pem, (directory / "node.key").read_text()
    )


def test_the_tokens_open(directory: Path) -> None:
    made = founded(directory)
    machine = Machine()
    machine.do(made.command)
    assert made.operator_token is not None
    header = f"Bearer {format_api_token(made.operator_token)}"
    assert identify(header, None, machine.state.trust, 0).standing is Standing.OPERATOR
    [record] = machine.state.trust.tokens.values()
    assert record.key == token_key(made.operator_token.secret)
    token = parse_join_token(format_join_token(made.join_token))
    keyring = Keyring(FakeDisk())
    keyring.take(KEYS)
    desk = EnrolDesk(lambda: machine.state, keyring, CERTIFICATES, open_envelope, FakeClock())
    assert token.fingerprint == CERTIFICATES.fingerprint(desk.ca())
    request = CERTIFICATES.make_request(CERTIFICATES.make_key())
    answer = desk.enrol(
        "h", EnrolRequest(node_id=NodeId("n2"), secret=token.secret, request_pem=request)
    )
    assert isinstance(answer, EnrolGrant)


def test_neither_the_log_nor_a_snapshot_holds_a_secret(directory: Path) -> None:
    made = founded(directory)
    assert made.operator_token is not None
    machine = Machine()
    machine.do(made.command)
    machine.do(c.Noop())
    secrets = [
        KEYS.cluster_key, KEYS.gossip_keys[0], made.join_token.secret, made.operator_token.secret,
        b"PRIVATE KEY",
    ]  # fmt: skip
    written = [
        codec.encode_command(c.Command(CommandId("x"), made.command)),
        dump(machine.state),
        repr(made).encode(),
        repr(machine.state.trust).encode(),
    ]
    for secret in secrets:
        for form in (secret, secret.hex().encode()):
            assert all(form not in data for data in written)


def test_a_second_try_after_a_crash_is_whole_too(directory: Path) -> None:
    first, second = founded(directory), founded(directory)
    assert first.command.ca_certificate_pem != second.command.ca_certificate_pem
    assert (directory / "ca.crt").read_text() == second.command.ca_certificate_pem
    assert NodeTls(directory, CLUSTER).server is not None
