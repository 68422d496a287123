"""The cluster's CA and its nodes' certificates: ECDSA P-256, X.509.

Times and keys come in or out as values (PEM, milliseconds); nothing is read or written here.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cube.adapters.trust import tickets
from cube.model.errors import BadPacket
from cube.model.ids import ClusterId
from cube.model.trust import (
    BACKDATE_MS,
    CA_CERTIFICATE_DAYS,
    NODE_CERTIFICATE_MS,
    PEM_CHARS_MAX,
    NodeCertificate,
    NodeIdentity,
    node_uri,
    parse_node_uri,
)

NAMES_MAX = 16  # addresses that one certificate vouches for
_DAY_MS = 86_400_000


def make_key() -> str:
    """A private key, as PEM without a password: it is kept 0600, or sealed."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def make_ca(cluster_id: ClusterId, key_pem: str, now_ms: int) -> str:
    """A certificate that signs itself, good for 20 years, for nodes only (no CA below it)."""
    key = _key(key_pem)
    name = _name(f"Cube CA {cluster_id}")
    builder = _begin(
        name, name, key.public_key(), now_ms, CA_CERTIFICATE_DAYS * _DAY_MS
    ).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(is_ca=True), critical=True)
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    )
    return _pem(builder.sign(key, hashes.SHA256()))


def make_request(key_pem: str) -> str:
    """A signing request. It proves who has the key and says nothing else: who the node is, the
    issuer decides."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name("Cube node"))
    request = builder.sign(_key(key_pem), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def issue(
    ca_pem: str,
    ca_key_pem: str,
    request_pem: str,
    identity: NodeIdentity,
    names: Sequence[str],
    now_ms: int,
) -> str:
    """A node's certificate, good for 90 days from an hour ago. `names`: the hosts (names or
    addresses) at which HTTPS clients may find it. Raises BadPacket for a request that is none."""
    public_key = _requested_key(request_pem)
    ca = _certificate(ca_pem)
    ca_key = _key(ca_key_pem)
    assert ca.public_key() == ca_key.public_key(), "the CA's key is another's"
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(node_uri(identity))]
    if len(names) > NAMES_MAX:
        raise BadPacket(f"{len(names)} names in one certificate")
    alternatives += [_general_name(name) for name in names]
    builder = (
        _begin(_name(identity.node_id), ca.subject, public_key, now_ms, NODE_CERTIFICATE_MS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    )
    return _pem(builder.sign(ca_key, hashes.SHA256()))


def fingerprint(certificate_pem: str) -> str:
    """SHA-256 of its DER, in hex. Raises BadPacket."""
    der = _certificate(certificate_pem).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def read_node_certificate(certificate_pem: str) -> NodeCertificate:
    """What it says; nothing is verified. Raises BadPacket for one that names no node."""
    certificate = _certificate(certificate_pem)
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise BadPacket("a certificate without a node's name") from error
    identity = identity_of(extension.value.get_values_for_type(x509.UniformResourceIdentifier))
    return NodeCertificate(
        cluster_id=identity.cluster_id,
        node_id=identity.node_id,
        role=identity.role,
        serial=certificate.serial_number,
        fingerprint=fingerprint(certificate_pem),
        not_before_ms=_ms(certificate.not_valid_before_utc),
        not_after_ms=_ms(certificate.not_valid_after_utc),
    )


def identity_of(uris: Sequence[str]) -> NodeIdentity:
    """Whom the names of a certificate mean: exactly one node. Raises BadPacket."""
    if len(uris) != 1:
        raise BadPacket(f"a certificate with {len(uris)} names of nodes")
    try:
        return parse_node_uri(uris[0])
    except ValueError as error:
        raise BadPacket(str(error)) from error


def verify_issued(certificate_pem: str, ca_pem: str, key_pem: str) -> None:
    """The certificate is of this key and by this CA: a joiner checks what it is given before it
    keeps it. Raises BadPacket."""
    certificate = _certificate(certificate_pem)
    if certificate.public_key() != _key(key_pem).public_key():
        raise BadPacket("a certificate for another key")
    try:
        certificate.verify_directly_issued_by(_certificate(ca_pem))
    except (InvalidSignature, ValueError, TypeError) as error:
        raise BadPacket("a certificate that this cluster's CA has not issued") from error


class X509Certificates:
    """ports.trust.Certificates, and services.founding.Authority, by the functions of this module."""

    def make_ca(self, cluster_id: ClusterId, key_pem: str, now_ms: int) -> str:
        return make_ca(cluster_id, key_pem, now_ms)

    def make_key(self) -> str:
        return make_key()

    def make_request(self, key_pem: str) -> str:
        return make_request(key_pem)

    def fingerprint(self, certificate_pem: str) -> str:
        return fingerprint(certificate_pem)

    def token_key(self, secret: bytes) -> bytes:
        return tickets.token_key(secret)

    def verify_issued(self, certificate_pem: str, ca_pem: str, key_pem: str) -> None:
        verify_issued(certificate_pem, ca_pem, key_pem)

    def node_of(self, certificate_pem: str) -> NodeIdentity:
        found = read_node_certificate(certificate_pem)
        return NodeIdentity(found.cluster_id, found.role, found.node_id)

    def issue(
        self,
        ca_pem: str,
        ca_key_pem: str,
        request_pem: str,
        identity: NodeIdentity,
        names: Sequence[str],
        now_ms: int,
    ) -> str:
        return issue(ca_pem, ca_key_pem, request_pem, identity, names, now_ms)


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now_ms: int,
    lifetime_ms: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now_ms - BACKDATE_MS))
        .not_valid_after(_time(now_ms + lifetime_ms))
    )


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise BadPacket("a host whose name is none") from error


def _requested_key(request_pem: str) -> ec.EllipticCurvePublicKey:
    """The key that the request is for and signed with. Raises BadPacket."""
    if len(request_pem) > PEM_CHARS_MAX:
        raise BadPacket("a signing request that is too long")
    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        key = request.public_key()
        is_signed = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BadPacket("not a signing request") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadPacket("a signing request for a key that is not P-256")
    if not is_signed:
        raise BadPacket("a signing request that its key has not signed")
    return key


def _certificate(pem: str) -> x509.Certificate:
    if len(pem) > PEM_CHARS_MAX:
        raise BadPacket("a certificate that is too long")
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise BadPacket("not a certificate") from error


def _key(pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError):
        raise BadPacket("not a private key") from None  # the cause may quote it
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadPacket("not a private key of ours")
    return key


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _time(at_ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at_ms // 1000, datetime.UTC)


def _ms(at: datetime.datetime) -> int:
    return int(at.timestamp()) * 1000
