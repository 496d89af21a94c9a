"""A holder's certificate as cert-manager writes it into a Secret, read as a bundle: `tls.crt`, `tls.key`, `ca.crt` in one folder.

Decides what a bundle says besides (`endpoint` it is told, the rest stands in the certificate). Refuses a certificate that the controller
would not let in: it must name one holder and one role (`caller`).
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from swingbus.bundle import CONTROLLER_SERVER_NAME, Bundle, parse_endpoint, require_private
from swingbus.faults import InvalidInput, NotFound, Unauthenticated
from swingbus.rpc.caller import caller_from_certificate


def read_tls_folder(folder: Path, endpoint: str | None) -> Bundle:
    """Return the bundle that a folder amounts to.

    Args:
        endpoint: host:port of the controller, which no certificate says.

    Raises NotFound, or InvalidInput that says what is wrong and holds no key.
    """
    if endpoint is None:
        raise InvalidInput(
            f"{folder} has certificates, but not where the controller is: say --endpoint HOST:PORT",
            reason="NO_ENDPOINT",
        )
    facts = {"path": str(folder)}
    try:
        key_path = folder / "tls.key"
        require_private(key_path, key_path.stat())
        certificate_pem, key_pem, ca_pem = (
            path.read_text(encoding="ascii") for path in (folder / "tls.crt", key_path, folder / "ca.crt")
        )
    except FileNotFoundError as error:
        raise NotFound(
            f"{folder} has no {Path(str(error.filename)).name}: it takes tls.crt, tls.key and ca.crt, as cert-manager writes them",
            reason="NO_BUNDLE",
            metadata=facts,
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"cannot read the certificates in {folder}: {error}", reason="BAD_BUNDLE", metadata=facts
        ) from error
    certificate = fitting_certificate(
        str(folder), certificate_pem=certificate_pem, key_pem=key_pem, ca_pem=ca_pem, reason="BAD_BUNDLE"
    )
    try:
        holder = caller_from_certificate(certificate)
    except Unauthenticated as error:
        raise InvalidInput(
            f"{folder}: the certificate must have one common name, the holder's, and one URI swingbus:role:ROLE ({error})",
            reason="BAD_BUNDLE",
            metadata=facts,
        ) from error
    return Bundle(
        name=holder.name,
        role=holder.role.value,
        endpoint=parse_endpoint(endpoint),
        server_name=CONTROLLER_SERVER_NAME,
        serial=holder.serial,
        expires=holder.not_after,
        ca_pem=ca_pem,
        certificate_pem=certificate_pem,
        key_pem=key_pem,
    )


def fitting_certificate(
    where: str, *, certificate_pem: str, key_pem: str, ca_pem: str, reason: str
) -> x509.Certificate:
    """Return the first certificate of a chain; raise InvalidInput (`reason`) where the key is not its key. No message holds a key."""
    try:
        certificate = x509.load_pem_x509_certificates(certificate_pem.encode("ascii"))[0]
        x509.load_pem_x509_certificates(ca_pem.encode("ascii"))
        key = serialization.load_pem_private_key(key_pem.encode("ascii"), password=None)
    except (ValueError, TypeError, IndexError):  # nothing of it is quoted: it may be the key
        raise InvalidInput(
            f"{where} holds no PEM certificate with its authority and an unencrypted key: write them anew (docs/certificates.md)",
            reason=reason,
            metadata={"path": where},
        ) from None
    if key.public_key() != certificate.public_key():
        raise InvalidInput(
            f"the key in {where} is not the key of the certificate there: take both from one source",
            reason=reason,
            metadata={"path": where},
        )
    return certificate
