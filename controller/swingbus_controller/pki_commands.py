"""`swingbus-controller init` and `swingbus-controller certificate ...`: the certificate authority from the command line.

Decides words and files; the authority itself is `adapters.pki`. `mount` adds the sub-commands; each sets `run`, called with the parsed
arguments and returning an exit code. Faults are left to `main`, which prints them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TextIO

from swingbus.bundle import Bundle, format_bundle, parse_endpoint, write_private
from swingbus.clock import SystemClock
from swingbus.faults import AlreadyExists, NotFound, Unreachable
from swingbus.rpc.roles import Role
from swingbus_controller.adapters.pki import DEFAULT_DAYS, CertificateAuthority, CertificateState

DEFAULT_PKI = Path("/var/lib/swingbus/pki")
_PEOPLE = (Role.VIEWER, Role.OPERATOR, Role.ADMIN)

_INIT_EXAMPLES = """examples:
  swingbus-controller init --name 10.0.0.5 --name controller.north.example
  swingbus-controller init --pki ./pki --endpoint 127.0.0.1:7443
"""
_CERTIFICATE_EXAMPLES = """examples:
  swingbus-controller certificate issue --agent edge-1                    # writes edge-1.bundle.toml: carry it there, swingbus-agent join
  swingbus-controller certificate issue --operator dana --role operator   # swingctl --bundle dana.bundle.toml site list
  swingbus-controller certificate list
  swingbus-controller certificate renew --agent edge-1
  swingbus-controller certificate renew --server
  swingbus-controller certificate deny --serial 3fa4... --reason "laptop lost"
"""


def mount(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `init` and `certificate` to the controller's sub-commands."""
    init = commands.add_parser(
        "init",
        help="make the site's certificate authority and the controller's certificate",
        description="Make the certificate authority that every agent and operator of this controller is known by, and the "
        "controller's own certificate. Run once, as the user that the controller runs as.",
        epilog=_INIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_pki(init)
    init.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="host name or address by which this controller is reached; may be repeated",
    )
    init.add_argument(
        "--endpoint", metavar="HOST:PORT", help="what bundles carry (default: the first --name, port 7443)"
    )
    init.add_argument(
        "--days",
        type=int,
        default=DEFAULT_DAYS,
        help="how long the controller's certificate lasts (default: %(default)s)",
    )
    init.set_defaults(run=_init)

    certificate = commands.add_parser(
        "certificate",
        help="issue, list, renew and revoke certificates",
        description="Issue, list, renew and revoke the certificates of agents, people and the controller itself.",
        epilog=_CERTIFICATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = certificate.add_subparsers(dest="verb", required=True, metavar="VERB")

    issue = verbs.add_parser("issue", help="issue a certificate; writes one bundle to carry over")
    _add_pki(issue)
    _add_holder(issue, with_server=False)
    issue.add_argument(
        "--role",
        choices=[r.value for r in _PEOPLE],
        help="what the operator may do: viewer reads, operator writes, admin also sets limits and authority (default: operator)",
    )
    _add_output(issue)
    issue.set_defaults(run=_issue)

    listing = verbs.add_parser("list", help="list certificates, their expiry and state")
    _add_pki(listing)
    listing.add_argument("--all", action="store_true", help="also those replaced and expired")
    listing.add_argument(
        "--output", choices=["table", "json"], default="table", help="how to print (default: %(default)s)"
    )
    listing.set_defaults(run=_list)

    renew = verbs.add_parser("renew", help="issue a new certificate and key to a known holder")
    _add_pki(renew)
    _add_holder(renew, with_server=True)
    renew.add_argument(
        "--name",
        action="append",
        metavar="HOST",
        help="with --server: host names and addresses from now on (default: as before)",
    )
    renew.add_argument("--deny-old", action="store_true", help="revoke the holder's older certificates at once")
    _add_output(renew)
    renew.set_defaults(run=_renew)

    deny = verbs.add_parser(
        "deny", help="revoke a certificate; the running controller refuses it from its next call on"
    )
    _add_pki(deny)
    deny.add_argument("--serial", required=True, help="serial as certificate list shows it")
    deny.add_argument("--reason", required=True, help="kept in the deny list")
    deny.set_defaults(run=_deny)

    rotate = verbs.add_parser("rotate", help="replace the certificate authority in two steps")
    _add_pki(rotate)
    rotate.add_argument(
        "--finish", action="store_true", help="second step, after everybody was renewed: drop the old authority"
    )
    rotate.add_argument("--force", action="store_true", help="with --finish: lock out whoever was not renewed")
    rotate.set_defaults(run=_rotate)


def _add_pki(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pki", type=Path, default=DEFAULT_PKI, metavar="DIR", help="the authority's directory (default: %(default)s)"
    )


def _add_holder(parser: argparse.ArgumentParser, *, with_server: bool) -> None:
    holder = parser.add_mutually_exclusive_group(required=True)
    holder.add_argument("--agent", metavar="NAME", help="an agent: the name that the site file gives it")
    holder.add_argument(
        "--operator", metavar="NAME", help="a person or a program that calls the API: the author of its writes"
    )
    if with_server:
        holder.add_argument("--server", action="store_true", help="the controller itself")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", metavar="HOST:PORT", help="what the bundle carries (default: as init was told)")
    parser.add_argument("--days", type=int, default=DEFAULT_DAYS, help="how long it lasts (default: %(default)s)")
    parser.add_argument(
        "--out", metavar="FILE", help="where to write the bundle, - for standard output (default: NAME.bundle.toml)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE")


def _init(args: argparse.Namespace) -> int:
    authority = CertificateAuthority.create(
        args.pki, server_names=args.name, endpoint=args.endpoint, now=SystemClock().now(), days=args.days
    )
    where = "" if args.pki == DEFAULT_PKI else f" --pki {args.pki}"
    print(f"made a certificate authority in {args.pki}; bundles will say {authority.endpoint}")
    print("keep that directory private and back it up: who has ca-key.pem can be anybody")
    print("next:")
    print(f"  swingbus-controller certificate issue{where} --operator YOUR-NAME --role admin")
    print(f"  swingbus-controller certificate issue{where} --agent AGENT-NAME")
    return 0


def _issue(args: argparse.Namespace) -> int:
    name, role = (
        (args.agent, Role.AGENT) if args.agent is not None else (args.operator, Role(args.role or Role.OPERATOR))
    )
    if args.agent is not None and args.role is not None:
        print("--role belongs to --operator: an agent's role is agent", file=sys.stderr)
        return 2
    target = _free_target(args, name)
    bundle = CertificateAuthority(args.pki).issue(
        name, role, now=SystemClock().now(), endpoint=args.endpoint, days=args.days
    )
    _write(bundle, target)
    return 0


def _renew(args: argparse.Namespace) -> int:
    now = SystemClock().now()
    authority = CertificateAuthority(args.pki)
    if args.server:
        record = authority.renew_server(now=now, days=args.days, server_names=args.name)
        print(
            f"the controller's new certificate lasts until {record.not_after:%Y-%m-%d}; it is shown from the next connection on"
        )
        return 0
    if args.name is not None:
        print("--name belongs to --server", file=sys.stderr)
        return 2
    name = args.agent if args.agent is not None else args.operator
    role = authority.held_role(name, now)
    if (role is Role.AGENT) is not (args.agent is not None):
        kind = "an agent" if role is Role.AGENT else "an operator"
        raise NotFound(f"{name!r} is {kind}: use --{kind.split()[1]}", reason="OTHER_KIND", metadata={"name": name})
    older = [s.certificate.serial for s in authority.states(now) if s.certificate.name == name and s.is_accepted]
    target = _free_target(args, name)
    bundle = authority.issue(name, role, now=now, endpoint=args.endpoint, days=args.days, renew=True)
    _write(bundle, target)
    if args.deny_old:
        for serial in older:
            authority.deny(serial, comment=f"{name}: replaced by {bundle.serial}")
        print(f"revoked {len(older)} older certificate(s) of {name}", file=sys.stderr)
    return 0


def _free_target(args: argparse.Namespace, name: str) -> Path | None:
    """Return where the bundle goes (None: standard output), before anything is issued."""
    if args.endpoint is not None:
        parse_endpoint(args.endpoint)
    if args.out == "-":
        return None
    target = Path(args.out or f"{name}.bundle.toml")
    if target.exists() and not args.force:
        raise AlreadyExists(
            f"{target} exists: choose another with --out, or overwrite it with --force",
            reason="FILE_EXISTS",
            metadata={"path": str(target)},
        )
    if not target.parent.is_dir():
        raise NotFound(
            f"there is no directory {target.parent}: make it first",
            reason="NO_DIRECTORY",
            metadata={"path": str(target.parent)},
        )
    return target


def _write(bundle: Bundle, target: Path | None) -> None:
    if target is None:
        sys.stdout.write(format_bundle(bundle))
        return
    try:
        write_private(target, format_bundle(bundle))
    except OSError as error:
        raise Unreachable(
            f"cannot write {target}: {error}; certificate {bundle.serial} is issued but lost: deny it and renew with another --out",
            reason="CANNOT_WRITE",
            metadata={"path": str(target), "serial": bundle.serial},
        ) from error
    step = (
        f"swingbus-agent join {target.name}"
        if bundle.role == Role.AGENT
        else f"swingctl --bundle {target.name} site list"
    )
    print(f"wrote {target}: {bundle.role} {bundle.name}, until {bundle.expires:%Y-%m-%d}, for {bundle.endpoint}")
    print(f"it holds a private key: carry it to its one machine, then there: {step}")


def _list(args: argparse.Namespace) -> int:
    now = SystemClock().now()
    authority = CertificateAuthority(args.pki)
    states = [s for s in authority.states(now) if args.all or s.state != "replaced"]
    if args.output == "json":
        json.dump(
            {"certificates": [_row(s) for s in states], "ca_expires": _stamp(authority.ca_not_after)},
            sys.stdout,
            indent=2,
        )
        print()
        return 0
    print_table(
        ("NAME", "ROLE", "STATE", "EXPIRES", "DAYS", "SERIAL"),
        [
            (
                s.certificate.name,
                s.certificate.role,
                s.state,
                f"{s.certificate.not_after:%Y-%m-%d}",
                f"{s.days_left:.0f}",
                s.certificate.serial,
            )
            for s in states
        ],
        sys.stdout,
    )
    for line in authority.warnings(now):
        print(f"warning: {line}", file=sys.stderr)
    return 0


def _row(state: CertificateState) -> dict[str, object]:
    c = state.certificate
    return {
        "serial": c.serial,
        "name": c.name,
        "role": c.role,
        "state": state.state,
        "issue_time": _stamp(c.issue_time),
        "expires": _stamp(c.not_after),
        "days_left": round(state.days_left, 2),
    }


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _deny(args: argparse.Namespace) -> int:
    comment = f"{SystemClock().now():%Y-%m-%d %H:%M}Z {args.reason}"
    denied = CertificateAuthority(args.pki).deny(args.serial, comment=comment)
    print(
        f"revoked {denied.serial} of {denied.role} {denied.name}: refused from its next call on; open streams end within an hour"
    )
    return 0


def _rotate(args: argparse.Namespace) -> int:
    authority = CertificateAuthority(args.pki)
    now = SystemClock().now()
    if args.finish:
        authority.finish_rotation(now=now, force=args.force)
        print("the old authority is gone; only certificates of the new one count")
        return 0
    authority.rotate(now=now)
    print("a new authority signs from now on, the old one is still trusted; renew and install every certificate:")
    for state in authority.states(now):
        if state.state in ("valid", "expiring") and state.certificate.role in list(Role):
            kind = "agent" if state.certificate.role == Role.AGENT else "operator"
            print(f"  swingbus-controller certificate renew --{kind} {state.certificate.name}")
    print("then: swingbus-controller certificate rotate --finish")
    return 0


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    """Print rows in columns as wide as they need."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        stream.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
