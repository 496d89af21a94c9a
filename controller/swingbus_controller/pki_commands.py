"""`swingbus-controller init` and `swingbus-controller certificate ...`: the certificate authority from the command line.

Decides words and files; the authority itself is `adapters.pki`, in a folder, or in Secrets of a cluster (`pki_in_cluster`). `mount` adds
the sub-commands; each sets `run`, called with the parsed arguments and returning an exit code. Faults are left to `main`, which prints
them. Each verb works on a folder and returns what is left to do once the authority is safe where it lies: to write a bundle, to print.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from swingbus.bundle import Bundle, format_bundle, parse_endpoint, write_private
from swingbus.clock import SystemClock
from swingbus.faults import AlreadyExists, InvalidInput, NotFound, Unreachable
from swingbus.rpc.roles import Role
from swingbus_controller.adapters.pki import DEFAULT_DAYS, CertificateAuthority, CertificateState
from swingbus_controller.leaving import leaving_at_sigterm

if TYPE_CHECKING:
    from swingbus_controller.adapters.kubernetes.connection import ApiConnection

DEFAULT_PKI = Path("/var/lib/swingbus/pki")
DEFAULT_RENEW_WITHIN_DAYS = 60
# What is left of a verb once the authority is safe where it lies; it may work on it again. Returns an exit code.
Rest = Callable[[], int]
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
  swingbus-controller certificate issue --namespace swingbus-system --operator dana   # an authority that the chart made
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
    _add_place(issue)
    _add_holder(issue, with_server=False)
    issue.add_argument(
        "--role",
        choices=[r.value for r in _PEOPLE],
        help="what the operator may do: viewer reads, operator writes, admin also sets limits and authority (default: operator)",
    )
    _add_output(issue)
    issue.set_defaults(run=partial(_run, _issue))

    listing = verbs.add_parser("list", help="list certificates, their expiry and state")
    _add_place(listing)
    listing.add_argument("--all", action="store_true", help="also those replaced and expired")
    listing.add_argument(
        "--output", choices=["table", "json"], default="table", help="how to print (default: %(default)s)"
    )
    listing.set_defaults(run=partial(_run, _list))

    renew = verbs.add_parser("renew", help="issue a new certificate and key to a known holder")
    _add_place(renew)
    _add_holder(renew, with_server=True)
    renew.add_argument(
        "--name",
        action="append",
        metavar="HOST",
        help="with --server: host names and addresses from now on (default: as before)",
    )
    renew.add_argument("--deny-old", action="store_true", help="revoke the holder's older certificates at once")
    _add_output(renew)
    renew.set_defaults(run=partial(_run, _renew))

    _add_provide(verbs)

    deny = verbs.add_parser(
        "deny", help="revoke a certificate; the running controller refuses it from its next call on"
    )
    _add_place(deny)
    deny.add_argument("--serial", required=True, help="serial as certificate list shows it")
    deny.add_argument("--reason", required=True, help="kept in the deny list")
    deny.set_defaults(run=partial(_run, _deny))

    rotate = verbs.add_parser("rotate", help="replace the certificate authority in two steps")
    _add_place(rotate)
    rotate.add_argument(
        "--finish", action="store_true", help="second step, after everybody was renewed: drop the old authority"
    )
    rotate.add_argument("--force", action="store_true", help="with --finish: lock out whoever was not renewed")
    rotate.set_defaults(run=partial(_run, _rotate))


def _add_provide(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    provide = verbs.add_parser(
        "provide",
        help="what the chart's job runs: an authority and everybody's certificates as Secrets of a namespace",
        description="Make what is missing, renew what ends soon, leave the rest: the authority, the controller's certificate, one bundle "
        "for each agent and one for the release's test. What was revoked stays so.",
    )
    _add_cluster(provide)
    provide.add_argument(
        "--endpoint", type=parse_endpoint, required=True, metavar="HOST:PORT", help="what bundles carry"
    )
    provide.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="by which the controller is reached; may be repeated",
    )
    provide.add_argument("--agent", action="append", default=[], metavar="NAME", help="may be repeated")
    provide.add_argument("--viewer", default="", metavar="NAME", help="of the release's test")
    provide.add_argument("--days", type=int, default=DEFAULT_DAYS, help="how long they last (default: %(default)s)")
    provide.add_argument(
        "--renew-within",
        type=int,
        default=DEFAULT_RENEW_WITHIN_DAYS,
        metavar="DAYS",
        help="before its end (default: %(default)s)",
    )
    provide.set_defaults(run=_provide)


def _add_place(parser: argparse.ArgumentParser) -> None:
    _add_pki(parser, default=None)
    _add_cluster(parser)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--namespace",
        metavar="NAME",
        help="instead of --pki: the namespace in which the chart's job made the authority",
    )
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="with --namespace: your rights there (default: KUBECONFIG, ~/.kube/config; in a pod: the pod's)",
    )
    parser.add_argument("--context", metavar="NAME", help="instead of the kubeconfig's current one")


def _add_pki(parser: argparse.ArgumentParser, *, default: Path | None = DEFAULT_PKI) -> None:
    parser.add_argument(
        "--pki", type=Path, default=default, metavar="DIR", help=f"the authority's directory (default: {DEFAULT_PKI})"
    )


def _where(args: argparse.Namespace) -> str:
    """Return the options that say where the authority is, as they are typed."""
    if getattr(args, "namespace", None) is not None:
        return f" --namespace {args.namespace}"
    return "" if args.pki == DEFAULT_PKI else f" --pki {args.pki}"


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
    where = _where(args)
    print(f"made a certificate authority in {args.pki}; bundles will say {authority.endpoint}")
    print("keep that directory private and back it up: who has ca-key.pem can be anybody")
    print("next:")
    print(f"  swingbus-controller certificate issue{where} --operator YOUR-NAME --role admin")
    print(f"  swingbus-controller certificate issue{where} --agent AGENT-NAME")
    return 0


def _run(verb: Callable[[argparse.Namespace], Rest], args: argparse.Namespace) -> int:
    """Run a verb where the authority is."""
    if args.namespace is not None and args.pki is not None:
        raise InvalidInput("--pki and --namespace are two places: name one", reason="BAD_OPTIONS")
    if args.namespace is None and (args.kubeconfig is not None or args.context is not None):
        raise InvalidInput("--kubeconfig and --context belong to --namespace", reason="BAD_OPTIONS")
    if args.namespace is not None:
        with leaving_at_sigterm():  # what was lent is a key
            return asyncio.run(_run_in_cluster(verb, args))
    args.pki = args.pki or DEFAULT_PKI
    return verb(args)()


async def _run_in_cluster(verb: Callable[[argparse.Namespace], Rest], args: argparse.Namespace) -> int:
    from swingbus_controller.adapters.pki_in_cluster import lend_authority

    async with await _connection(args) as api, lend_authority(api, args.namespace) as lent:
        args.pki = lent.directory
        rest = verb(args)
        await lent.give_back()
        code = rest()
        await lent.give_back()  # what it still did, such as to revoke
        return code


async def _connection(args: argparse.Namespace) -> ApiConnection:
    """Return a way to the cluster with the rights that are named, a person's usual ones, or those of the pod that we run in."""
    # Imported here: what talks to a cluster costs 30 MB.
    from swingbus_controller.adapters.kubernetes.access import load_access, usual_kubeconfig
    from swingbus_controller.adapters.kubernetes.connection import ApiConnection

    return ApiConnection(await load_access(args.kubeconfig or usual_kubeconfig(os.environ), args.context))


def _provide(args: argparse.Namespace) -> int:
    if args.namespace is None:
        raise InvalidInput("say where: --namespace NAME", reason="NO_NAMESPACE")
    with leaving_at_sigterm():
        return asyncio.run(_provide_in_cluster(args))


async def _provide_in_cluster(args: argparse.Namespace) -> int:
    from swingbus_controller.providing import Wanted, provide

    wanted = Wanted(
        endpoint=args.endpoint,
        server_names=tuple(args.name),
        agents=tuple(args.agent),
        viewer=args.viewer,
        days=args.days,
        renew_within=timedelta(days=args.renew_within),
    )
    async with await _connection(args) as api:
        return await provide(api, args.namespace, wanted, SystemClock().now())


def _issue(args: argparse.Namespace) -> Rest:
    name, role = (
        (args.agent, Role.AGENT) if args.agent is not None else (args.operator, Role(args.role or Role.OPERATOR))
    )
    if args.agent is not None and args.role is not None:
        raise InvalidInput("--role belongs to --operator: an agent's role is agent", reason="BAD_OPTIONS")
    target = _free_target(args, name)
    bundle = CertificateAuthority(args.pki).issue(
        name, role, now=SystemClock().now(), endpoint=args.endpoint, days=args.days
    )
    return partial(_write, bundle, target)


def _renew(args: argparse.Namespace) -> Rest:
    now = SystemClock().now()
    authority = CertificateAuthority(args.pki)
    if args.server:
        record = authority.renew_server(now=now, days=args.days, server_names=args.name)
        lasts = f"the controller's new certificate lasts until {record.not_after:%Y-%m-%d}"
        return partial(_say, f"{lasts}; it is shown from the next connection on")
    if args.name is not None:
        raise InvalidInput("--name belongs to --server", reason="BAD_OPTIONS")
    name = args.agent if args.agent is not None else args.operator
    role = authority.held_role(name, now)
    if (role is Role.AGENT) is not (args.agent is not None):
        kind = "an agent" if role is Role.AGENT else "an operator"
        raise NotFound(f"{name!r} is {kind}: use --{kind.split()[1]}", reason="OTHER_KIND", metadata={"name": name})
    older = [s.certificate.serial for s in authority.states(now) if s.certificate.name == name and s.is_accepted]
    target = _free_target(args, name)
    bundle = authority.issue(name, role, now=now, endpoint=args.endpoint, days=args.days, renew=True)

    def write_then_deny() -> int:
        code = _write(bundle, target)  # first: who has no new one must keep the old
        if args.deny_old:
            for serial in older:
                authority.deny(serial, comment=f"{name}: replaced by {bundle.serial}")
            print(f"revoked {len(older)} older certificate(s) of {name}", file=sys.stderr)
        return code

    return write_then_deny


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


def _write(bundle: Bundle, target: Path | None) -> int:
    if target is None:
        sys.stdout.write(format_bundle(bundle))
        return 0
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
    return 0


def _say(*lines: str) -> int:
    for line in lines:
        print(line)
    return 0


def _list(args: argparse.Namespace) -> Rest:
    return partial(_say_list, args, CertificateAuthority(args.pki))


def _say_list(args: argparse.Namespace, authority: CertificateAuthority) -> int:
    now = SystemClock().now()
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
    for line in authority.warnings(now, place=_where(args)):
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


def _deny(args: argparse.Namespace) -> Rest:
    comment = f"{SystemClock().now():%Y-%m-%d %H:%M}Z {args.reason}"
    denied = CertificateAuthority(args.pki).deny(args.serial, comment=comment)
    whose = f"{denied.serial} of {denied.role} {denied.name}"
    return partial(_say, f"revoked {whose}: refused from its next call on; open streams end within an hour")


def _rotate(args: argparse.Namespace) -> Rest:
    authority = CertificateAuthority(args.pki)
    now = SystemClock().now()
    if args.finish:
        authority.finish_rotation(now=now, force=args.force)
        return partial(_say, "the old authority is gone; only certificates of the new one count")
    authority.rotate(now=now)
    lines = ["a new authority signs from now on, the old one is still trusted; renew and install every certificate:"]
    for state in authority.states(now):
        if state.state in ("valid", "expiring") and state.certificate.role in list(Role):
            kind = "agent" if state.certificate.role == Role.AGENT else "operator"
            lines.append(f"  swingbus-controller certificate renew{_where(args)} --{kind} {state.certificate.name}")
    return partial(_say, *lines, f"then: swingbus-controller certificate rotate{_where(args)} --finish")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    """Print rows in columns as wide as they need."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        stream.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
