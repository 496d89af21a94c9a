"""Logging set-up and the system's clocks."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from swingbus.clock import SystemClock, boot_id
from swingbus.faults import InvalidInput, Unreachable
from swingbus.logs import REDACTED, configure_logging, get_logger, redact

KEY = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    """Parse JSON lines."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_events_are_json_with_program_level_and_facts() -> None:
    """One object a line where nobody looks."""
    stream = io.StringIO()
    configure_logging("swingbus-agent", stream=stream)
    get_logger(agent="edge-1").info("sample_dropped", count=3)
    (line,) = lines(stream)
    assert (line["event"], line["program"], line["level"], line["agent"], line["count"]) == (
        "sample_dropped",
        "swingbus-agent",
        "info",
        "edge-1",
        3,
    )


def test_level_hides_what_is_below_it() -> None:
    """Debug is per sample: too much by default."""
    stream = io.StringIO()
    configure_logging("x", stream=stream, level="warning")
    get_logger().info("state_changed")
    get_logger().warning("degraded")
    assert [line["event"] for line in lines(stream)] == ["degraded"]
    with pytest.raises(InvalidInput, match="choose one of debug"):
        configure_logging("x", level="loud")


def test_terminal_gets_text() -> None:
    """For a person."""
    stream = io.StringIO()
    configure_logging("x", stream=stream, as_json=False)
    get_logger().info("agent_connected", agent="edge-1")
    assert "agent_connected" in stream.getvalue() and not stream.getvalue().startswith("{")


def test_secrets_never_reach_a_line() -> None:
    """Not by name, not nested, not inside a traceback."""
    stream = io.StringIO()
    configure_logging("x", stream=stream)
    get_logger().info(
        "bundle_read", api_token="abc", nested={"password": "abc", "fine": 1}, text=f"got {KEY} here", raw=KEY.encode()
    )
    try:
        raise ValueError(f"cannot parse {KEY}")
    except ValueError:
        get_logger().error("rpc_crashed", exc_info=True)
    text = stream.getvalue()
    assert "abc" not in text and "MIGH" not in text
    first = lines(stream)[0]
    assert first["api_token"] == REDACTED and first["nested"] == {"password": REDACTED, "fine": 1}
    assert first["text"] == f"got {REDACTED} here"


def test_ordinary_facts_are_left_alone() -> None:
    """A key that only sounds like a secret stays."""
    assert redact({"key": "m07", "token_count": 5, "secretary": "dana"}) == {
        "key": "m07",
        "token_count": 5,
        "secretary": "dana",
    }


async def test_system_clock_moves_forward() -> None:
    """Three clocks, none of them naive."""
    clock = SystemClock()
    before = (clock.boottime_s(), clock.monotonic_s(), clock.now())
    await clock.sleep(0.01)
    assert clock.boottime_s() - before[0] >= 0.009
    assert clock.monotonic_s() - before[1] >= 0.009
    assert clock.now().utcoffset() == timedelta(0)
    assert clock.boottime_ns() == pytest.approx(clock.boottime_s() * 1e9, abs=1e9)


async def test_sleeping_a_negative_span_yields() -> None:
    """A late loop does not crash."""
    async with asyncio.timeout(1):
        await SystemClock().sleep(-5)


def test_boot_id_is_the_kernels(tmp_path: Path) -> None:
    """And a host without one is a clear error."""
    assert boot_id() == boot_id() and len(boot_id()) >= 32
    with pytest.raises(Unreachable, match="needs Linux"):
        boot_id(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(Unreachable, match="empty"):
        boot_id(tmp_path / "empty")
