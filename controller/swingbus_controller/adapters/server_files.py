"""What the running controller shows and whom it believes: the files in its certificates' folder, as they are now.

Decides which files are meant: those of our own authority (`server.pem`: certificate and key in one, `ca.pem`), or those that cert-manager
writes into a Secret (`tls.crt`, `tls.key`, `ca.crt`). Refuses to sign anything. Invariant: what is returned fits together: the key is the
certificate's, and the certificate carries the name by which every client looks for a controller. A folder that is read in mid-change does
not, and is an error, so that a server keeps what it had.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from cryptography import x509

from swingbus.bundle import CONTROLLER_SERVER_NAME
from swingbus.faults import InvalidInput, NotFound
from swingbus.rpc.server import ServerIdentity
from swingbus.rpc.tls_folder import fitting_certificate

DENY_LIST = "denied.txt"
_KEY = re.compile(r"-----BEGIN (?:EC |RSA )?PRIVATE KEY-----.*", re.DOTALL)


class ServerFiles:
    """A folder with a server's certificate, its key and the authorities that are believed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def deny_list_path(self) -> Path:
        """The file that the running controller watches; there need be none."""
        return self.folder / DENY_LIST

    def identity(self) -> ServerIdentity:
        """Return what to show. Raises NotFound where files are missing, InvalidInput where they do not fit together."""
        try:
            if (self.folder / "server.pem").exists():
                certificate_pem, key_pem = _parts((self.folder / "server.pem").read_text(encoding="ascii"))
                ca_pem = (self.folder / "ca.pem").read_text(encoding="ascii")
            else:
                certificate_pem, key_pem, ca_pem = (
                    (self.folder / name).read_text(encoding="ascii") for name in ("tls.crt", "tls.key", "ca.crt")
                )
        except FileNotFoundError as error:
            raise NotFound(
                f"{self.folder} has no {Path(str(error.filename)).name}: it needs server.pem and ca.pem (swingbus-controller init, or "
                "certificate renew --server), or tls.crt, tls.key and ca.crt as cert-manager writes them (docs/certificates.md)",
                reason="NO_SERVER_CERTIFICATE",
                metadata={"path": str(self.folder)},
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(
                f"the certificates in {self.folder} cannot be read: {error}; check its owner and modes",
                reason="BAD_SERVER_CERTIFICATE",
                metadata={"path": str(self.folder)},
            ) from error
        _check(str(self.folder), ca_pem, certificate_pem, key_pem)
        return ServerIdentity(ca_pem=ca_pem, certificate_pem=certificate_pem, key_pem=key_pem)


@lru_cache(maxsize=4)  # as `_check`: it is asked for at every handshake
def end_unix_s(identity: ServerIdentity) -> float:
    """Return when a server's certificate ends."""
    return x509.load_pem_x509_certificates(identity.certificate_pem.encode("ascii"))[0].not_valid_after_utc.timestamp()


def _parts(text: str) -> tuple[str, str]:
    """Return certificate and key of a file that holds one after the other."""
    key = _KEY.search(text)
    return (text, "") if key is None else (text[: key.start()], key[0])


# Looked at once for each renewal, not at every handshake.
@lru_cache(maxsize=4)
def _check(where: str, ca_pem: str, certificate_pem: str, key_pem: str) -> None:
    """Raise InvalidInput where a client could not believe this server; no message holds a key."""
    certificate = fitting_certificate(
        where, certificate_pem=certificate_pem, key_pem=key_pem, ca_pem=ca_pem, reason="BAD_SERVER_CERTIFICATE"
    )
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        hosts = []
    if CONTROLLER_SERVER_NAME not in hosts:
        raise InvalidInput(
            f"the certificate in {where} is for {', '.join(hosts) or 'no host name'}; agents look for {CONTROLLER_SERVER_NAME}, whatever "
            "the address: add that to its dnsNames",
            reason="BAD_SERVER_NAME",
            metadata={"path": where},
        )
