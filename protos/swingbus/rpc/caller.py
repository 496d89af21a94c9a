"""Who calls: read from the peer's certificate, never from the payload.

Decides how a certificate is read: the common name is the author, the URI `swingbus:role:{role}` among the subject alternative names is
the role. Refuses to know what the caller may do (`roles`). The handshake has already checked that our CA signed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID

from swingbus.faults import Forbidden, InvalidInput, Unauthenticated
from swingbus.names import parse_id
from swingbus.rpc.roles import Role, lowest

ROLE_URI_PREFIX = "swingbus:role:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The holder of the certificate of this connection."""

    name: str  # the author on the record
    role: Role
    serial: str  # hexadecimal, lower-case, no leading zeros
    not_before: datetime
    not_after: datetime


_CALLER: ContextVar[Caller | None] = ContextVar("swingbus_caller", default=None)


def current_caller() -> Caller:
    """Return who calls the RPC that this task serves. Raises Unauthenticated outside of one."""
    caller = _CALLER.get()
    if caller is None:
        raise Unauthenticated("nobody is calling: this code runs outside an authenticated RPC", reason="NO_CALLER")
    return caller


def set_current_caller(caller: Caller | None) -> None:
    """Set the caller of this task (for the interceptor, and for tests of servicers without a server)."""
    _CALLER.set(caller)


def require_role(roles: frozenset[Role], what: str) -> Caller:
    """Return the caller if its role is one of `roles`, else raise Forbidden that names `what`."""
    caller = current_caller()
    if caller.role not in roles:
        raise Forbidden(
            f"{caller.role} {caller.name!r} may not {what}: it takes the role {lowest(roles)}; "
            "ask an admin, or for a certificate with that role",
            reason="ROLE_NOT_ALLOWED",
            metadata={"caller": caller.name, "role": caller.role, "required_role": lowest(roles)},
        )
    return caller


def caller_from_auth_context(auth_context: Mapping[str, Iterable[bytes]]) -> Caller:
    """Return the caller of a connection. Raises Unauthenticated where it showed no certificate that names a holder and a role."""
    certificates = [bytes(pem) for pem in auth_context.get("x509_pem_cert") or ()]
    if not certificates:
        raise Unauthenticated(
            "no client certificate was shown: use a bundle from swingbus-controller certificate issue",
            reason="NO_CERTIFICATE",
        )
    return _caller_from_pem(certificates[0])


# One entry per connection that is alive is enough; parsing takes 50 µs and every unary call would pay it.
@lru_cache(maxsize=4096)
def _caller_from_pem(pem: bytes) -> Caller:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        return caller_from_certificate(certificate)
    except ValueError as error:
        raise Unauthenticated(f"the client certificate cannot be read: {error}", reason="BAD_CERTIFICATE") from error


def caller_from_certificate(certificate: x509.Certificate) -> Caller:
    """Return the holder that a certificate names. Raises Unauthenticated if it is none of ours."""
    serial = format_serial(certificate.serial_number)
    advice = "issue a new one with swingbus-controller certificate issue"
    names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    roles = [uri.removeprefix(ROLE_URI_PREFIX) for uri in uris if uri.startswith(ROLE_URI_PREFIX)]
    if len(names) != 1 or len(roles) != 1 or roles[0] not in list(Role):
        raise Unauthenticated(
            f"the client certificate {serial} names {len(names)} holders and the roles {roles}: it must name one of each; {advice}",
            reason="BAD_CERTIFICATE",
            metadata={"serial": serial},
        )
    try:
        parse_id(names[0], "certificate name")
    except InvalidInput as error:
        raise Unauthenticated(f"{error}; {advice}", reason="BAD_CERTIFICATE", metadata={"serial": serial}) from error
    return Caller(
        name=names[0],
        role=Role(roles[0]),
        serial=serial,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def check_validity(caller: Caller, now: datetime) -> None:
    """Raise Unauthenticated if the certificate has run out: connections outlive handshakes."""
    if now.astimezone(UTC) > caller.not_after:
        raise Unauthenticated(
            f"the certificate of {caller.name!r} expired at {caller.not_after:%Y-%m-%d %H:%M} UTC: "
            "renew it with swingbus-controller certificate renew",
            reason="CERTIFICATE_EXPIRED",
            metadata={"caller": caller.name, "serial": caller.serial},
        )


def format_serial(serial: int) -> str:
    """Return a certificate's serial as it is written everywhere: lower-case hexadecimal."""
    return f"{serial:x}"
