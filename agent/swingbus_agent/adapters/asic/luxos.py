"""LuxOS by its own API: asleep or not, the profile table, and the writes.

pyasic-rs 0.8.6 has no profiles for LuxOS, calls a sleeping one mining, reports a refused write as a bare `False`, and
leaves its session open, which locks every other tool out for a minute. Invariant: a session this module opens is closed
again, and a session somebody else holds is used, never killed (sessions are for coordination, not for safety).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from swingbus_agent.adapters.asic.rpc import RpcFault, ask, first_of

_ASLEEP_WORDS = frozenset({"sleep"})


async def read_config(host: str, deadline_s: float) -> dict[str, Any]:
    """Return the miner's CONFIG row."""
    body = await ask(host, {"command": "config"}, deadline_s)
    _raise_on_error(body)
    return first_of(body, "CONFIG")


def says_asleep(config: dict[str, Any]) -> bool | None:
    """Say whether the CONFIG row claims sleep; `None` if it has no usable `CurtailMode` and no power supply flag."""
    mode, supply = config.get("CurtailMode"), config.get("IsPowerSupplyOn")
    if isinstance(mode, str) and mode:
        return mode.lower() in _ASLEEP_WORDS or supply is False
    return (not supply) if isinstance(supply, bool) else None


async def read_profiles(host: str, deadline_s: float) -> list[list[Any]]:
    """Return `[name, watts, terahashes]` of each usable profile, least watts first."""
    body = await ask(host, {"command": "profiles"}, deadline_s)
    _raise_on_error(body)
    rows = body.get("PROFILES")
    found = []
    for row in rows if isinstance(rows, list) else []:
        name = row.get("Profile Name") if isinstance(row, dict) else None
        if isinstance(name, str):
            watts, rate = _positive(row.get("Watts")), _positive(row.get("Hashrate"))
            if watts is not None and rate is not None:
                found.append([name, watts, rate])
    if not found:
        raise RpcFault("no_fields", "the profile table is empty or has no watts")
    return sorted(found, key=lambda row: float(row[1]))


async def write(host: str, command: str, argument: str, deadline_s: float) -> str:
    """Run one session command (`curtail` or `profileset`) and return the miner's own words.

    Raises `RpcFault`; reason "error_reply" is a refusal, "hung" means that it may have been carried out.
    """
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + deadline_s

    def left_s() -> float:
        return max(0.05, ends_s - loop.time())

    try:
        session, is_ours = await _open_session(host, left_s)
    except RpcFault as error:
        if error.reason in ("hung", "truncated"):  # the command itself was never sent
            raise RpcFault("error_reply", f"no session: {error}") from error
        raise
    try:
        body = await ask(host, {"command": command, "parameter": f"{session},{argument}"}, left_s())
        _raise_on_error(body)
        return _message(body)
    finally:
        if is_ours:
            await _close_session(host, session, min(left_s(), 1.0))


async def _open_session(host: str, left_s: Callable[[], float]) -> tuple[str, bool]:
    body = await ask(host, {"command": "logon"}, left_s())
    if _severity(body) not in ("E", "F"):
        return _session_id(body), True
    refusal = _message(body)
    body = await ask(host, {"command": "session"}, left_s())
    _raise_on_error(body)
    try:
        return _session_id(body), False
    except RpcFault as error:  # the other one's session ended in between: the caller's next try will get its own
        raise RpcFault("error_reply", f"logon refused: {refusal}") from error


async def _close_session(host: str, session: str, deadline_s: float) -> None:
    try:
        await ask(host, {"command": "logoff", "parameter": session}, deadline_s)
    except RpcFault:
        # The command's own outcome stands; the miner drops an idle session after a minute.
        return


def _session_id(body: dict[str, Any]) -> str:
    session = first_of(body, "SESSION").get("SessionID")
    if not isinstance(session, str) or not session:
        raise RpcFault("error_reply", "the miner gave no session id")
    return session


def _severity(body: dict[str, Any]) -> str:
    severity = first_of(body, "STATUS").get("STATUS")
    return severity if isinstance(severity, str) else "E"


def _message(body: dict[str, Any]) -> str:
    message = first_of(body, "STATUS").get("Msg")
    return message[:200] if isinstance(message, str) else "no message"


def _raise_on_error(body: dict[str, Any]) -> None:
    if _severity(body) in ("E", "F"):
        raise RpcFault("error_reply", _message(body))


def _positive(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None
