"""Whatsminer by its own API: which version, asleep or not, and the writes.

pyasic-rs 0.8.6 answers `is_mining` with true when the miner did not answer at all; its `pause` on API 2 returns true for a
wrong password and for a refused connection, and a refused command makes it try another vendor's unlock code on the miner.
Reading stays with the library. Invariants: no answer is never "awake"; a refusal carries the miner's own words.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

from swingbus_agent.adapters.asic.envelope import Envelope, md5crypt
from swingbus_agent.adapters.asic.rpc import RpcFault, ask, ask_framed, parse_reply

FIRST_V3_FIRMWARE = 20241101  # the library's own dividing line between API 2 and API 3
V3_ACCOUNT = "super"
TOKEN_USE_S = 1500.0  # the miner keeps a token for 30 minutes


async def speaks_v3(host: str, deadline_s: float) -> bool:
    """Ask port 4028 for the firmware's date and say whether API 3 on port 4433 is the one to use."""
    message = _section(await ask(host, {"command": "get_version"}, deadline_s), "Msg")
    version = message.get("fw_ver")
    if not isinstance(version, str):
        raise RpcFault("error_reply", "get_version names no firmware: is this a Whatsminer?")
    date = version.strip("'").split(".")[0]
    return date.isdigit() and int(date) >= FIRST_V3_FIRMWARE


async def says_asleep(host: str, is_v3: bool, deadline_s: float) -> bool | None:
    """Say whether the miner claims to be off; `None` if the answer has no such field."""
    if is_v3:
        reply = await ask_framed(host, {"cmd": "get.device.info", "param": "miner"}, deadline_s)
        _raise_on_code(reply)
        return _is(_section(_section(reply, "msg"), "miner").get("working"), "false")
    reply = await ask(host, {"command": "status"}, deadline_s)
    _raise_on_status(reply)
    message = _section(reply, "Msg")
    return _is(message.get("mineroff", message.get("btmineroff")), "true")


@dataclass(slots=True)
class _Token:
    envelope: Envelope
    sign: str
    until_s: float


class WhatsminerWrites:
    """Commands to one miner with one password; keeps API 2's token between them."""

    def __init__(self, host: str, password: str) -> None:
        self._host = host
        self._password = password
        self._token: _Token | None = None

    async def write(self, is_v3: bool, verb: str, argument: float | None, deadline_s: float) -> str:
        """Carry out `sleep`, `wake` or `limit` and return the miner's words.

        Raises `RpcFault`: "error_reply" means that the miner said no or was not asked, "hung" and "truncated" that it may
        obey.
        """
        ends_s = time.monotonic() + deadline_s
        if is_v3:
            return await self._write_v3(verb, argument, ends_s)
        try:
            return await self._write_v2(verb, argument, ends_s)
        except _StaleToken:
            self._token = None  # it rebooted, or dropped the token for newer ones
        try:
            return await self._write_v2(verb, argument, ends_s)
        except _StaleToken as error:
            self._token = None
            raise RpcFault("error_reply", str(error)) from error

    # ----- API 2 --------------------------------------------------------------------------------------------------

    async def _write_v2(self, verb: str, argument: float | None, ends_s: float) -> str:
        token = await self._fresh_token(ends_s)
        command = {
            # "respbefore": answer first, then switch off; as text, or the firmware ignores it.
            "sleep": {"command": "power_off", "respbefore": "true"},
            "wake": {"command": "power_on"},
            "limit": {"command": "adjust_power_limit", "power_limit": f"{argument:.0f}" if argument else "0"},
        }[verb]
        inner = json.dumps(command | {"token": token.sign}, separators=(",", ":")).encode()
        reply = await ask(self._host, {"enc": 1, "data": token.envelope.seal(inner)}, _left_s(ends_s))
        sealed = reply.get("enc")
        if isinstance(sealed, str):
            try:
                reply = parse_reply(token.envelope.open(sealed))
            except (ValueError, RpcFault) as error:
                raise RpcFault("hung", f"answered, but not readably: {error}") from error
        if reply.get("Code") == 135:
            raise _StaleToken(_words(reply))
        _raise_on_status(reply)
        return _words(reply)

    async def _fresh_token(self, ends_s: float) -> _Token:
        if self._token is not None and time.monotonic() < self._token.until_s:
            return self._token
        try:
            reply = await ask(self._host, {"command": "get_token"}, _left_s(ends_s))
        except RpcFault as error:
            # Nothing was sent that it could obey, whatever became of this question.
            reason = "error_reply" if error.reason in ("hung", "truncated") else error.reason
            raise RpcFault(reason, f"no token: {error}") from error
        _raise_on_status(reply)
        message = _section(reply, "Msg")
        salt, new_salt, stamp = (message.get(name) for name in ("salt", "newsalt", "time"))
        if not (isinstance(salt, str) and isinstance(new_salt, str) and isinstance(stamp, str)):
            raise RpcFault("error_reply", "get_token gave no salt: is the write API of this miner closed?")
        key = md5crypt(self._password, salt)
        await asyncio.sleep(0)  # two such hashes are some milliseconds: let the others in between
        sign = md5crypt(key + stamp, new_salt)
        self._token = _Token(envelope=Envelope(key), sign=sign, until_s=time.monotonic() + TOKEN_USE_S)
        return self._token

    # ----- API 3 --------------------------------------------------------------------------------------------------

    async def _write_v3(self, verb: str, argument: float | None, ends_s: float) -> str:
        try:
            reply = await ask_framed(self._host, {"cmd": "get.device.info", "param": "salt"}, _left_s(ends_s))
        except RpcFault as error:
            reason = "error_reply" if error.reason in ("hung", "truncated") else error.reason
            raise RpcFault(reason, f"no salt: {error}") from error
        _raise_on_code(reply)
        salt = _section(reply, "msg").get("salt")
        command, parameter = {
            "sleep": ("set.miner.service", "stop"),
            "wake": ("set.miner.service", "start"),
            "limit": ("set.miner.power_limit", round(argument) if argument is not None else 0),
        }[verb]
        stamp = int(time.time())
        digest = hashlib.sha256(f"{command}{self._password}{salt}{stamp}".encode()).digest()
        request = {"cmd": command, "param": parameter, "ts": stamp, "account": V3_ACCOUNT}
        request["token"] = base64.b64encode(digest).decode()[:8]
        reply = await ask_framed(self._host, request, _left_s(ends_s))
        _raise_on_code(reply)
        return str(reply.get("msg"))[:200]


class _StaleToken(Exception):
    """The miner no longer knows the token."""


def _left_s(ends_s: float) -> float:
    return max(0.05, ends_s - time.monotonic())


def _words(reply: dict[str, Any]) -> str:
    return str(reply.get("Msg"))[:200]


def _raise_on_status(reply: dict[str, Any]) -> None:
    if reply.get("STATUS") not in ("S", "I"):
        raise RpcFault("error_reply", _words(reply))


def _raise_on_code(reply: dict[str, Any]) -> None:
    if reply.get("code") != 0:
        raise RpcFault("error_reply", str(reply.get("msg"))[:200])


def _is(value: object, word: str) -> bool | None:
    if isinstance(value, bool):
        return value == (word == "true")
    return value.lower() == word if isinstance(value, str) and value.lower() in ("true", "false") else None


def _section(body: dict[str, Any], name: str) -> dict[str, Any]:
    section = body.get(name)
    return section if isinstance(section, dict) else {}
