"""`swingbus-sim`: run a site in a box, judge it, compare it with simpler policies. The only place that builds everything."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from swingbus.faults import InvalidInput, NotFound, SwingbusError, Unreachable

_EXAMPLES = """examples:
  swingbus-sim list
  swingbus-sim show demo
  swingbus-sim run small --dir /tmp/site
  swingbus-sim ask --dir /tmp/site '{"do": "status"}'
  swingbus-sim ask --dir /tmp/site '{"do": "inject", "event": {"kind": "outage", "targets": ["grid"], "for_s": 2}}'
  swingbus-sim judge --truth /tmp/site/truth.sock --scenario small --out /tmp/site/verdict.json
  swingbus-sim money --truth /tmp/site/truth.jsonl.gz --scenario small
  swingbus-sim baseline demo --policy always-on
  swingbus-sim device-plugin --shelf /tmp/site/shelves/h100-a
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(
        prog="swingbus-sim",
        description="A site in a box: miners, GPUs, meters, prices and demand with real ramps, heat and lies.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    verbs.add_parser("list", help="the scenarios that come with the simulator")

    show = verbs.add_parser("show", help="a scenario's sizing, machines and timeline")
    _add_scenario(show)

    run = verbs.add_parser("run", help="run a scenario on real time until it ends (or SIGTERM)")
    _add_scenario(run)
    run.add_argument("--dir", type=Path, required=True, help="RUN_DIR: shelves, sockets and the truth log go there")
    run.add_argument(
        "--t0",
        type=float,
        default=None,
        metavar="BOOTTIME",
        help="CLOCK_BOOTTIME second that is second 0 (default: now)",
    )
    run.add_argument(
        "--for",
        type=float,
        default=None,
        dest="for_s",
        metavar="SECONDS",
        help="end earlier or later than the file says",
    )

    ask = verbs.add_parser("ask", help="send one JSON request to a running simulator's control socket")
    ask.add_argument("--dir", type=Path, required=True)
    ask.add_argument("request", help='like {"do": "status"}; do: status, series, ledger, device, inject, stop')

    plugin = verbs.add_parser("device-plugin", help="offer a host's simulated GPUs to a kubelet until SIGTERM")
    plugin.add_argument(
        "--shelf", type=Path, required=True, help="the simulated host's shared file (RUN_DIR/shelves/HOST)"
    )
    plugin.add_argument(
        "--folder",
        type=Path,
        default=Path("/var/lib/kubelet/device-plugins"),
        help="where kubelet.sock is (default: kubelet's own folder)",
    )
    plugin.add_argument("--resource", default="nvidia.com/gpu", help="what pods ask for (default nvidia.com/gpu)")

    judge = verbs.add_parser("judge", help="count watt-seconds over every limit on the truth and give a verdict")
    judge.add_argument(
        "--truth", type=Path, required=True, help="a running simulator's truth.sock, or a truth.jsonl.gz"
    )
    judge.add_argument(
        "--scenario",
        default=None,
        help="scenario name or file: its limits must be the truth's, and time means end where it ends",
    )
    judge.add_argument("--out", type=Path, required=True, help="verdict.json, rewritten every few seconds")
    judge.add_argument(
        "--confirmations", type=Path, default=None, help="JSON lines of what the controller says is proven"
    )
    judge.add_argument(
        "--wait", type=float, default=30.0, metavar="SECONDS", help="how long to wait for the socket (default 30)"
    )

    money = verbs.add_parser("money", help="the margin of a truth log, in USD")
    money.add_argument("--truth", type=Path, required=True)
    _add_scenario(money, positional=False)

    baseline = verbs.add_parser("baseline", help="the same physics in virtual time under a simpler policy")
    _add_scenario(baseline)
    baseline.add_argument("--policy", default="all", help="always-on, gpu-filler-only, static-safe or all (default)")
    baseline.add_argument("--out", type=Path, default=None)
    return top


def _add_scenario(command: argparse.ArgumentParser, *, positional: bool = True) -> None:
    if positional:
        command.add_argument("scenario", help="a name from `swingbus-sim list`, or the path of a .toml file")
    else:
        command.add_argument(
            "--scenario", required=True, help="a name from `swingbus-sim list`, or the path of a .toml file"
        )
    command.add_argument(
        "--data", type=Path, default=_data_from_environment(), help="folder with the real series (default: $DATA)"
    )
    command.add_argument("--shift", type=int, default=0, help="add N to the second part of every loopback address")


def _data_from_environment() -> Path | None:
    text = os.environ.get("DATA", "")
    return Path(text) if text else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 ok (or not guilty), 1 refused (or guilty), 2 usage, 3 unreachable."""
    options = parser().parse_args(arguments)
    try:
        return _dispatch(options)
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Unreachable as error:
        print(f"swingbus-sim: {error}", file=sys.stderr)
        return 3
    except (InvalidInput, NotFound) as error:
        print(f"swingbus-sim: {error}", file=sys.stderr)
        return 2
    except SwingbusError as error:
        print(f"swingbus-sim: {error}", file=sys.stderr)
        return 1


def _dispatch(options: argparse.Namespace) -> int:
    # Each verb imports what it needs: the judge must not load the site, nor the site the judge.
    match options.verb:
        case "list":
            from swingbus_sim.show import print_list

            print_list()
        case "show":
            from swingbus_sim.scenario_file import load_scenario
            from swingbus_sim.show import print_scenario

            print_scenario(load_scenario(options.scenario, data=options.data, shift=options.shift))
        case "run":
            return _run(options)
        case "ask":
            from swingbus_sim.control import ask

            try:
                request = json.loads(options.request)
            except ValueError as error:
                raise InvalidInput(f"the request is not JSON: {error}") from error
            print(json.dumps(asyncio.run(ask(options.dir, request)), indent=1))
        case "device-plugin":
            from swingbus_sim.device_plugin import DevicePlugin, serve

            asyncio.run(serve(DevicePlugin(options.shelf, folder=options.folder, resource=options.resource)))
        case "judge":
            from swingbus_sim.judge.main import judge

            return judge(
                truth=options.truth,
                scenario=options.scenario,
                out=options.out,
                confirmations=options.confirmations,
                wait_s=options.wait,
            )
        case "money":
            from swingbus_sim.money import margin_of_log
            from swingbus_sim.scenario_file import load_scenario

            scenario = load_scenario(options.scenario, data=options.data)
            print(json.dumps(margin_of_log(options.truth, scenario), indent=1))
        case "baseline":
            from swingbus_sim.baseline import print_baselines
            from swingbus_sim.scenario_file import load_scenario

            scenario = load_scenario(options.scenario, data=options.data)
            print_baselines(scenario, options.policy, out=options.out)
    return 0


def _run(options: argparse.Namespace) -> int:
    from swingbus_sim.scenario_file import load_scenario
    from swingbus_sim.site import SiteRun, boottime_s

    scenario = load_scenario(options.scenario, data=options.data, shift=options.shift)
    t0_s = options.t0 if options.t0 is not None else boottime_s()
    duration_s = options.for_s if options.for_s is not None else scenario.duration_s

    async def run() -> None:
        await SiteRun(scenario, options.dir, t0_boottime_s=t0_s, duration_s=duration_s).run()

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
