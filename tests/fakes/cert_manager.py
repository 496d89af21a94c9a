"""Certificates as cert-manager writes them into a Secret: `tls.crt`, `tls.key`, `ca.crt`.

The double signs what a Certificate of ours asks for (common name, DNS names, URIs, usages), with an RSA key in PKCS #1 by default, which
is cert-manager's own default, or with EC in SEC 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class CertManager:
    """An Issuer of kind CA."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site issuer")])
        self._ca = (
            _begun(subject, subject, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def server(self, dns_names: Sequence[str], *, is_rsa: bool = True) -> dict[str, str]:
        """Return the Secret of a server's Certificate."""
        names = [x509.DNSName(name) for name in dns_names]
        return self._secret(dns_names[0], names, ExtendedKeyUsageOID.SERVER_AUTH, is_rsa=is_rsa)

    def client(self, name: str, *uris: str, is_rsa: bool = True) -> dict[str, str]:
        """Return the Secret of a client's Certificate."""
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        return self._secret(name, names, ExtendedKeyUsageOID.CLIENT_AUTH, is_rsa=is_rsa)

    def _secret(
        self, name: str, alternatives: Sequence[x509.GeneralName], usage: x509.ObjectIdentifier, *, is_rsa: bool
    ) -> dict[str, str]:
        key: PrivateKey = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048)
            if is_rsa
            else ec.generate_private_key(ec.SECP256R1())
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _begun(subject, self._ca.subject, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        traditional = serialization.PrivateFormat.TraditionalOpenSSL
        return {
            "tls.crt": _pem(certificate),
            "tls.key": key.private_bytes(
                serialization.Encoding.PEM, traditional, serialization.NoEncryption()
            ).decode(),
            "ca.crt": _pem(self._ca),
        }


def write_folder(folder: Path, secret: dict[str, str], *, mode: int = 0o600) -> Path:
    """Write a Secret as a volume shows it; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in secret.items():
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    return folder


def _begun(subject: x509.Name, issuer: x509.Name, key: PrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=90))
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def read_serial(certificate_pem: str) -> str:
    """Return a certificate's serial as openssl and people write it: in upper case."""
    return f"{x509.load_pem_x509_certificate(certificate_pem.encode()).serial_number:X}"
