"""`swingctl bundle`: who this bundle says you are, and its parts for other tools."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path

from swingbus.bundle import write_private
from swingctl.arguments import Nouns, add_noun, add_verb
from swingctl.render import print_json, render_facts
from swingctl.session import Session, UsageError


def mount(nouns: Nouns) -> None:
    """Add the noun."""
    verbs = add_noun(nouns, "bundle", "who this bundle says you are")
    add_verb(
        verbs,
        "show",
        _show,
        summary="show name, role, endpoint and expiry",
        examples="bundle show --bundle dana.bundle.toml",
    )
    export = add_verb(
        verbs,
        "export",
        _export,
        summary="write its certificates and key as PEM files, for grpcurl and others",
        examples="bundle export ./pem",
    )
    export.add_argument("directory", type=Path, help="made if missing; ca.pem, certificate.pem, key.pem")


async def _show(session: Session, args: argparse.Namespace) -> int:
    bundle = session.bundle
    days_left = (bundle.expires - session.clock.now()) / timedelta(days=1)
    facts = {
        "name": bundle.name,
        "role": bundle.role,
        "endpoint": session.endpoint,
        "server_name": bundle.server_name,
        "serial": bundle.serial,
        "expires": bundle.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "days_left": round(days_left, 2),
    }
    if session.as_json:
        print_json({"bundle": facts}, session.terminal.out)
    else:
        session.line(
            render_facts([(key.replace("_", " "), str(value)) for key, value in facts.items()], session.terminal.width)
        )
    return 0


async def _export(session: Session, args: argparse.Namespace) -> int:
    try:
        args.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in (
            ("ca.pem", session.bundle.ca_pem),
            ("certificate.pem", session.bundle.certificate_pem),
            ("key.pem", session.bundle.key_pem),
        ):
            write_private(args.directory / name, text)
    except OSError as error:
        raise UsageError(f"cannot write to {args.directory}: {error}") from error
    session.note(f"wrote ca.pem, certificate.pem and key.pem to {args.directory}; key.pem is secret")
    return 0
