"""Reading the caller from a certificate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from swingbus.faults import Forbidden, Unauthenticated
from swingbus.rpc.caller import (
    Caller,
    caller_from_auth_context,
    check_validity,
    current_caller,
    format_serial,
    require_role,
    set_current_caller,
)
from swingbus.rpc.roles import Role
from swingbus_controller.adapters import pki_certificates as certificates

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
CA_KEY = certificates.new_key()
CA = certificates.build_ca(CA_KEY, NOW)


def client_pem(name: str, role: Role) -> bytes:
    """Return a client certificate."""
    built = certificates.build_client(certificates.new_key(), name, role, ca=CA, ca_key=CA_KEY, now=NOW, days=30)
    return certificates.certificate_pem(built).encode()


@pytest.mark.parametrize("role", list(Role))
def test_issued_certificate_names_its_holder(role: Role) -> None:
    """Name, role, serial and validity come back."""
    pem = client_pem("edge-1", role)
    caller = caller_from_auth_context({"x509_pem_cert": [pem]})
    assert (caller.name, caller.role) == ("edge-1", role)
    assert caller.serial == format_serial(x509.load_pem_x509_certificate(pem).serial_number)
    assert caller.not_after == NOW + timedelta(days=30)


def test_no_certificate_is_nobody() -> None:
    """A connection without TLS client authentication."""
    with pytest.raises(Unauthenticated, match="no client certificate"):
        caller_from_auth_context({})


def test_server_certificate_cannot_call() -> None:
    """It names no role."""
    built = certificates.build_server(
        certificates.new_key(), ["swingbus-controller"], ca=CA, ca_key=CA_KEY, now=NOW, days=30
    )
    with pytest.raises(Unauthenticated, match="must name one of each"):
        caller_from_auth_context({"x509_pem_cert": [certificates.certificate_pem(built).encode()]})


def test_garbage_certificate_is_nobody() -> None:
    """Whatever cannot be read is refused, not a crash."""
    with pytest.raises(Unauthenticated, match="cannot be read"):
        caller_from_auth_context({"x509_pem_cert": [b"garbage"]})


def test_expired_certificate_is_refused_on_a_living_connection() -> None:
    """TLS looks at the date only in the handshake."""
    caller = Caller(name="edge-1", role=Role.AGENT, serial="1", not_before=NOW, not_after=NOW + timedelta(days=1))
    check_validity(caller, NOW + timedelta(hours=23))
    with pytest.raises(Unauthenticated, match="expired"):
        check_validity(caller, NOW + timedelta(hours=25))


def test_require_role_names_what_is_missing() -> None:
    """The message says who, what and which role it takes."""
    set_current_caller(Caller(name="vic", role=Role.VIEWER, serial="1", not_before=NOW, not_after=NOW))
    assert require_role(frozenset({Role.VIEWER}), "look").name == "vic"
    with pytest.raises(Forbidden, match="viewer 'vic' may not lift a lockout: it takes the role admin"):
        require_role(frozenset({Role.ADMIN}), "lift a lockout")
    set_current_caller(None)
    with pytest.raises(Unauthenticated):
        current_caller()
