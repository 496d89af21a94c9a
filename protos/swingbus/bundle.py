"""The bundle: one file to carry to an agent's or an operator's machine, with everything needed to reach a controller.

Holds the CA certificate, the holder's certificate and private key, the endpoint, and who the holder is. It is secret: files are written
with mode 0600. `parse_bundle` and `format_bundle` are pure; `load_bundle` and `install_bundle` are the only functions here that touch the
disk. The certificate is what counts: `name`, `role` and `expires` repeat it for people and are never trusted by the other side.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import tomllib
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from swingbus.faults import AlreadyExists, InvalidInput, NotFound
from swingbus.names import parse_id

BUNDLE_VERSION = 1
BUNDLE_FILE = "bundle.toml"
DEFAULT_PORT = 7443
# Every controller certificate carries this name, so that agents need not know by which address they reach it.
CONTROLLER_SERVER_NAME = "swingbus-controller"
ROLES = ("agent", "viewer", "operator", "admin")
_CERTIFICATE_MARK = "-----BEGIN CERTIFICATE-----"
_KEY_MARK = re.compile(r"-----BEGIN (EC |RSA )?PRIVATE KEY-----")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What one holder needs. `key_pem` is left out of repr."""

    name: str
    role: str
    endpoint: str  # host:port
    server_name: str
    serial: str  # hexadecimal, lower-case
    expires: datetime  # aware, UTC
    ca_pem: str
    certificate_pem: str
    key_pem: str

    def __repr__(self) -> str:
        return f"Bundle(name={self.name!r}, role={self.role!r}, endpoint={self.endpoint!r}, serial={self.serial!r})"


def parse_endpoint(text: str, what: str = "endpoint") -> str:
    """Return `host:port`, with the default port where none is given. IPv6 addresses are written in brackets."""
    stripped = text.strip()
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:/\s\[\]]+)(?::([0-9]{1,5}))?", stripped)
    port = int(match[2]) if match and match[2] else DEFAULT_PORT
    if match is None or not 0 < port < 65536:
        raise InvalidInput(
            f"{what} {text!r} is not host:port, for instance 10.0.0.5:{DEFAULT_PORT} or [::1]:{DEFAULT_PORT}",
            reason="BAD_ENDPOINT",
            metadata={"field": what, "value": text[:100]},
        )
    return f"{match[1]}:{port}"


def format_bundle(bundle: Bundle) -> str:
    """Write a bundle as TOML text."""
    quote = json.dumps  # a JSON string is a TOML basic string
    return "\n".join(
        [
            "# Swingbus bundle. It holds a private key: keep it secret, carry it to one machine, delete other copies.",
            f"version = {BUNDLE_VERSION}",
            f"name = {quote(bundle.name)}",
            f"role = {quote(bundle.role)}",
            f"endpoint = {quote(bundle.endpoint)}",
            f"server_name = {quote(bundle.server_name)}",
            f"serial = {quote(bundle.serial)}",
            f"expires = {bundle.expires.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}",
            f'ca_pem = """\n{bundle.ca_pem.strip()}\n"""',
            f'certificate_pem = """\n{bundle.certificate_pem.strip()}\n"""',
            f'key_pem = """\n{bundle.key_pem.strip()}\n"""',
            "",
        ]
    )


def parse_bundle(text: str, where: str = "bundle") -> Bundle:
    """Read a bundle. Raises InvalidInput that says what is wrong in `where` and never repeats the key."""
    advice = "ask for a new one: swingbus-controller certificate issue"
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(
            f"{where} is not a Swingbus bundle (not TOML: {error}); is the file whole? Else {advice}",
            reason="BAD_BUNDLE",
        ) from error
    version = table.pop("version", None)
    if version != BUNDLE_VERSION:
        raise InvalidInput(
            f"{where} has version {version!r}, this program reads version {BUNDLE_VERSION}; "
            + ("upgrade this program" if isinstance(version, int) and version > BUNDLE_VERSION else advice),
            reason="BAD_BUNDLE_VERSION",
        )
    wanted = {f.name for f in fields(Bundle)}
    missing, unknown = sorted(wanted - table.keys()), sorted(table.keys() - wanted)
    if missing or unknown:
        problem = "; ".join(
            f"{word} {', '.join(names)}" for word, names in (("lacks", missing), ("has unknown", unknown)) if names
        )
        raise InvalidInput(
            f"{where} {problem}; {advice}", reason="BAD_BUNDLE", metadata={"field": (missing + unknown)[0]}
        )
    for key in sorted(wanted - {"expires"}):
        if not isinstance(table[key], str) or not table[key].strip():
            raise InvalidInput(f"{where}: {key} must be text; {advice}", reason="BAD_BUNDLE", metadata={"field": key})
    expires = table["expires"]
    if not isinstance(expires, datetime) or expires.tzinfo is None:
        raise InvalidInput(
            f"{where}: expires must be a time with its zone; {advice}",
            reason="BAD_BUNDLE",
            metadata={"field": "expires"},
        )
    if table["role"] not in ROLES:
        raise InvalidInput(
            f"{where}: role {table['role']!r} is not one of {', '.join(ROLES)}; {advice}",
            reason="BAD_BUNDLE",
            metadata={"field": "role"},
        )
    for key in ("ca_pem", "certificate_pem"):
        if _CERTIFICATE_MARK not in table[key]:
            raise InvalidInput(
                f"{where}: {key} holds no PEM certificate; {advice}", reason="BAD_BUNDLE", metadata={"field": key}
            )
    if not _KEY_MARK.search(table["key_pem"]):
        raise InvalidInput(
            f"{where}: key_pem holds no PEM private key; {advice}", reason="BAD_BUNDLE", metadata={"field": "key_pem"}
        )
    parse_id(table["name"], "name")
    endpoint = parse_endpoint(table["endpoint"])
    return Bundle(**{**table, "endpoint": endpoint, "expires": expires.astimezone(UTC)})


def is_lent_by_root(mode: int, *, owner: int, group: int, own_user: int, own_group: int) -> bool:
    """Whether root lets our own group read a file and nobody else: how a kubelet gives a Secret to a pod's user, who can't own it.

    >>> is_lent_by_root(0o100440, owner=0, group=65532, own_user=65532, own_group=65532)
    True
    """
    is_for_group = stat.S_IMODE(mode) == stat.S_IRUSR | stat.S_IRGRP
    return is_for_group and owner == 0 != own_user and group == own_group != 0


def require_private(path: Path, status: os.stat_result) -> None:
    """Raise InvalidInput where others than we may read a file with a key."""
    mode = status.st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and not is_lent_by_root(
        mode, owner=status.st_uid, group=status.st_gid, own_user=os.geteuid(), own_group=os.getegid()
    ):
        raise InvalidInput(
            f"{path} holds a private key but others may read it (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}",
            reason="BUNDLE_NOT_PRIVATE",
            metadata={"path": str(path)},
        )


def load_bundle(path: Path) -> Bundle:
    """Read a bundle file. Raises NotFound or InvalidInput; refuses a file that other users can read."""
    try:
        status = path.stat()
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(
            f"there is no bundle at {path}; make one with swingbus-controller certificate issue and carry it here",
            reason="NO_BUNDLE",
            metadata={"path": str(path)},
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"cannot read the bundle {path}: {error}", reason="BAD_BUNDLE", metadata={"path": str(path)}
        ) from error
    require_private(path, status)
    return parse_bundle(text, where=str(path))


def install_bundle(bundle: Bundle, directory: Path, *, replace: bool = False) -> Path:
    """Write the bundle into a directory (made with mode 0700 if missing), durable and whole or not at all; return its path.

    Raises AlreadyExists where another identity is installed and `replace` is not set: a renewal of the same name and role always goes in.
    """
    path = directory / BUNDLE_FILE
    if path.exists() and not replace:
        held = load_bundle(path)
        if (held.name, held.role) != (bundle.name, bundle.role):
            raise AlreadyExists(
                f"{path} is the bundle of {held.role} {held.name!r}, not of {bundle.role} {bundle.name!r}; "
                "replace it on purpose or choose another directory",
                reason="OTHER_IDENTITY_INSTALLED",
                metadata={"path": str(path), "installed_name": held.name, "new_name": bundle.name},
            )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, format_bundle(bundle))
    return path


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read: whole or not at all, durable on return."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
