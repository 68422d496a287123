"""The CA and what it issues: who may be told apart by it, and what it does not sign."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from cube.adapters.trust.authority import (
    NAMES_MAX,
    fingerprint,
    issue,
    make_ca,
    make_key,
    make_request,
    read_node_certificate,
    verify_issued,
)
from cube.model.errors import BadPacket
from cube.model.ids import ClusterId, NodeId
from cube.model.trust import NodeIdentity, NodeRole

NOW_MS = 1_800_000_000_000
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
CLUSTER = ClusterId("5f0c2f3e-0000-4000-8000-000000000001")
IDENTITY = NodeIdentity(CLUSTER, NodeRole.NODE, NodeId("7d1b7a52-0000-4000-8000-000000000002"))
CA_KEY = make_key()
CA = make_ca(CLUSTER, CA_KEY, NOW_MS)
NODE_KEY = make_key()
REQUEST = make_request(NODE_KEY)


def issued(**changes: object) -> str:
    values: dict[str, object] = {"names": ["127.0.0.1", "n1.example"], "now_ms": NOW_MS}
    return issue(CA, CA_KEY, REQUEST, IDENTITY, **(values | changes))  # type: ignore[arg-type]


def test_the_ca_is_for_nodes_only_and_for_twenty_years() -> None:
    certificate = x509.load_pem_x509_certificate(CA.encode())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lifetime.days == 20 * 365
    certificate.verify_directly_issued_by(certificate)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert len(fingerprint(CA)) == 64
    assert fingerprint(make_ca(CLUSTER, CA_KEY, NOW_MS)) != fingerprint(CA)


def test_a_certificate_says_who_and_until_when() -> None:
    certificate = issued()
    found = read_node_certificate(certificate)
    assert (found.cluster_id, found.node_id, found.role) == (
        IDENTITY.cluster_id, IDENTITY.node_id, IDENTITY.role,
    )  # fmt: skip
    assert (found.not_before_ms, found.not_after_ms) == (NOW_MS - HOUR_MS, NOW_MS + 90 * DAY_MS)
    assert found.renew_at_ms() == NOW_MS + 45 * DAY_MS
    assert found.fingerprint == fingerprint(certificate)
    verify_issued(certificate, CA, NODE_KEY)


def test_a_node_cannot_issue() -> None:
    certificate = x509.load_pem_x509_certificate(issued().encode())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert not constraints.value.ca
    assert usage.digital_signature and not usage.key_cert_sign


def test_the_request_does_not_say_who_its_node_is() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    lying = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("cube://c/node/leader")]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = lying.public_bytes(serialization.Encoding.PEM).decode()
    certificate = issue(CA, CA_KEY, pem, IDENTITY, [], NOW_MS)
    assert read_node_certificate(certificate).node_id == IDENTITY.node_id
    parsed = x509.load_pem_x509_certificate(certificate.encode())
    assert not parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def of_other_kinds() -> list[str]:
    found = []
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        request = builder.sign(key, algorithm)
        found.append(request.public_bytes(serialization.Encoding.PEM).decode())
    return found


def damaged() -> str:
    """Signed by another key than the one it asks for."""
    der = bytearray(
        x509.load_pem_x509_csr(REQUEST.encode()).public_bytes(serialization.Encoding.DER)
    )
    der[-1] ^= 1
    request = x509.load_der_x509_csr(bytes(der))
    return request.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("pem", ["", "x", CA, NODE_KEY, "x" * 20_000, *of_other_kinds(), damaged()])
def test_what_is_no_request_is_refused(pem: str) -> None:
    with pytest.raises(BadPacket):
        issue(CA, CA_KEY, pem, IDENTITY, [], NOW_MS)


@pytest.mark.parametrize("names", [["näme"], ["x"] * (NAMES_MAX + 1)])
def test_names_that_are_none_are_refused(names: list[str]) -> None:
    with pytest.raises(BadPacket):
        issued(names=names)


@given(st.text(max_size=300))
def test_any_text_is_a_certificate_or_refused(text: str) -> None:
    for read in (read_node_certificate, fingerprint):
        with pytest.raises(BadPacket):
            read(text)


def test_the_ca_names_no_node() -> None:
    with pytest.raises(BadPacket, match="without a node's name"):
        read_node_certificate(CA)


def test_a_joiner_keeps_only_what_is_its_own_and_of_its_ca() -> None:
    with pytest.raises(BadPacket, match="another key"):
        verify_issued(issued(), CA, make_key())
    other_key = make_key()
    with pytest.raises(BadPacket, match="has not issued"):
        verify_issued(issued(), make_ca(CLUSTER, other_key, NOW_MS), NODE_KEY)


def test_errors_do_not_quote_keys() -> None:
    with pytest.raises(BadPacket) as found:
        make_ca(CLUSTER, CA_KEY[:-60], NOW_MS)
    assert CA_KEY[40:60] not in str(found.value)
    assert found.value.__cause__ is None
