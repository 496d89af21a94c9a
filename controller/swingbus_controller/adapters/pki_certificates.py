"""How our certificates look: pure builders of X.509, no files, no policy of who gets one.

P-256 everywhere. Server certificates are good for servers only, client certificates for clients only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swingbus.faults import InvalidInput
from swingbus.rpc.caller import ROLE_URI_PREFIX, format_serial
from swingbus.rpc.roles import Role

CA_DAYS = 3650
# Machines whose clock runs a little late must accept a fresh certificate.
BACKDATE = timedelta(minutes=5)

_DNS_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_DNS_LABEL}(\.{_DNS_LABEL})*")
_KEY_BLOCK = re.compile(r"-----BEGIN (?:EC )?PRIVATE KEY-----.*?-----END (?:EC )?PRIVATE KEY-----\n?", re.DOTALL)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def build_ca(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Return a self-signed CA certificate that may sign ends only, with a name of its own (rotation has two at a time)."""
    serial = x509.random_serial_number()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"swingbus CA {format_serial(serial)[:8]}")])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def build_client(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    role: Role,
    *,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    days: int,
) -> x509.Certificate:
    """Return a certificate that names a caller and its role."""
    alternatives = [x509.UniformResourceIdentifier(ROLE_URI_PREFIX + role.value)]
    return _build(key, name, alternatives, ExtendedKeyUsageOID.CLIENT_AUTH, ca=ca, ca_key=ca_key, now=now, days=days)


def build_server(
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    *,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    days: int,
) -> x509.Certificate:
    """Return a certificate for a server reached by these names and addresses; the first is its common name."""
    alternatives = [general_name(name) for name in dict.fromkeys(names)]
    return _build(
        key, names[0], alternatives, ExtendedKeyUsageOID.SERVER_AUTH, ca=ca, ca_key=ca_key, now=now, days=days
    )


def _build(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    alternatives: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    *,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    days: int,
) -> x509.Certificate:
    if days < 1:
        raise InvalidInput(
            f"{days} days: a certificate must last at least one", reason="BAD_DAYS", metadata={"field": "days"}
        )
    not_after = now + timedelta(days=days)
    if not_after > ca.not_valid_after_utc:
        raise InvalidInput(
            f"{days} days reach past the certificate authority's own end ({ca.not_valid_after_utc:%Y-%m-%d}): ask for fewer, "
            "or rotate the authority (docs/certificates.md)",
            reason="BAD_DAYS",
            metadata={"field": "days"},
        )
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def general_name(name: str) -> x509.GeneralName:
    """Return a host name or address as a subject alternative name. Raises InvalidInput if it is neither."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        if _DNS_NAME.fullmatch(name):
            return x509.DNSName(name)
    raise InvalidInput(
        f"{name!r} is neither a host name nor an address (no port, no scheme): for instance controller.site.example or 10.0.0.5",
        reason="BAD_SERVER_NAME",
        metadata={"field": "name", "value": name[:100]},
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def certificate_pem(certificate: x509.Certificate) -> str:
    """Write a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Write a key as unencrypted PKCS #8: the file's mode is what protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode("ascii")


def parse_keys(text: str) -> Sequence[ec.EllipticCurvePrivateKey]:
    """Return the keys in a PEM file. Raises ValueError, never with key material in its message."""
    keys = [
        serialization.load_pem_private_key(block.encode("ascii"), password=None) for block in _KEY_BLOCK.findall(text)
    ]
    if not keys or not all(isinstance(key, ec.EllipticCurvePrivateKey) for key in keys):
        raise ValueError("it holds no elliptic-curve key")
    return [key for key in keys if isinstance(key, ec.EllipticCurvePrivateKey)]
