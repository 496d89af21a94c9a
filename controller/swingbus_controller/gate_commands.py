"""`swingbus-controller gate list|lift`: what waits behind the power gate, and the break-glass way out when no controller runs.

Decides nothing about watts: whoever lifts by hand answers for them. Uses the caller's own rights in the cluster, never ours; the
chart's policy lets only members of the break-glass group lift. Faults are left to `main`, which prints them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from swingbus.faults import InvalidInput, NotFound

_EXAMPLES = """examples:
  swingbus-controller gate list --kubeconfig ~/.kube/config
  swingbus-controller gate lift --kubeconfig ~/.kube/config customers/chat-0 --reason "controller host is down, ticket 4711"
  swingbus-controller gate lift --kubeconfig ~/.kube/config --all --reason "uninstalling"
"""


def mount(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gate` to the controller's sub-commands."""
    gate = commands.add_parser(
        "gate",
        help="list pods behind the power gate; lift gates by hand when no controller runs",
        description="What waits behind the power gate, and the break-glass way out. A gate lifted by hand asks nobody for watts: the GPU "
        "stays at the limit that its agent holds, and the controller takes the pod as it is when it is back.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = gate.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="list pods that wait, the longest waiting first")
    lift = verbs.add_parser("lift", help="lift the gate of named pods, or of all")
    for verb in (listing, lift):
        verb.add_argument(
            "--kubeconfig",
            type=Path,
            metavar="FILE",
            help="your own rights, not the controller's (default: KUBECONFIG, ~/.kube/config)",
        )
        verb.add_argument("--context", metavar="NAME", help="instead of the kubeconfig's current one")
        verb.add_argument("--gate", default="swingbus.io/power", metavar="NAME", help="default: %(default)s")
    listing.add_argument("--output", choices=("table", "json"), default="table", help="default: %(default)s")
    listing.set_defaults(run=_list)
    lift.add_argument("pods", nargs="*", metavar="NAMESPACE/POD")
    lift.add_argument("--all", action="store_true", help="every pod that waits: before an uninstall")
    lift.add_argument(
        "--as", dest="act_as", metavar="USER", help="act as somebody else, if you may impersonate, as kubectl does"
    )
    lift.add_argument(
        "--as-group", action="append", default=[], metavar="GROUP", help="of that one's groups; may be repeated"
    )
    lift.add_argument("--reason", required=True, help="kept on the pod, with your name in the API server's audit log")
    lift.set_defaults(run=_lift)


def _list(arguments: argparse.Namespace) -> int:
    # Imported here: what talks to a cluster costs 30 MB, and only these commands and who moves pods need it.
    from swingbus_controller.lifting_by_hand import list_gated

    return asyncio.run(
        list_gated(_kubeconfig(arguments), arguments.context, arguments.gate, as_json=arguments.output == "json")
    )


def _lift(arguments: argparse.Namespace) -> int:
    from swingbus_controller.adapters.kubernetes.connection import ActAs
    from swingbus_controller.lifting_by_hand import lift_named

    pods = None if arguments.all else arguments.pods
    if arguments.all == bool(arguments.pods):
        raise InvalidInput("name pods as NAMESPACE/POD, or say --all: one of the two", reason="BAD_PODS")
    if arguments.act_as is not None and not arguments.act_as.strip():
        raise InvalidInput("--as names nobody", reason="BAD_OPTIONS")
    if arguments.as_group and arguments.act_as is None:
        raise InvalidInput("--as-group needs --as: whose group is it?", reason="BAD_OPTIONS")
    act_as = None if arguments.act_as is None else ActAs(arguments.act_as, tuple(arguments.as_group))
    return asyncio.run(
        lift_named(
            _kubeconfig(arguments), arguments.context, arguments.gate, pods, reason=arguments.reason, act_as=act_as
        )
    )


def _kubeconfig(arguments: argparse.Namespace) -> Path:
    from swingbus_controller.adapters.kubernetes.access import usual_kubeconfig

    found: Path | None = arguments.kubeconfig or usual_kubeconfig(os.environ)
    if found is None:
        raise NotFound("there is no ~/.kube/config: name your rights with --kubeconfig FILE", reason="NO_KUBECONFIG")
    return found
