"""A controller for tests: a site file, its certificates, and the real program in this event loop or as a process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio

from swingbus.clock import SystemClock
from swingbus.rpc.channel import open_channel
from swingbus.rpc.roles import Role
from swingbus_controller.adapters.pki import CertificateAuthority
from swingbus_controller.main import Controller
from swingbus_controller.settings import load_configuration

SITE = """
[controller]
listen = "127.0.0.1:0"
metrics_listen = "off"
data_dir = "data"
pki_dir = "pki"
period_s = 0.2
credit = 16
commit_interval_s = 0.05

[site]
name = "north"

[[feeder]]
name = "grid"
kind = "grid"
[[feeder.limit]]
name = "contract"
limit_w = 400000
source = "contract"
[feeder.meter]
id = "m-grid"
agent = "edge-1"

[[feeder]]
name = "c1"
parent = "grid"
kind = "container"

[[class]]
name = "s19j"
kind = "asic"
ceiling_w = 3250
floor_w = 15
boot_w = 3400
[[class.point]]
name = "normal"
mode = "mining"
power_w = 3068
hashrate_ths = 104
[[class.point]]
name = "asleep"
mode = "standby"
power_w = 0

[[bank]]
agent = "edge-1"
bank = "s19j"
class = "s19j"
feeder = "c1"
device_count = 3

[[signal]]
signal = "power_price_usd_per_mwh"
stale_after_s = 60
fallback = "55.5"
"""


class TestSite:
    """A folder with a site file and a certificate authority."""

    __test__ = False

    def __init__(self, folder: Path, text: str = SITE) -> None:
        self.folder = folder
        self.config = folder / "site.toml"
        self.config.write_text(text, encoding="utf-8")
        self.authority = CertificateAuthority.create(
            folder / "pki", server_names=["127.0.0.1"], endpoint="127.0.0.1:7443", now=datetime.now(UTC)
        )
        self.port = 0
        self._bundles: dict[str, object] = {}

    def channel(self, name: str, role: Role) -> grpc.aio.Channel:
        """Return a channel of a certificate's holder; the certificate is issued at the first use of the name."""
        if name not in self._bundles:
            self._bundles[name] = self.authority.issue(name, role, now=datetime.now(UTC))
        bundle = self._bundles[name]
        return open_channel(bundle, endpoint=f"127.0.0.1:{self.port}")  # type: ignore[arg-type]  # a Bundle, kept as object

    @asynccontextmanager
    async def serve(self, *, adopt_empty: bool = False) -> AsyncIterator[Controller]:
        """Run a controller in this event loop, and stop it gracefully."""
        configuration = load_configuration(self.config, environment={})
        controller = Controller(configuration, clock=SystemClock(), adopt_empty=adopt_empty)
        stop, ready = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(controller.run(stop, lambda _: ready.set()))
            async with asyncio.timeout(20):
                await ready.wait()
            self.port = controller.port
            try:
                yield controller
            finally:
                stop.set()

    async def spawn(self) -> asyncio.subprocess.Process:
        """Start the controller as a process of its own; return once it serves."""
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        command = ["-m", "swingbus_controller.main", "run", "--config", str(self.config), "--ready-file", str(ready)]
        with (self.folder / "controller.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=log)
        async with asyncio.timeout(30):
            while not ready.exists():
                if process.returncode is not None:
                    raise AssertionError((self.folder / "controller.log").read_text())
                await asyncio.sleep(0.05)
        self.port = int(ready.read_text())
        return process
