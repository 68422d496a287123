"""Certificates for an engine behind TLS, and for who may talk to it."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_certificates(directory: Path) -> None:
    """ca.pem, and of it one pair for the engine (server) and one for clients (cert, key), as Docker's
    documentation names them; and one of a CA that nobody knows (other, other-key)."""
    made: dict[str, tuple[x509.Certificate, ec.EllipticCurvePrivateKey]] = {}
    for name, issuer in (
        ("ca", "ca"), ("server", "ca"), ("cert", "ca"), ("strange", "strange"), ("other", "strange"),
    ):  # fmt: skip
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issued_by, signer = (subject, key) if issuer == name else (
            made[issuer][0].subject, made[issuer][1]
        )  # fmt: skip
        now = datetime.datetime.now(datetime.UTC)
        alternative = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issued_by)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(
                x509.BasicConstraints(ca=issuer == name, path_length=None), critical=True
            )
            .add_extension(alternative, critical=False)
            .sign(signer, hashes.SHA256())
        )
        made[name] = certificate, key
        key_name = "key" if name == "cert" else f"{name}-key"
        pem = serialization.Encoding.PEM
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
        (directory / f"{key_name}.pem").write_bytes(
            key.private_bytes(
                pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )  # fmt: skip
