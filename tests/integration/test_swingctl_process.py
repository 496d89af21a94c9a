"""swingctl as a process: bundle by environment, exit codes, pipes, and the bundle's own faults."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from swingbus.bundle import format_bundle, write_private
from swingbus.rpc.roles import Role
from swingctl.main import run
from tests.fakes.authority import issue, make_authority, serving
from tests.fakes.site_services import north
from tests.fakes.terminal import FakeTerminal, NoonClock


async def swingctl(*argv: str, bundle: Path | None = None) -> tuple[int, str, str]:
    """Run the program; return exit code, standard output and standard error."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SWINGCTL", "GRPC"))}
    if bundle is not None:
        environment["SWINGCTL_BUNDLE"] = str(bundle)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "swingctl.main",
        *argv,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_process_answers_refuses_and_fails_with_its_exit_codes(tmp_path: Path) -> None:
    """0, 1, 2 and 3, with nothing of gRPC's own chatter on standard error; a stranger gets 3."""
    authority = make_authority(tmp_path / "pki")
    stranger = make_authority(tmp_path / "other")
    bundle, foreign = tmp_path / "v.toml", tmp_path / "s.toml"
    async with serving(authority, north().register) as port:
        write_private(bundle, format_bundle(issue(authority, "vic", Role.VIEWER, port)))
        write_private(foreign, format_bundle(issue(stranger, "vic", Role.ADMIN, port)))
        code, out, err = await swingctl("site", "list", "--output", "json", bundle=bundle)
        assert (code, err) == (0, "")
        assert json.loads(out)["sites"][0]["name"] == "sites/north"
        code, out, err = await swingctl("authority", "set", "control", "--yes", bundle=bundle)
        assert (code, out) == (1, "") and err.startswith("refused: viewer 'vic' may not call")
        code, out, err = await swingctl("site", "list", bundle=foreign)
        assert (code, out) == (3, "") and "is this bundle one of this controller" in err
    code, out, err = await swingctl("site", "list", bundle=bundle)
    assert (code, out) == (3, "") and err.startswith("unreachable: ") and "next: is the controller running" in err
    code, _, err = await swingctl("site", "list")
    assert code == 2 and "SWINGCTL_BUNDLE" in err
    code, _, err = await swingctl("curtail", "start", "--limit", "lots", "--for", "1h", bundle=bundle)
    assert code == 2 and "for instance 400kW" in err


async def test_bad_bundles_are_usage_errors_that_say_the_next_step(tmp_path: Path) -> None:
    """Missing, readable by others, cut."""
    good = tmp_path / "b.toml"
    write_private(good, format_bundle(issue(make_authority(tmp_path / "pki"), "vic", Role.VIEWER, 1)))
    cut = tmp_path / "cut.toml"
    write_private(cut, good.read_text().partition("-----END")[0])
    open_to_all = tmp_path / "open.toml"
    open_to_all.write_text(good.read_text())
    open_to_all.chmod(0o644)
    for path, words in (
        (tmp_path / "none.toml", "certificate issue"),
        (cut, "is the file whole"),
        (open_to_all, "chmod 600"),
    ):
        terminal = FakeTerminal()
        assert await run(["--bundle", str(path), "site", "list"], terminal=terminal, clock=NoonClock()) == 2
        assert words in terminal.stderr.getvalue()


async def test_expiring_bundle_warns_on_standard_error(tmp_path: Path) -> None:
    """Every run says it, with the command that helps."""
    held = issue(make_authority(tmp_path / "pki"), "vic", Role.VIEWER, 1)
    path = tmp_path / "b.toml"
    soon = datetime(2026, 11, 23, 12, tzinfo=UTC) + timedelta(days=3)
    write_private(path, format_bundle(replace(held, expires=soon)))
    terminal = FakeTerminal()
    assert await run(["--bundle", str(path), "bundle", "show"], terminal=terminal, clock=NoonClock()) == 0
    assert "expires in 3 days: swingbus-controller certificate renew --operator vic" in terminal.stderr.getvalue()
