"""The simulated miners' protocols, command by command, without sockets."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

import pytest

from swingbus_agent.adapters.asic.envelope import Envelope, md5crypt
from swingbus_sim.miners.luxos import SESSION_IDLE_S, LuxosApi
from swingbus_sim.miners.whatsminer import TOKEN_LIFE_S, WhatsminerApi
from swingbus_sim.miners.whatsminer_v3 import ACCOUNT, WhatsminerV3Api
from swingbus_sim.ports import AsicState
from tests.fakes.miners import FakeAsic


def luxos(api: LuxosApi, command: str, parameter: str = "", now_s: float = 0.0) -> dict[str, Any]:
    """Ask the LuxOS API one thing."""
    request = {"command": command} | ({"parameter": parameter} if parameter else {})
    reply, stays_open = api.answer(json.dumps(request).encode(), now_s)
    assert reply.endswith(b"\0")
    assert not stays_open
    body: dict[str, Any] = json.loads(reply[:-1])
    return body


def severity(body: dict[str, Any]) -> str:
    """Return the status letter of a LuxOS reply."""
    return str(body["STATUS"][0]["STATUS"])


LUXOS_READS = ["version", "summary", "stats", "devs", "pools", "groups", "power", "temps", "fans", "config"]
LUXOS_READS += ["profiles", "limits", "events", "session"]


@pytest.mark.parametrize("command", LUXOS_READS)
@pytest.mark.parametrize("state", list(AsicState))
def test_luxos_read_answers_in_every_state(command: str, state: AsicState) -> None:
    """Every read has a status and an id, whatever the machine is doing."""
    body = luxos(LuxosApi(FakeAsic(state=state, boots_for_s=9.0)), command)
    assert severity(body) == "S"
    assert body["id"] == 1


def test_luxos_write_without_session_is_refused() -> None:
    """A write needs a session, and an invented one does not help."""
    asic = FakeAsic()
    api = LuxosApi(asic)
    assert severity(luxos(api, "curtail", "sleep")) == "E"
    assert severity(luxos(api, "curtail", "madeup1,sleep")) == "E"
    assert asic.commands == []


def test_luxos_has_one_session_until_it_ends_or_idles() -> None:
    """The second logon fails until the first logs off, is killed or has idled for a minute."""
    api = LuxosApi(FakeAsic())
    session = luxos(api, "logon")["SESSION"][0]["SessionID"]
    assert severity(luxos(api, "logon")) == "E"
    assert severity(luxos(api, "curtail", f"{session},sleep")) == "S"
    assert severity(luxos(api, "logoff", session)) == "S"
    assert severity(luxos(api, "logon", now_s=1.0)) == "S"
    assert severity(luxos(api, "logon", now_s=2.0)) == "E"
    assert severity(luxos(api, "logon", now_s=3.0 + SESSION_IDLE_S)) == "S"
    assert severity(luxos(api, "kill")) == "S"
    assert severity(luxos(api, "logon", now_s=4.0 + SESSION_IDLE_S)) == "S"


def test_luxos_profile_is_set_by_name_only_if_it_exists() -> None:
    """An unknown profile is an error and changes nothing."""
    asic = FakeAsic()
    api = LuxosApi(asic)
    session = luxos(api, "logon")["SESSION"][0]["SessionID"]
    assert severity(luxos(api, "profileset", f"{session},410MHz")) == "S"
    assert severity(luxos(api, "profileset", f"{session},nope")) == "E"
    assert luxos(api, "config")["CONFIG"][0]["Profile"] == "410MHz"
    assert luxos(api, "profileget", "410MHz")["PROFILE"][0]["Watts"] == 1657


def test_luxos_joined_commands_come_under_their_own_names() -> None:
    """`a+b` answers both, each in a list."""
    body = luxos(LuxosApi(FakeAsic()), "power+config")
    assert body["power"][0]["POWER"][0]["Watts"] == 2794
    assert body["config"][0]["CONFIG"][0]["CurtailMode"] == "None"


@pytest.mark.parametrize("request_", [b"{}", b"nonsense}", b'{"command":7}', b'{"command":"format"}', b"\xff}"])
def test_luxos_bad_request_is_an_error_reply(request_: bytes) -> None:
    """Nobody can make the miner fall over."""
    reply, _ = LuxosApi(FakeAsic()).answer(request_, 0.0)
    assert severity(json.loads(reply[:-1])) == "E"


def whatsminer(api: WhatsminerApi, request: dict[str, Any], now_s: float = 0.0) -> dict[str, Any]:
    """Ask the Whatsminer API 2 one thing."""
    body: dict[str, Any] = json.loads(api.answer(json.dumps(request).encode(), now_s)[0])
    return body


def sealed_write(
    api: WhatsminerApi, password: str, command: dict[str, Any], at_s: float = 0.0, token_at_s: float | None = None
) -> dict[str, Any]:
    """Fetch a token at `token_at_s`, then send one sealed command at `at_s`; returns the opened reply."""
    token = whatsminer(api, {"command": "get_token"}, at_s if token_at_s is None else token_at_s)["Msg"]
    key = md5crypt(password, token["salt"])
    command = command | {"token": md5crypt(key + token["time"], token["newsalt"])}
    envelope = Envelope(key)
    reply = whatsminer(api, {"enc": 1, "data": envelope.seal(json.dumps(command).encode())}, at_s)
    opened: dict[str, Any] = json.loads(envelope.open(reply["enc"])) if "enc" in reply else reply
    return opened


WHATSMINER_READS = (
    "summary devs edevs devdetails pools status get_version version get_psu get_miner_info get_error_code"
)


@pytest.mark.parametrize("command", WHATSMINER_READS.split())
@pytest.mark.parametrize("state", list(AsicState))
def test_whatsminer_read_answers_in_every_state(command: str, state: AsicState) -> None:
    """Every read has a good status, whatever the machine is doing."""
    body = whatsminer(WhatsminerApi(FakeAsic(state=state, boots_for_s=9.0), "secret", False), {"cmd": command})
    status = body["STATUS"]
    assert (status if isinstance(status, str) else status[0]["STATUS"]) == "S"


@pytest.mark.parametrize(
    ("command", "arrived"),
    [
        ({"command": "power_off", "respbefore": "true"}, "sleep"),
        ({"cmd": "power_on"}, "wake"),
        ({"command": "adjust_power_limit", "power_limit": "2000"}, "limit 2000"),
        ({"command": "set_power_pct", "percent": "50"}, "limit 2097.5"),
        ({"command": "set_low_power"}, "limit 1657"),
        ({"command": "reboot"}, "reboot"),
    ],
)
def test_whatsminer_sealed_command_reaches_the_machine(command: dict[str, Any], arrived: str) -> None:
    """With the right password a command gets through."""
    asic = FakeAsic()
    assert sealed_write(WhatsminerApi(asic, "secret", False), "secret", command)["Code"] == 131
    assert asic.commands == [arrived]


@pytest.mark.parametrize("command", [{"command": "adjust_power_limit", "power_limit": "x"}, {"command": "nope"}])
def test_whatsminer_bad_command_is_refused(command: dict[str, Any]) -> None:
    """Bad parameters and unknown commands change nothing."""
    asic = FakeAsic()
    assert sealed_write(WhatsminerApi(asic, "secret", False), "secret", command)["STATUS"] == "E"
    assert asic.commands == []


def test_whatsminer_refuses_plain_wrong_and_factory_password_writes() -> None:
    """No envelope, another password, or the factory's: nothing moves."""
    asic = FakeAsic()
    assert whatsminer(WhatsminerApi(asic, "secret", False), {"command": "power_off"})["Code"] == 45
    assert sealed_write(WhatsminerApi(asic, "secret", False), "guess", {"command": "power_off"})["STATUS"] == "E"
    assert sealed_write(WhatsminerApi(asic, "admin", False), "admin", {"command": "power_off"})["STATUS"] == "E"
    assert asic.commands == []
    assert sealed_write(WhatsminerApi(asic, "admin", True), "admin", {"command": "power_off"})["STATUS"] == "S"


def test_whatsminer_token_grows_old() -> None:
    """A token is good for half an hour."""
    api = WhatsminerApi(FakeAsic(), "secret", False)
    late_s = TOKEN_LIFE_S + 1
    assert sealed_write(api, "secret", {"command": "power_off"}, at_s=late_s, token_at_s=0.0)["Code"] == 135


def whatsminer_v3(api: WhatsminerV3Api, request: dict[str, Any]) -> dict[str, Any]:
    """Ask the Whatsminer API 3 one thing."""
    data = json.dumps(request).encode()
    reply, _ = api.answer(struct.pack("<I", len(data)) + data, 0.0)
    assert struct.unpack_from("<I", reply)[0] == len(reply) - 4
    body: dict[str, Any] = json.loads(reply[4:])
    return body


def test_whatsminer_v3_token_is_needed_and_right_one_works() -> None:
    """Without the salted token a command is refused; with it, it arrives."""
    asic = FakeAsic()
    api = WhatsminerV3Api(asic, "secret", False)
    salt = whatsminer_v3(api, {"cmd": "get.device.info", "param": "salt"})["msg"]["salt"]
    request = {"cmd": "set.miner.service", "param": "stop", "ts": 5, "account": ACCOUNT}
    for password, code in (("guess", -4), ("secret", 0)):
        digest = hashlib.sha256(f"set.miner.service{password}{salt}5".encode()).digest()
        token = base64.b64encode(digest).decode()[:8]
        assert whatsminer_v3(api, request | {"token": token})["code"] == code
    assert asic.commands == ["sleep"]


def test_whatsminer_v3_request_is_whole_when_its_length_says_so() -> None:
    """A frame that arrives in pieces waits for its end."""
    api = WhatsminerV3Api(FakeAsic(), "secret", False)
    frame = struct.pack("<I", 2) + b"{}"
    assert [api.is_whole(frame[:end]) for end in (0, 3, 4, 5, 6)] == [False, False, False, False, True]
