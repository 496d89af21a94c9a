"""The agent's command line as a person meets it: check, join, mistakes, metrics."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest

from swingbus.bundle import BUNDLE_FILE, format_bundle, write_private
from swingbus.rpc.roles import Role
from swingbus_agent.check import check_host
from swingbus_agent.settings import load_settings
from swingbus_sim.ports import NetworkFault
from tests.fakes.agent_site import running_agent, served_miners, settings_for
from tests.fakes.controllers import TestSite
from tests.fakes.scripted_controller import until


def agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    command = [sys.executable, "-m", "swingbus_agent.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_has_examples() -> None:
    """A person who knows nothing finds the next command."""
    result = agent("--help")
    assert result.returncode == 0
    assert "examples:" in result.stdout and "swingbus-agent check" in result.stdout


def test_bare_host_without_configuration_says_what_there_is() -> None:
    """No driver, no miners, no meters: said in words, and nothing is wrong with that."""
    result = agent("check")
    assert result.returncode == 0, result.stderr
    for part in ("ok  host", "gpu", "no miners are configured", "no meters are configured", "unsupported"):
        assert part in result.stdout


def test_wrong_configuration_ends_with_usage_and_all_mistakes(tmp_path: Path) -> None:
    """Exit code 2, one line per mistake."""
    path = tmp_path / "agent.toml"
    path.write_text('nmae = "a"\n[metrics]\nport = "x"\n', encoding="utf-8")
    result = agent("check", "--config", str(path))
    assert result.returncode == 2
    assert "did you mean `name`" in result.stderr and "`metrics.port`" in result.stderr


def test_meter_that_nobody_answers_for_is_wrong(tmp_path: Path) -> None:
    """What the file names and the host cannot see makes check fail."""
    path = tmp_path / "agent.toml"
    path.write_text(
        f'name = "a"\nstate_dir = "{tmp_path / "s"}"\n[[meter]]\nname = "m"\nfeeder = "f"\nhost = "127.0.0.1"\nport = 1\n',
        encoding="utf-8",
    )
    result = agent("check", "--config", str(path))
    assert result.returncode == 1
    assert "!!  meter" in result.stdout and "1 thing that the configuration names" in result.stdout


async def test_check_sees_miners_and_the_one_that_is_away(tmp_path: Path) -> None:
    """Each miner has its line: model, state and watts, or why not."""
    async with served_miners(3) as (asics, hosts):
        asics["m2"].set_weather(NetworkFault.REFUSED)
        await asyncio.sleep(1.2)
        findings = [each for each in await check_host(settings_for(tmp_path, "", hosts)) if each.what == "asic"]
    assert [each.is_wrong for each in findings] == [False, True, False]
    assert "mining, 2794 W" in findings[0].text and "refused" in findings[1].text


def test_join_installs_the_bundle_and_refuses_another_agents(tmp_path: Path) -> None:
    """The certificate lands where run looks for it, private; one of another name or role is refused."""
    (tmp_path / "site").mkdir()
    site = TestSite(tmp_path / "site")
    config = tmp_path / "agent.toml"
    config.write_text(f'name = "edge-1"\nstate_dir = "{tmp_path / "s"}"\n', encoding="utf-8")
    for name, role, code in (("edge-2", Role.AGENT, 1), ("vera", Role.VIEWER, 1), ("edge-1", Role.AGENT, 0)):
        bundle = site.authority.issue(name, role, now=datetime.now(UTC))
        path = tmp_path / f"{name}-{role}.toml"
        write_private(path, format_bundle(bundle))
        result = agent("join", str(path), "--config", str(config))
        assert result.returncode == code, result.stderr
    installed = tmp_path / "s" / "bundle" / BUNDLE_FILE
    assert installed.stat().st_mode & 0o077 == 0
    assert "certificate of edge-1" in agent("check", "--config", str(config)).stdout


async def test_metrics_show_miners_and_no_absent_reading(tmp_path: Path) -> None:
    """Prometheus finds every field that was said, and nothing for one that was not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    async with served_miners(2) as (asics, hosts):
        asics["m2"].says_power = False
        settings = settings_for(tmp_path, "", hosts, metrics={"port": port})
        async with running_agent(settings) as running:
            await until(lambda: running.rounds is not None and running.rounds.round_count > 2, "a few rounds")
            text = await asyncio.to_thread(_scrape, port)
    assert 'swingbus_asic_power_w{bank="s19k",device="m1"} 2794.0' in text
    assert 'swingbus_asic_power_w{bank="s19k",device="m2"}' not in text
    assert 'swingbus_device_up{bank="s19k",device="m2"} 1.0' in text
    assert "swingbus_host_memory_total_bytes" in text


def _scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_example_of_the_manual_is_a_right_configuration(tmp_path: Path) -> None:
    """What the manual shows can be used."""
    manual = (Path(__file__).parents[2] / "docs" / "agent.md").read_text(encoding="utf-8")
    example = manual.split("```toml\n")[1].split("```")[0]
    path = tmp_path / "agent.toml"
    path.write_text(example, encoding="utf-8")
    settings = load_settings(path)
    assert settings.banks[0].miners[0].name == "r1-01" and not settings.writes


@pytest.mark.parametrize("arguments", [[], ["run"], ["fly"]])
def test_wrong_usage_ends_with_two(arguments: list[str]) -> None:
    """As every program of the house."""
    assert agent(*arguments).returncode == 2
