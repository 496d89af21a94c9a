"""`python -m swingbus_sim.kwok_site CONFIG.json`: run what stands behind KWOK's nodes until SIGTERM."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from swingbus_sim.kwok_site.plan import SitePlan
from swingbus_sim.kwok_site.running import KwokSite


def _build(config: dict[str, Any]) -> KwokSite:
    folder = Path(config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    paths = {key: Path(config[key]) for key in ("kubeconfig", "bundles") if config.get(key)}
    return KwokSite(
        SitePlan(**config["plan"]),
        folder,
        seed=int(config.get("seed", 1)),
        boot_limit_w=config.get("boot_limit_w"),
        boot_limits_w=config.get("boot_limits_w"),
        endpoint=config.get("endpoint"),
        **paths,
    )


async def _run(site: KwokSite) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, site.stop)
    await site.run(site.mark_ready)


def main() -> None:
    """Run."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_run(_build(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
