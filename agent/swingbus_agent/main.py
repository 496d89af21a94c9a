"""The agent's command line and composition root: the only place that builds.

    swingbus-agent run --config FILE     look, report, obey
    swingbus-agent check [--config FILE] say in plain words what can and cannot be seen on this host
    swingbus-agent floor --config FILE   set every GPU of the file to its least limit, before a kubelet starts
    swingbus-agent join BUNDLE           install the certificate that lets this agent reach its controller

Invariant: leaving is not a command. At SIGTERM sessions end and children of ours that only read are stopped; miners hash on and
workloads run on.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import sys
from pathlib import Path

from swingbus import __version__
from swingbus.faults import InvalidInput, SwingbusError

EXIT_OK, EXIT_REFUSED, EXIT_USAGE = 0, 1, 2
_EXAMPLES = """\
examples:
  swingbus-agent check                                   what is on this host, without any configuration
  swingbus-agent check --config /etc/swingbus/agent.toml the same, and everything that the file names
  swingbus-agent join c1-edge.bundle.toml --config /etc/swingbus/agent.toml
  swingbus-agent run --config /etc/swingbus/agent.toml

Every configuration key is explained in docs/agent.md.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="swingbus-agent",
        description="The Swingbus agent: samples this host's GPUs, ASICs and meters and carries out what its controller grants.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"swingbus-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="look, report, obey", description="Run the agent until it is told to end.")
    run.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration (TOML)")
    run.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    check = commands.add_parser(
        "check",
        help="say what this host's agent can and cannot see; needs no controller, changes nothing",
        description="Look once at everything. Ends with 0 if all that the configuration names is seen, else with 1.",
    )
    check.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration (TOML); without it: what there is by itself"
    )
    floor = commands.add_parser(
        "floor",
        help="set every GPU of the file's banks to the least limit that it takes, and read it back; for a boot, before kubelet",
        description="Set limits once and end. Ends with 0 if every GPU is read back at its least limit, else with 1.",
    )
    floor.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration (TOML)")
    floor.add_argument(
        "--wait-s",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long the driver may take to show all GPUs (default: 60)",
    )
    join = commands.add_parser(
        "join",
        help="install a bundle made by `swingbus-controller certificate issue --agent NAME`",
        description="Install the bundle where the agent looks for it. The bundle is secret: delete other copies.",
    )
    join.add_argument(
        "bundle",
        type=Path,
        metavar="BUNDLE",
        help="its file, or a folder with tls.crt, tls.key and ca.crt as cert-manager writes them",
    )
    join.add_argument(
        "--endpoint",
        metavar="HOST:PORT",
        help="where the controller is; needed with a folder (default: as the bundle says)",
    )
    join.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration that says where; default: the default folder"
    )
    join.add_argument("--replace", action="store_true", help="replace the bundle of another name")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        match arguments.command:
            case "run":
                return _run(arguments.config, arguments.log_level)
            case "check":
                return _check(arguments.config)
            case "floor":
                return _floor(arguments.config, arguments.wait_s)
            case _:
                return _join(arguments.bundle, arguments.config, endpoint=arguments.endpoint, replace=arguments.replace)
    except SwingbusError as error:
        print(f"swingbus-agent: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, InvalidInput) and error.reason.startswith("CONFIG") else EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_REFUSED


def _run(config: Path, log_level: str) -> int:
    from swingbus.logs import configure_logging
    from swingbus_agent.settings import load_settings
    from swingbus_agent.splitting import part_from_root

    settings = load_settings(config)
    configure_logging("swingbus-agent", level=log_level)
    keeper = part_from_root(settings)
    # Only now: gRPC starts threads of its own, and whoever starts them as root has them as root.
    from swingbus_agent.running import run_agent

    return asyncio.run(run_agent(settings, keeper))


def _check(config: Path | None) -> int:
    from swingbus_agent.check import check_host
    from swingbus_agent.settings import load_settings

    settings = None if config is None else load_settings(config)
    findings = asyncio.run(check_host(settings))
    for finding in findings:
        print(finding.line())
    wrong = sum(finding.is_wrong for finding in findings)
    if wrong:
        print(f"\n{wrong} thing{'s' if wrong > 1 else ''} that the configuration names cannot be seen.")
        return EXIT_REFUSED
    print(
        "\nEverything that is configured can be seen." if settings else "\nThis is what an agent sees here by itself."
    )
    return EXIT_OK


def _floor(config: Path, wait_s: float) -> int:
    from swingbus_agent.floor import set_floors
    from swingbus_agent.settings import load_settings

    findings = asyncio.run(set_floors(load_settings(config), wait_s=wait_s))
    for finding in findings:
        print(finding.line())
    wrong = sum(finding.is_wrong for finding in findings)
    if wrong:
        print(f"\nNot every GPU is at its floor: {wrong} of {len(findings)} lines are wrong.")
        return EXIT_REFUSED
    print(f"\nAll {len(findings)} GPUs are at their floor.")
    return EXIT_OK


def _join(bundle_path: Path, config: Path | None, *, endpoint: str | None, replace: bool) -> int:
    from swingbus.bundle import install_bundle, load_bundle, parse_endpoint
    from swingbus.rpc.tls_folder import read_tls_folder
    from swingbus_agent.settings import DEFAULT_STATE_DIR, load_settings

    bundle = read_tls_folder(bundle_path, endpoint) if bundle_path.is_dir() else load_bundle(bundle_path)
    if endpoint is not None:
        bundle = dataclasses.replace(bundle, endpoint=parse_endpoint(endpoint))
    if bundle.role != "agent":
        raise InvalidInput(
            f"{bundle_path} is the bundle of {bundle.role} {bundle.name!r}; an agent needs one made by "
            "`swingbus-controller certificate issue --agent NAME`",
            reason="WRONG_ROLE",
        )
    folder = DEFAULT_STATE_DIR / "bundle"
    settings = None if config is None else load_settings(config)
    if settings is not None:
        folder = settings.controller.bundle
        if settings.name != bundle.name:
            raise InvalidInput(
                f"{bundle_path} is for agent {bundle.name!r}, but {config} is of agent {settings.name!r}; "
                "carry the right bundle here or mend `name`",
                reason="OTHER_AGENT",
            )
    if settings is not None and settings.node.run_as_user and os.geteuid() == 0:
        from swingbus_agent.splitting import install_for_user

        # The agent reads it after it has given root up.
        path = install_for_user(bundle, settings, replace=replace)
    else:
        path = install_bundle(bundle, folder, replace=replace)
    print(f"installed {path}: agent {bundle.name}, controller {bundle.endpoint}, valid until {bundle.expires:%Y-%m-%d}")
    print(f"now delete {bundle_path} and start: swingbus-agent run --config FILE")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
