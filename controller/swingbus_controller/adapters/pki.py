"""The site's own certificate authority: who may speak to the controller, and what the controller shows (`server_files` reads it).

Decides who gets a certificate and for how long; refuses to know what roles may do (`swingbus.rpc.roles`). Keys are made here, never a
default; every certificate is in the index before its bundle exists. Client certificates are good for clients only, so no agent can pose as
the controller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from swingbus.bundle import CONTROLLER_SERVER_NAME, Bundle, parse_endpoint, write_private
from swingbus.faults import AlreadyExists, InvalidInput, NotFound, Unreachable, WrongState
from swingbus.names import parse_id
from swingbus.rpc.caller import format_serial
from swingbus.rpc.roles import Role
from swingbus_controller.adapters import pki_certificates as certificates
from swingbus_controller.adapters.pki_records import DenyListFile, IssuedCertificate, IssueIndex, locked, parse_serial
from swingbus_controller.adapters.server_files import DENY_LIST, ServerFiles

DEFAULT_DAYS = 365
WARN_DAYS = 30
SERVER_ROLE = "server"
_SERVER_NAMES = "server-names.txt"
# Authors that the controller itself writes on the record, and the name by which agents know it.
RESERVED_NAMES = frozenset({"controller", "planner", "guard", "agent", CONTROLLER_SERVER_NAME})


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateState:
    """One issued certificate as it counts now."""

    certificate: IssuedCertificate
    state: str  # valid, expiring, expired, denied; superseded (a newer one exists, still accepted) or replaced (and expired)
    days_left: float

    @property
    def is_accepted(self) -> bool:
        """Whether the server lets its holder in."""
        return self.state in ("valid", "expiring", "superseded")


class CertificateAuthority:
    """A directory with a CA, the server's certificate, the index and the deny list."""

    def __init__(self, directory: Path) -> None:
        """Open what `create` made. Raises NotFound where there is nothing, InvalidInput where it cannot be read."""
        self.directory = directory
        if not (directory / "ca.pem").exists():
            raise NotFound(
                f"there is no certificate authority in {directory}: make one with swingbus-controller init, or name its place with --pki",
                reason="NO_AUTHORITY",
                metadata={"path": str(directory)},
            )
        try:
            self._endpoint = (directory / "endpoint.txt").read_text(encoding="ascii").strip()
            self._load_ca()
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"the certificate authority in {directory} cannot be read: {error}; restore it from a backup",
                reason="BAD_AUTHORITY",
                metadata={"path": str(directory)},
            ) from error
        self._index = IssueIndex(directory / "index.jsonl")

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        server_names: Sequence[str],
        endpoint: str | None,
        now: datetime,
        days: int = DEFAULT_DAYS,
    ) -> CertificateAuthority:
        """Make a CA and the server's certificate.

        Args:
            directory: made with mode 0700; must hold no CA.
            server_names: host names and addresses by which the controller is reached, besides localhost.
            endpoint: host:port that bundles carry; the first server name, else localhost, if None.
            now: aware; certificates count from here.
            days: of the server's certificate.
        """
        if (directory / "ca.pem").exists():
            raise AlreadyExists(
                f"{directory} already holds a certificate authority; a new one would lock out every agent and operator. "
                "To go on with it: swingbus-controller certificate list",
                reason="AUTHORITY_EXISTS",
                metadata={"path": str(directory)},
            )
        for name in server_names:
            certificates.general_name(name)
        reach = parse_endpoint(endpoint or next(iter(server_names), "localhost"))
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            with locked(directory):
                key = certificates.new_key()
                write_private(directory / "ca-key.pem", certificates.key_pem(key))
                write_private(directory / "endpoint.txt", reach + "\n")
                write_private(directory / _SERVER_NAMES, "".join(f"{name}\n" for name in server_names))
                write_private(
                    directory / DENY_LIST,
                    "# Revoked certificates: one serial a line (certificate list shows them).\n",
                )
                # Last: its presence says that the directory is complete but for the server's certificate, which can be renewed.
                write_private(directory / "ca.pem", certificates.certificate_pem(certificates.build_ca(key, now)))
        except OSError as error:
            raise Unreachable(
                f"cannot write {directory}: {error}; run as a user who may, or choose another place with --pki",
                reason="CANNOT_WRITE",
                metadata={"path": str(directory)},
            ) from error
        authority = cls(directory)
        authority.renew_server(now=now, days=days)
        return authority

    @property
    def ca_not_after(self) -> datetime:
        """When the CA itself expires."""
        return self._ca.not_valid_after_utc

    @property
    def endpoint(self) -> str:
        """host:port that bundles carry unless told otherwise."""
        return self._endpoint

    @property
    def ca_pem(self) -> str:
        """Everybody who is believed now: one authority, two while it rotates."""
        return self._ca_pem

    @property
    def server_names(self) -> Sequence[str]:
        """Host names and addresses of the server's certificate, besides those that every one has."""
        return tuple((self.directory / _SERVER_NAMES).read_text(encoding="ascii").split())

    def move(self, endpoint: str) -> None:
        """Let bundles carry another endpoint from now on."""
        self._endpoint = parse_endpoint(endpoint)
        write_private(self.directory / "endpoint.txt", self._endpoint + "\n")

    @property
    def serving(self) -> ServerFiles:
        """What the controller shows of it, and its deny list."""
        return ServerFiles(self.directory)

    @property
    def is_rotating(self) -> bool:
        """Whether an old CA is still trusted beside the new one."""
        return self._ca_count > 1

    def issue(
        self,
        name: str,
        role: Role,
        *,
        now: datetime,
        endpoint: str | None = None,
        days: int = DEFAULT_DAYS,
        renew: bool = False,
    ) -> Bundle:
        """Issue a certificate and return its bundle; the key exists nowhere else.

        Raises AlreadyExists where `name` holds a valid certificate and `renew` is not set, or is known in the other kind of role;
        NotFound where `renew` is set and the name never had one.
        """
        parse_id(name, "name")
        if name in RESERVED_NAMES:
            raise InvalidInput(
                f"the name {name!r} is the controller's own on the record: choose another",
                reason="RESERVED_NAME",
                metadata={"field": "name"},
            )
        reach = parse_endpoint(endpoint) if endpoint else self._endpoint
        with locked(self.directory):
            self._check_name(name, role, now, renew=renew)
            key = certificates.new_key()
            certificate = certificates.build_client(
                key, name, role, ca=self._ca, ca_key=self._ca_key(), now=now, days=days
            )
            self._record(certificate, name, role.value, now)
        return Bundle(
            name=name,
            role=role.value,
            endpoint=reach,
            server_name=CONTROLLER_SERVER_NAME,
            serial=format_serial(certificate.serial_number),
            expires=certificate.not_valid_after_utc,
            ca_pem=self._ca_pem,
            certificate_pem=certificates.certificate_pem(certificate),
            key_pem=certificates.key_pem(key),
        )

    def held_role(self, name: str, now: datetime) -> Role:
        """Return the role of the newest certificate of an agent or a person. Raises NotFound if there never was one."""
        roles = [
            s.certificate.role
            for s in self.states(now)
            if s.certificate.name == name and s.certificate.role != SERVER_ROLE
        ]
        if not roles:
            raise NotFound(
                f"{name!r} never had a certificate: use certificate issue",
                reason="NO_CERTIFICATE",
                metadata={"name": name},
            )
        return Role(roles[-1])

    def renew_server(
        self, *, now: datetime, days: int = DEFAULT_DAYS, server_names: Sequence[str] | None = None
    ) -> IssuedCertificate:
        """Issue the server's certificate anew, for these names or those of before; the running controller picks it up."""
        if self.is_rotating:
            raise WrongState(
                "a rotation is under way: bundles of before trust only the old authority, a new server certificate would lock them out; "
                "renew the others first, then certificate rotate --finish",
                reason="ROTATION_OPEN",
            )
        return self._sign_server(now=now, days=days, server_names=server_names)

    def states(self, now: datetime) -> Sequence[CertificateState]:
        """Return every certificate ever issued and how it counts now, oldest first."""
        issued = self._index.read()
        newest = {c.name: c.serial for c in issued}
        denied = DenyListFile(self.serving.deny_list_path)
        return [
            _state(c, now, is_denied=denied.is_denied(c.serial), is_newest=newest[c.name] == c.serial) for c in issued
        ]

    def warnings(self, now: datetime, *, place: str = "") -> Sequence[str]:
        """Return one line for everything in use that has expired or soon will, with the next step.

        Args:
            place: the options that name this authority in that step, with a blank before them.
        """
        lines = []
        ca_days = (self.ca_not_after - now) / timedelta(days=1)
        if ca_days < DEFAULT_DAYS:
            lines.append(f"the certificate authority {_when(ca_days)}: see docs/certificates.md, Rotation")
        for state in self.states(now):
            if state.state in ("expiring", "expired"):
                c = state.certificate
                target = (
                    "--server"
                    if c.role == SERVER_ROLE
                    else f"--{'agent' if c.role == Role.AGENT else 'operator'} {c.name}"
                )
                lines.append(
                    f"the certificate of {c.role} {c.name} {_when(state.days_left)}: swingbus-controller certificate renew{place} {target}"
                )
        return lines

    def deny(self, serial: str, *, comment: str) -> IssuedCertificate:
        """Revoke one certificate; the running controller refuses it from its next call on. Raises NotFound for an unknown serial."""
        wanted = parse_serial(serial)
        known = {c.serial: c for c in self._index.read()}
        if wanted not in known:
            raise NotFound(
                f"no certificate with serial {serial!r} was issued here; swingbus-controller certificate list shows serials",
                reason="NO_CERTIFICATE",
                metadata={"serial": serial[:80]},
            )
        with locked(self.directory):
            DenyListFile(self.serving.deny_list_path).deny(wanted, comment)
        return known[wanted]

    def rotate(self, *, now: datetime) -> None:
        """Start a new CA beside the old one: new certificates are the new one's, both are trusted until `finish_rotation`."""
        if self.is_rotating:
            raise WrongState(
                "a rotation is already under way: finish it with certificate rotate --finish", reason="ROTATION_OPEN"
            )
        with locked(self.directory):
            old_key, key = self._ca_key(), certificates.new_key()
            ca_pem = certificates.certificate_pem(certificates.build_ca(key, now))
            # Both keys lie there while ca.pem changes, so that a crash in between leaves a working authority.
            write_private(self.directory / "ca-key.pem", certificates.key_pem(key) + certificates.key_pem(old_key))
            write_private(self.directory / "ca.pem", ca_pem + self._ca_pem)
            write_private(self.directory / "ca-key.pem", certificates.key_pem(key))
            self._load_ca()

    def finish_rotation(self, *, now: datetime, force: bool = False) -> None:
        """Drop the old CA and sign the server's certificate by the new one. Refuses while somebody in use has only the old one's."""
        if not self.is_rotating:
            raise WrongState("no rotation is under way: start one with certificate rotate", reason="NO_ROTATION")
        behind = [
            s.certificate.name
            for s in self.states(now)
            if s.state in ("valid", "expiring")
            and s.certificate.role != SERVER_ROLE
            and s.certificate.not_before < self._ca.not_valid_before_utc
        ]
        if behind and not force:
            raise WrongState(
                f"{len(behind)} certificates are still the old authority's ({', '.join(behind[:8])}): renew and install them first, "
                "or lock them out with --force",
                reason="ROTATION_OPEN",
                metadata={"behind_count": str(len(behind))},
            )
        self._sign_server(now=now, days=DEFAULT_DAYS, server_names=None)
        with locked(self.directory):
            write_private(self.directory / "ca.pem", certificates.certificate_pem(self._ca))
            self._load_ca()

    def _sign_server(self, *, now: datetime, days: int, server_names: Sequence[str] | None) -> IssuedCertificate:
        names = self.server_names if server_names is None else tuple(server_names)
        every_name = (CONTROLLER_SERVER_NAME, "localhost", "127.0.0.1", "::1", *names)
        with locked(self.directory):
            key = certificates.new_key()
            certificate = certificates.build_server(
                key, every_name, ca=self._ca, ca_key=self._ca_key(), now=now, days=days
            )
            record = self._record(certificate, CONTROLLER_SERVER_NAME, SERVER_ROLE, now)
            # One file, so that a crash never leaves a key beside another key's certificate.
            write_private(
                self.directory / "server.pem", certificates.certificate_pem(certificate) + certificates.key_pem(key)
            )
            write_private(self.directory / _SERVER_NAMES, "".join(f"{name}\n" for name in names))
        return record

    def _check_name(self, name: str, role: Role, now: datetime, *, renew: bool) -> None:
        held = [s for s in self.states(now) if s.certificate.name == name]
        is_agent = role is Role.AGENT
        if any((s.certificate.role == Role.AGENT) is not is_agent for s in held):
            kind = "a person's" if is_agent else "an agent's"
            raise AlreadyExists(
                f"{name!r} is {kind} name here, and authors on the record must not be mistaken: choose another",
                reason="NAME_OF_OTHER_KIND",
                metadata={"name": name},
            )
        in_use = [s for s in held if s.state in ("valid", "expiring")]
        if in_use and not renew:
            raise AlreadyExists(
                f"{name!r} holds a valid certificate until {in_use[-1].certificate.not_after:%Y-%m-%d}: use certificate renew",
                reason="NAME_IN_USE",
                metadata={"name": name, "serial": in_use[-1].certificate.serial},
            )
        if renew and not held:
            raise NotFound(
                f"{name!r} never had a certificate: use certificate issue",
                reason="NO_CERTIFICATE",
                metadata={"name": name},
            )

    def _load_ca(self) -> None:
        self._ca_pem = (self.directory / "ca.pem").read_text(encoding="ascii")
        trusted = x509.load_pem_x509_certificates(self._ca_pem.encode())
        self._ca = trusted[0]
        self._ca_count = len(trusted)

    def _ca_key(self) -> ec.EllipticCurvePrivateKey:
        path = self.directory / "ca-key.pem"
        facts = {"path": str(path)}
        try:
            keys = certificates.parse_keys(path.read_text(encoding="ascii"))
        except FileNotFoundError as error:
            raise NotFound(
                f"the CA's key {path} is not here (kept elsewhere?): bring it back to issue certificates",
                reason="NO_CA_KEY",
                metadata=facts,
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise InvalidInput(
                f"the CA's key {path} cannot be read: {error}", reason="BAD_CA_KEY", metadata=facts
            ) from error
        for key in keys:
            if key.public_key() == self._ca.public_key():
                return key
        raise InvalidInput(
            f"the key in {path} is not the key of ca.pem: restore both from one backup",
            reason="BAD_CA_KEY",
            metadata=facts,
        )

    def _record(self, certificate: x509.Certificate, name: str, role: str, now: datetime) -> IssuedCertificate:
        record = IssuedCertificate(
            serial=format_serial(certificate.serial_number),
            name=name,
            role=role,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            issue_time=now.astimezone(UTC),
        )
        self._index.append(record)
        return record


def _state(certificate: IssuedCertificate, now: datetime, *, is_denied: bool, is_newest: bool) -> CertificateState:
    days_left = (certificate.not_after - now) / timedelta(days=1)
    if is_denied:
        state = "denied"
    elif not is_newest:
        state = "superseded" if days_left > 0 else "replaced"
    elif days_left <= 0:
        state = "expired"
    else:
        state = "expiring" if days_left < WARN_DAYS else "valid"
    return CertificateState(certificate=certificate, state=state, days_left=days_left)


def _when(days: float) -> str:
    return f"expired {-days:.0f} days ago" if days <= 0 else f"expires in {days:.0f} days"
