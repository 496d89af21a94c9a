"""swingctl: the operators' command line, an ordinary client of the controller's API.

Decides the command tree and the exit codes: 0 done, 1 refused (also: nothing was changed), 2 usage, 3 unreachable or no answer in time.
Errors go to standard error with their reason, their facts and the next step; standard output holds answers only.
"""

from __future__ import annotations

import os

# gRPC's own log on standard error says again, and worse, what swingctl says. It is read when grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import timedelta

import grpc

from swingbus import __version__
from swingbus.bundle import Bundle, load_bundle
from swingbus.clock import Clock, SystemClock
from swingbus.faults import InvalidInput, NotFound, SwingbusError, TimedOut, Unreachable
from swingctl import (
    agent,
    authority,
    bank,
    bundle,
    curtail,
    device,
    events,
    feeder,
    flip,
    holds,
    market,
    plan,
    reservation,
    site,
    watch,
)
from swingctl.arguments import DEFAULT_TIMEOUT_S, add_globals
from swingctl.render import print_json
from swingctl.session import Session, SystemTerminal, Terminal, UsageError, open_session
from swingctl.writes import Declined

OK, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3
INTERRUPTED = 130
WARN_DAYS = 30

NOUNS = (
    site,
    feeder,
    agent,
    bank,
    device,
    events,
    watch,
    curtail,
    holds,
    authority,
    plan,
    flip,
    market,
    reservation,
    bundle,
)

_EPILOG = """exit codes: 0 done, 1 refused, 2 usage, 3 unreachable or no answer in time

examples:
  export SWINGCTL_BUNDLE=~/dana.bundle.toml
  swingctl watch
  swingctl curtail start --site north --limit 400kW --for 1h --yes
  swingctl plan explain edge-1/s19j
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the whole command tree."""
    parser = argparse.ArgumentParser(
        prog="swingctl",
        description="See and steer a Swingbus site.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"swingctl {__version__}")
    add_globals(parser, suppressed=False)
    nouns = parser.add_subparsers(dest="noun", metavar="NOUN", required=True)
    for module in NOUNS:
        module.mount(nouns)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run swingctl; return its exit code."""
    try:
        return asyncio.run(
            run(list(sys.argv[1:] if argv is None else argv), terminal=SystemTerminal(), clock=SystemClock())
        )
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has seen enough; keep the interpreter from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


async def run(argv: Sequence[str], *, terminal: Terminal, clock: Clock) -> int:
    """Parse, connect, carry out, close; return the exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as left:  # argparse has printed help or what is wrong
        return left.code if isinstance(left.code, int) else USAGE
    as_json = args.output == "json"
    session: Session | None = None
    try:
        held = _bundle(args)
        _warn_expiry(held, clock, terminal)
        session = open_session(
            held,
            endpoint=args.endpoint,
            terminal=terminal,
            clock=clock,
            timeout_s=args.timeout or DEFAULT_TIMEOUT_S,
            as_json=as_json,
        )
        code: int = await args.handler(session, args)
    except UsageError as error:
        return _fail(terminal, as_json, USAGE, "USAGE", str(error), {}, f"swingctl {args.noun} --help")
    except InvalidInput as error:
        # Refused by the controller, or never sent because it can never be right.
        code = REFUSED if isinstance(error.__cause__, grpc.RpcError) else USAGE
        return _fail(
            terminal, as_json, code, error.reason, str(error), dict(error.metadata), f"swingctl {args.noun} --help"
        )
    except Declined:
        return _fail(terminal, as_json, REFUSED, "DECLINED", "nothing was changed", {}, "")
    except SwingbusError as error:
        code = UNREACHABLE if isinstance(error, Unreachable | TimedOut) else REFUSED
        code = USAGE if error.reason == "NO_BUNDLE" else code
        return _fail(
            terminal, as_json, code, error.reason, str(error), dict(error.metadata), _next_step(error, args, session)
        )
    finally:
        if session is not None:
            await session.channel.close()
    return code


def _bundle(args: argparse.Namespace) -> Bundle:
    if args.bundle is None:
        raise UsageError(
            "say who you are: --bundle FILE, or the environment variable SWINGCTL_BUNDLE; swingbus-controller certificate issue makes one"
        )
    if args.bundle.is_dir():
        from swingbus.rpc.tls_folder import read_tls_folder  # what reads certificates takes its time to load

        return read_tls_folder(args.bundle, args.endpoint)
    return load_bundle(args.bundle)


def _warn_expiry(held: Bundle, clock: Clock, terminal: Terminal) -> None:
    left = (held.expires - clock.now()) / timedelta(days=1)
    if left < WARN_DAYS:
        when = "has expired" if left <= 0 else f"expires in {left:.0f} days"
        terminal.err.write(
            f"warning: this bundle {when}: swingbus-controller certificate renew --operator {held.name}\n"
        )


def _next_step(error: SwingbusError, args: argparse.Namespace, session: Session | None) -> str:
    if session is not None and session.write_request_id is not None and isinstance(error, Unreachable | TimedOut):
        return f"it may have been carried out; ask again safely with --request-id {session.write_request_id}"
    if isinstance(error, Unreachable):
        return "is the controller running, and is --endpoint right? swingctl keeps nothing, so repeat at will"
    if isinstance(error, TimedOut):
        return "try a longer --timeout"
    if error.reason == "NO_BUNDLE":
        return ""  # the message says it
    if isinstance(error, NotFound):
        return f"swingctl {args.noun} --help; lists show what there is"
    if error.retryable:
        after = error.metadata.get("retry_after_s")
        return f"try again in {after} s" if after else "look again, then try again"
    return ""


def _fail(
    terminal: Terminal, as_json: bool, code: int, reason: str, message: str, metadata: dict[str, str], step: str
) -> int:
    """Print an error and return its exit code."""
    if as_json:
        print_json(
            {
                "error": {
                    "exit_code": code,
                    "reason": reason,
                    "message": message,
                    "metadata": metadata,
                    "next_step": step,
                }
            },
            terminal.err,
        )
        return code
    word = {REFUSED: "refused", USAGE: "usage", UNREACHABLE: "unreachable"}[code]
    terminal.err.write(f"{word}: {message}\n")
    if reason not in ("USAGE", "DECLINED"):
        terminal.err.write(f"  reason: {reason}\n")
        for key, value in sorted(metadata.items()):
            terminal.err.write(f"  {key}: {value}\n")
    if step:
        terminal.err.write(f"next: {step}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
