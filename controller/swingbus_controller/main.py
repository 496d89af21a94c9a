"""`swingbus-controller`: the only place that builds; a straight list of constructions, then the loops until a signal.

Decides the order of start and stop. Refuses to know: what the parts do. Invariants: under authority OBSERVE the deciding part is
not imported; nothing is served before storage is open and the epoch claimed; at a stop intake ends first, then what was taken in
is committed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import signal
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swingbus import __version__
from swingbus.clock import Clock, SystemClock, boot_id
from swingbus.faults import InvalidInput, SwingbusError, Unreachable, WrongState
from swingbus.fleet.v1alpha import fleet_service_pb2_grpc
from swingbus.logs import LEVELS, configure_logging, get_logger
from swingbus.market.v1alpha import market_service_pb2_grpc
from swingbus.rpc.interceptors import DoorInterceptor, fault_in
from swingbus.rpc.server import (
    ServerIdentity,
    add_health_and_reflection,
    bind_port,
    build_server,
    server_credentials,
    set_serving,
)
from swingbus_controller.adapters.market_file import load_market
from swingbus_controller.adapters.metrics import ControllerMetrics, serve_metrics
from swingbus_controller.adapters.pki_records import DenyListFile
from swingbus_controller.adapters.server_files import ServerFiles, end_unix_s
from swingbus_controller.adapters.storage.database import set_aside
from swingbus_controller.adapters.storage.holding import JournalHold
from swingbus_controller.adapters.storage.journal import SqliteJournal
from swingbus_controller.adapters.storage.telemetry import SqliteTelemetry
from swingbus_controller.api import fleet_service, link_service, market_service, refused_capacity
from swingbus_controller.api.fleet_service import FleetService
from swingbus_controller.api.fleet_views import FleetViews
from swingbus_controller.api.link_service import AgentLinkService, decode_stored
from swingbus_controller.api.market_service import MarketService
from swingbus_controller.api.refused_capacity import add_refusing_capacity
from swingbus_controller.app.ingest import Ingest, IngestSettings
from swingbus_controller.app.market_board import MarketBoard
from swingbus_controller.app.rebuild import rebuild
from swingbus_controller.app.recorder import Recorder
from swingbus_controller.app.watching import watch_fleet
from swingbus_controller.backup_commands import mount as mount_backup
from swingbus_controller.checking import describe
from swingbus_controller.domain.fleet.fleet import Fleet
from swingbus_controller.domain.planning.market import MarketBook
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.gate_commands import mount as mount_gate
from swingbus_controller.pki_commands import mount as mount_pki
from swingbus_controller.settings import Configuration, load_configuration

if TYPE_CHECKING:
    from swingbus_controller.clustering import Clustered
    from swingbus_controller.deciding import Deciding

SERVICES = (link_service.SERVICE, fleet_service.SERVICE, market_service.SERVICE, refused_capacity.SERVICE)
STOP_GRACE_S = 2.0
FENCE_CHECK_S = 1.0
COMPACT_EVERY_S = 3600.0
EXIT_REFUSED, EXIT_UNREACHABLE = 1, 3

_EXAMPLES = """examples:
  swingbus-controller init --name 10.0.0.5                 # once: the certificate authority
  swingbus-controller check --config site.toml             # read the site file, show the power tree; starts nothing
  swingbus-controller run --config site.toml               # watch the site (authority observe is the default)
  swingbus-controller certificate issue --agent edge-1     # one bundle to carry over
  swingbus-controller backup journal.backup                # a copy of the journal, while it runs
"""


class Controller:
    """One controller process, ready to run in an event loop."""

    def __init__(self, configuration: Configuration, *, clock: Clock, adopt_empty: bool = False) -> None:
        """Open storage. Raises what storage raises; nothing is served yet."""
        self.configuration = configuration
        self.instance = uuid.uuid4().hex
        self._clock = clock
        self._log = get_logger()
        self._exits = ExitStack()
        settings = configuration.controller
        with ExitStack() as undo:
            undo.callback(JournalHold(settings.data_dir, alone=False).close)
            self.journal, self.telemetry = open_storage(
                settings.data_dir, clock.now().strftime("damaged-%Y%m%dT%H%M%S"), adopt_empty=adopt_empty
            )
            undo.callback(self.journal.close)
            undo.callback(self.telemetry.close)
            self.certificates = ServerFiles(settings.pki_dir)
            self.certificates.identity()  # missing keys are told before anything is served
            self._exits = undo.pop_all()
        self.fleet = Fleet(configuration.site, period_s=settings.period_s)
        self.metrics = ControllerMetrics(configuration.site.name)
        self.port = 0
        self.metrics_port = 0

    def _identity(self) -> ServerIdentity:
        """Return what the next handshake shows; of a folder that can't be read nothing is told, and what was shown stays."""
        identity = self.certificates.identity()
        self.metrics.show_certificate(end_unix_s(identity))
        return identity

    async def run(self, stop: asyncio.Event, ready: Callable[[int], None] | None = None) -> None:
        """Serve until `stop` is set. Raises WrongState (FENCED) when another controller took over."""
        with self._exits:
            writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="telemetry")
            self._exits.callback(writer.shutdown)
            await self._serve(writer, stop, ready)
        # grpc.aio's server shuts itself down when it is collected, and needs this loop for that.
        gc.collect()

    async def _serve(
        self, writer: ThreadPoolExecutor, stop: asyncio.Event, ready: Callable[[int], None] | None
    ) -> None:
        site, settings, clock = self.configuration.site, self.configuration.controller, self._clock
        recorder = Recorder(self.journal, clock, self.metrics)
        found = rebuild(self.fleet, self.telemetry, self.journal, decode_stored)
        board = MarketBoard(place=site.market, book=self._feed(), journal=self.journal, log=self.journal, clock=clock)
        clustered = await self._connect_cluster()
        deciding = self._build_deciding(board, clustered)
        if deciding is None:
            self.journal.claim_epoch(self.instance, 0)
        ingest = Ingest(
            fleet=self.fleet,
            store=self.telemetry,
            recorder=recorder,
            clock=clock,
            settings=IngestSettings(
                credit=settings.credit,
                commit_interval_s=settings.commit_interval_s,
                keep_s=settings.telemetry_keep_s,
                keep_bytes=settings.telemetry_keep_bytes,
                max_agents=settings.max_agents,
            ),
            metrics=self.metrics,
            writer=writer,
            sink=deciding.engine if deciding is not None else None,
        )
        link = AgentLinkService(
            ingest=ingest,
            fleet=self.fleet,
            clock=clock,
            period_s=settings.period_s,
            control=deciding.engine if deciding is not None else None,
        )
        views = FleetViews(fleet=self.fleet, clock=clock, budget=deciding.view if deciding is not None else None)
        fleet = FleetService(fleet=self.fleet, views=views, events=self.journal, archive=self.telemetry)
        door = DoorInterceptor(clock, DenyListFile(self.certificates.deny_list_path))
        server = build_server(door)
        link.add_to_server(server)
        fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(fleet, server)
        market_service_pb2_grpc.add_MarketServiceServicer_to_server(MarketService(site=site.name, board=board), server)
        if deciding is not None:
            deciding.add_to_server(server)
        else:
            add_refusing_capacity(server, site=site.name)
        health = add_health_and_reflection(server, SERVICES)
        self.port = bind_port(server, settings.listen, server_credentials(self._identity))
        if settings.metrics_listen:
            self.metrics_port, stop_metrics = serve_metrics(self.metrics.registry, settings.metrics_listen)
            self._exits.callback(stop_metrics)
        recorder.note(
            "controller_came_up",
            subject=f"sites/{site.name}",
            source="controller",
            message=f"controller {__version__} serves site {site.name} under authority {site.authority.value}",
            facts={"instance": self.instance, "epoch": str(self.journal.epoch), "version": __version__},
        )
        recorder.flush()
        await server.start()
        await set_serving(health, SERVICES)
        self._log.info(
            "controller_started",
            site=site.name,
            authority=site.authority.value,
            epoch=self.journal.epoch,
            port=self.port,
            metrics_port=self.metrics_port,
            agents_known=found,
        )
        if ready is not None:
            ready(self.port)
        try:
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(ingest.run()),
                    tasks.create_task(watch_fleet(self.fleet, self.journal, self.metrics, clock)),
                    tasks.create_task(self._watch_fence()),
                    tasks.create_task(self._compact_for_ever()),
                ]
                if deciding is not None:
                    loops += [
                        tasks.create_task(deciding.engine.run()),
                        tasks.create_task(deciding.watch.run()),
                    ]
                if deciding is not None and clustered is not None:
                    loops.append(tasks.create_task(clustered.run(deciding.engine, self.metrics)))
                await stop.wait()
                # Refuse intake, drain, flush, close.
                async with asyncio.timeout(STOP_GRACE_S * 3):
                    await health.enter_graceful_shutdown()
                    await door.end_streams(STOP_GRACE_S)
                    await server.stop(STOP_GRACE_S)
                for loop in loops:
                    loop.cancel()
        finally:
            async with asyncio.timeout(STOP_GRACE_S):
                await server.stop(0)
            if clustered is not None:
                await clustered.aclose()
        await ingest.flush()
        self._log.info("controller_stopped", site=site.name)

    async def _connect_cluster(self) -> Clustered | None:
        settings, site = self.configuration.cluster, self.configuration.site
        if settings is None or site.authority is not Authority.CONTROL:
            return None
        if not any(bank.is_in_cluster for bank in site.banks):
            return None
        # What talks to a cluster costs 10 MB: who moves no pods does not load it.
        from swingbus_controller.clustering import connect_cluster

        data_dir = self.configuration.controller.data_dir
        return await connect_cluster(settings, data_dir=data_dir, clock=self._clock, instance=self.instance)

    def _build_deciding(self, board: MarketBoard, clustered: Clustered | None) -> Deciding | None:
        site = self.configuration.site
        if site.authority is Authority.OBSERVE:
            return None
        # Imported here and nowhere else: under OBSERVE this code is not in the process.
        from swingbus_controller.deciding import build_deciding

        return build_deciding(
            site=site,
            journal=self.journal,
            journal_is_new=self.journal.was_created,
            clock=self._clock,
            instance=self.instance,
            boot_id=boot_id(),
            market=board.view,
            source=self.configuration,
            cluster=None if clustered is None else clustered.state,
        )

    def _feed(self) -> MarketBook:
        feed = self.configuration.site.market.feed
        return load_market(Path(self.configuration.source).parent / feed) if feed else MarketBook()

    async def _watch_fence(self) -> None:
        while True:
            await self._clock.sleep(FENCE_CHECK_S)
            self.journal.check_epoch()

    async def _compact_for_ever(self) -> None:
        while True:
            before_unix_s = self._clock.now().timestamp() - self.configuration.controller.journal_keep_s
            gone = self.journal.compact(before_unix_s=before_unix_s)
            if gone:
                self._log.info("journal_compacted", entry_count=gone)
            await self._clock.sleep(COMPACT_EVERY_S)


def open_storage(data_dir: Path, suffix: str, *, adopt_empty: bool) -> tuple[SqliteJournal, SqliteTelemetry]:
    """Open both databases.

    Args:
        suffix: what a damaged file's new name ends in.
        adopt_empty: move damaged files aside and start anew where one is damaged or missing beside the other.

    Raises:
        WrongState: a file is damaged, or the journal is gone while telemetry is there. Unreachable: the disk refuses.
    """
    journal_path, telemetry_path = data_dir / "journal.sqlite", data_dir / "telemetry.sqlite"
    if telemetry_path.exists() and not journal_path.exists() and not adopt_empty:
        raise WrongState(
            f"{journal_path} is missing although {telemetry_path.name} is there: the record of grants is lost. Put a "
            "backup in its place with `swingbus-controller restore`, or start with --adopt-empty: every bank then counts at its ceiling "
            "until evidence shows less.",
            reason="JOURNAL_MISSING",
            metadata={"path": str(journal_path)},
        )
    journal = _open_or_adopt(SqliteJournal, journal_path, suffix, adopt_empty)
    try:
        return journal, _open_or_adopt(SqliteTelemetry, telemetry_path, suffix, adopt_empty)
    except SwingbusError:
        journal.close()
        raise


def _open_or_adopt(kind: Any, path: Path, suffix: str, adopt_empty: bool) -> Any:
    try:
        return kind(path)
    except WrongState as error:
        if error.reason != "DATABASE_DAMAGED" or not adopt_empty:
            raise
        moved = set_aside(path, suffix)
        get_logger().warning("database_set_aside", path=str(path), moved_to=str(moved))
        return kind(path)


def _quiet_collector() -> None:
    """Keep the collector from walking what lives as long as the process: a walk in a fan-out costs its deadline."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _raise_file_limit() -> None:
    """Allow as many connections as the system lets us: a thousand agents are more than the usual 1024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run(arguments: argparse.Namespace) -> int:
    import uvloop  # only a program that serves pays for it

    configuration = _load(arguments)
    configure_logging("swingbus-controller", level=arguments.log_level)
    _raise_file_limit()
    controller = Controller(configuration, clock=SystemClock(), adopt_empty=arguments.adopt_empty)
    get_logger().info("settings_loaded", source=configuration.source, **_shown(configuration))

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
        await controller.run(stop, lambda port: _say_ready(arguments, port))

    try:
        uvloop.run(serve())
    except BaseExceptionGroup as group:
        fault = fault_in(group)
        if fault is None:
            raise
        raise fault from group
    return 0


def _say_ready(arguments: argparse.Namespace, port: int) -> None:
    _quiet_collector()
    if arguments.ready_file:
        partial = Path(f"{arguments.ready_file}.part")
        partial.write_text(f"{port}\n", encoding="ascii")
        os.replace(partial, arguments.ready_file)


def _shown(configuration: Configuration) -> dict[str, str]:
    settings = configuration.controller
    return {name: str(getattr(settings, name)) for name in settings.__slots__}


def _check(arguments: argparse.Namespace) -> int:
    configuration = _load(arguments)
    if configuration.site.market.feed:
        load_market(Path(configuration.source).parent / configuration.site.market.feed)
    print(describe(configuration))
    return 0


def _load(arguments: argparse.Namespace) -> Configuration:
    overrides = {key: getattr(arguments, key, None) for key in ("listen", "metrics_listen", "data_dir", "pki_dir")}
    return load_configuration(arguments.config, overrides={k: v for k, v in overrides.items() if v})


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="swingbus-controller",
        description="Swingbus: one power budget for mining and inference at a site. This program decides (or, under authority "
        "observe, only watches).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"swingbus-controller {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="serve a site until SIGTERM",
        epilog="example:\n  swingbus-controller run --config site.toml --log-level info\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(run)
    run.add_argument("--listen", metavar="HOST:PORT", help="instead of [controller] listen")
    run.add_argument(
        "--metrics-listen", metavar="HOST:PORT", help='instead of [controller] metrics_listen; "off" serves none'
    )
    run.add_argument("--data-dir", metavar="DIR", help="instead of [controller] data_dir")
    run.add_argument("--pki-dir", metavar="DIR", help="instead of [controller] pki_dir")
    run.add_argument("--log-level", choices=LEVELS, default="info", help="default: %(default)s")
    run.add_argument("--ready-file", metavar="FILE", help="written with the gRPC port once the controller serves")
    run.add_argument(
        "--adopt-empty",
        action="store_true",
        help="where a database is damaged or the journal is missing: move it aside and start with an empty one",
    )
    run.set_defaults(run=_run)
    check = commands.add_parser(
        "check",
        help="read the site file and show the power tree; starts nothing",
        epilog="example:\n  swingbus-controller check --config site.toml\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(check)
    check.set_defaults(run=_check)
    mount_backup(commands)
    mount_pki(commands)
    mount_gate(commands)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the site file (docs/controller.md)")


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its exit code: 0 ok, 1 refused, 2 usage, 3 unreachable."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except SwingbusError as error:
        print(f"swingbus-controller: {error}", file=sys.stderr)
        facts = ", ".join(f"{key}={value}" for key, value in error.metadata.items() if key != "first")
        print(f"({error.reason}{'; ' + facts if facts else ''})", file=sys.stderr)
        if isinstance(error, InvalidInput):
            return 2
        return EXIT_UNREACHABLE if isinstance(error, Unreachable) else EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
