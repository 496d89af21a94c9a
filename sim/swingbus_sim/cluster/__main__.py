"""`python -m swingbus_sim.cluster up|down|status|env|load|build`: a real Kubernetes cluster on this machine."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from swingbus.faults import SwingbusError
from swingbus_sim.cluster.layout import Layout, layout
from swingbus_sim.cluster.loading import load_images
from swingbus_sim.cluster.requirements import missing_for_nodes, prepare_for_nodes
from swingbus_sim.cluster.tools import CONTROL, NODES, ensure_tools
from swingbus_sim.cluster.up import bring_up, find_cluster, take_down

_REAL_NODES = 2


def main() -> int:
    """Run one verb; 0 if done, 1 if it could not be, 2 for wrong usage."""
    options = _parser().parse_args()
    # A killed command ends what it had started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _VERBS[options.verb](options)
    except SwingbusError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cluster: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m swingbus_sim.cluster", description=__doc__)
    parser.add_argument("--name", default="default", help="tells clusters on one machine apart (default: %(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="bring one up; its programs are built first where they are not there")
    up.add_argument(
        "--real-nodes",
        type=int,
        metavar="N",
        help="nodes with kubelets, which need root (default: 2 where they can run, else 0 with the reason)",
    )
    up.add_argument(
        "--kwok-nodes", type=int, default=4, metavar="N", help="nodes of KWOK, 8 GPUs each (default: %(default)s)"
    )
    verbs.add_parser("down", help="end all of it, also what a crash left")
    verbs.add_parser("status", help="say what runs")
    verbs.add_parser("env", help='print the variables for kubectl and helm: eval "$(... env)"')
    load = verbs.add_parser("load", help="put images on its real nodes: OCI archives, as `make images` writes them")
    load.add_argument("archive", type=Path, nargs="+")
    build = verbs.add_parser("build", help="only build the programs, and install what real nodes need")
    build.add_argument("--no-nodes", action="store_true", help="leave out what real nodes need")
    return parser


def _up(options: argparse.Namespace) -> None:
    say = _teller()
    place = layout(options.name)
    wanted = _real_nodes(options.real_nodes, place, say)
    cluster = bring_up(place, real_node_count=wanted, kwok_node_count=options.kwok_nodes, say=say)
    named = "" if options.name == "default" else f" --name {options.name}"
    print(f"kubeconfig: {cluster.kubeconfig}")
    print(f'to use it:  eval "$({sys.executable} -m swingbus_sim.cluster{named} env)"; kubectl get nodes')


def _real_nodes(asked: int | None, place: Layout, say: Callable[[str], None]) -> int:
    """Return how many real nodes to make; what was asked for is never made less (bring_up refuses instead)."""
    if asked == 0:
        return 0
    prepare_for_nodes(say)
    if asked is not None:
        return asked
    lacks = missing_for_nodes(place.home)
    if lacks:
        say(f"NO REAL NODES, only KWOK's: {'; '.join(lacks)}")
    return 0 if lacks else _REAL_NODES


def _down(options: argparse.Namespace) -> None:
    take_down(layout(options.name), say=_teller())


def _status(options: argparse.Namespace) -> None:
    cluster = find_cluster(layout(options.name))
    for name in cluster.processes.names():
        identity = cluster.processes.find(name)
        print(f"{name:32} {'ENDED' if identity is None else identity.pid}")
    print(cluster.kubectl("get", "nodes"), end="")


def _env(options: argparse.Namespace) -> None:
    for name, value in find_cluster(layout(options.name)).environment().items():
        print(f"export {name}={shlex.quote(value)}")


def _load(options: argparse.Namespace) -> None:
    for name in load_images(find_cluster(layout(options.name)), options.archive):
        print(f"{name}  (imagePullPolicy: Never)")


def _build(options: argparse.Namespace) -> None:
    say = _teller()
    if not options.no_nodes:
        prepare_for_nodes(say)
    tools = ensure_tools(layout(options.name).tools, (CONTROL,) if options.no_nodes else (CONTROL, NODES), say=say)
    size_bytes = sum(file.stat().st_size for file in Path(tools.built).iterdir())
    print(f"{tools.built} ({size_bytes / 2**20:.0f} MiB)")


_VERBS = {"up": _up, "down": _down, "status": _status, "env": _env, "load": _load, "build": _build}


def _teller() -> Callable[[str], None]:
    started = time.monotonic()
    return lambda words: print(f"cluster: {time.monotonic() - started:6.1f} s  {words}", flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
