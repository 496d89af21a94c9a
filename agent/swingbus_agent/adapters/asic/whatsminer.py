"""Whatsminer's plain reads by its own API: which API version, and asleep or not.

pyasic-rs 0.8.6 answers `is_mining` with true when the miner did not answer at all; these two questions are asked here
instead. Writes go through the library, which has the token and the AES envelope. Invariant: no answer is never "awake".
"""

from __future__ import annotations

from typing import Any

from swingbus_agent.adapters.asic.rpc import RpcFault, ask, ask_framed

FIRST_V3_FIRMWARE = 20241101  # the library's own dividing line between API 2 and API 3


async def speaks_v3(host: str, deadline_s: float) -> bool:
    """Ask port 4028 for the firmware's date and say whether API 3 on port 4433 is the one to use."""
    message = _section(await ask(host, {"command": "get_version"}, deadline_s), "Msg")
    version = message.get("fw_ver")
    if not isinstance(version, str):
        raise RpcFault("garbage", "get_version names no firmware: is this a Whatsminer?")
    date = version.strip("'").split(".")[0]
    return date.isdigit() and int(date) >= FIRST_V3_FIRMWARE


async def says_asleep(host: str, is_v3: bool, deadline_s: float) -> bool | None:
    """Say whether the miner claims to be off; `None` if the answer has no such field."""
    if is_v3:
        reply = await ask_framed(host, {"cmd": "get.device.info", "param": "miner"}, deadline_s)
        if reply.get("code") != 0:
            raise RpcFault("error_reply", str(reply.get("msg"))[:200])
        return _is(_section(_section(reply, "msg"), "miner").get("working"), "false")
    reply = await ask(host, {"command": "status"}, deadline_s)
    if reply.get("STATUS") not in ("S", "I"):
        raise RpcFault("error_reply", str(reply.get("Msg"))[:200])
    message = _section(reply, "Msg")
    return _is(message.get("mineroff", message.get("btmineroff")), "true")


def _is(value: object, word: str) -> bool | None:
    if isinstance(value, bool):
        return value == (word == "true")
    return value.lower() == word if isinstance(value, str) and value.lower() in ("true", "false") else None


def _section(body: dict[str, Any], name: str) -> dict[str, Any]:
    section = body.get(name)
    return section if isinstance(section, dict) else {}
