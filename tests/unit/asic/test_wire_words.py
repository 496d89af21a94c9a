"""Replies, rows, frames and the vendor's envelope, without sockets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_agent.adapters.asic import frames, rows
from swingbus_agent.adapters.asic.envelope import Envelope, md5crypt
from swingbus_agent.adapters.asic.rpc import RpcFault, parse_reply
from swingbus_agent.domain.miner import OperatingState, PowerSource
from swingbus_sim.miners.md5crypt import md5crypt_hash


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "truncated"),
        (b"\0", "truncated"),
        (b'{"a":[1,2', "truncated"),
        (b'{"a":Infinity}', "garbage"),
        (b'{"a":-Infinity}', "garbage"),
        (b'{"a":NaN}', "garbage"),
        (b'{"a":1,}', "garbage"),
        (b'{"a":"\xff"}', "garbage"),
        (b"[1]", "garbage"),
        (b"null", "garbage"),
        (b"[" * 100_000, "garbage"),
    ],
)
def test_broken_reply_has_its_reason(reply: bytes, reason: str) -> None:
    """Cut off and nonsense are told apart."""
    with pytest.raises(RpcFault) as caught:
        parse_reply(reply)
    assert caught.value.reason == reason


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_any_bytes_are_an_object_or_a_fault(reply: bytes) -> None:
    """No bytes make the parser do anything else."""
    try:
        found: object = parse_reply(reply)
    except RpcFault as fault:
        found = fault.reason
    assert isinstance(found, dict) or found in ("truncated", "garbage")


def a_row(**changes: object) -> rows.Row:
    """Build a row of a healthy miner."""
    row = rows.Row(
        started_s=10.0,
        ended_s=10.5,
        says_asleep=False,
        power_w=3000.0,
        hashrate_ths=100.0,
        uptime_s=60.0,
        profile="default",
        power_limit_w=3000.0,
        inlet_temperature_c=None,
        vitals=rows.Vitals(ended_s=9.0, board_temperatures_c=[60.0, None], fan_speeds_rpm=[4000.0]),
    )
    for name, value in changes.items():
        setattr(row, name, value)
    return row


def test_row_survives_the_pipe() -> None:
    """Packed, framed and unpacked, a reading is what it was; missing stays missing."""
    reading = rows.unpack("m1", a_row().pack())
    assert (reading.name, reading.state, reading.power_w) == ("m1", OperatingState.MINING, 3000.0)
    assert (reading.started_s, reading.ended_s, reading.vitals_ended_s) == (10.0, 10.5, 9.0)
    assert reading.board_temperatures_c == (60.0, None)
    assert reading.inlet_temperature_c is None
    assert reading.pool_is_alive is None


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, 1e9])
def test_unbelievable_watts_become_none_and_an_error(value: float) -> None:
    """A number outside physics is dropped and named."""
    reading = rows.unpack("m1", a_row(power_w=value).pack())
    assert reading.power_w is None
    assert reading.power_source is PowerSource.NONE
    assert any(error.startswith("power_w out of range") for error in reading.errors)


def test_row_of_wrong_length_is_a_value_error() -> None:
    """A child of another version is refused, not guessed at."""
    with pytest.raises(ValueError, match="unpack"):
        rows.unpack("m1", a_row().pack()[:-1])


async def read_bytes(data: bytes) -> list[Any]:
    """Read one frame from a pipe that holds `data` and is closed."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await frames.read_frame(reader)


def test_frame_larger_than_allowed_is_refused_before_it_is_read() -> None:
    """A length is checked before memory is given for it."""
    with pytest.raises(ValueError, match="frame of"):
        asyncio.run(read_bytes(struct.pack("<I", frames.MAX_FRAME_BYTES + 1)))


def test_frame_cut_off_is_the_end() -> None:
    """Half a frame is the other side gone; a whole one is what was packed."""
    frame = frames.pack([1, "ok", [2.5, None]])
    assert asyncio.run(read_bytes(frame)) == [1, "ok", [2.5, None]]
    with pytest.raises(EOFError):
        asyncio.run(read_bytes(frame[:-1]))


def test_envelope_agrees_with_the_well_kept_library() -> None:
    """Our AES is AES: a hundred random keys and texts against `cryptography`, both ways."""
    chance = random.Random(7)
    for _ in range(100):
        password_hash, data = chance.randbytes(8).hex(), chance.randbytes(chance.randrange(1, 200)) + b"x"
        envelope = Envelope(password_hash)
        cipher = Cipher(algorithms.AES(hashlib.sha256(password_hash.encode()).digest()), ECB())
        encryptor = cipher.encryptor()
        theirs = encryptor.update(data + b"\0" * (-len(data) % 16)) + encryptor.finalize()
        assert base64.b64decode(envelope.seal(data)) == theirs
        assert envelope.open(base64.b64encode(theirs).decode()) == data


@pytest.mark.parametrize("text", ["", "!!!!", "QUJD", "Ä"])
def test_envelope_refuses_what_is_no_sealed_text(text: str) -> None:
    """Wrong base64 and broken blocks are a `ValueError`."""
    with pytest.raises(ValueError):
        Envelope("key").open(text)


@given(st.text(min_size=1, max_size=40), st.text(alphabet="abc012./XYZ", min_size=1, max_size=12))
@settings(max_examples=30)
def test_password_hash_agrees_at_both_ends(secret: str, salt: str) -> None:
    """Two implementations, the agent's and the simulator's, give one hash."""
    assert md5crypt(secret, salt) == md5crypt_hash(secret, salt)


def test_password_hash_matches_known_answers() -> None:
    """Known pairs, made with the C library's `crypt`."""
    assert md5crypt("password", "saltsalt") == "qjXMvbEw8oaL.CzflDtaK/"
    assert md5crypt("admin", "BQ5hoXV9") == "RxmaDUO33TS7O26yeMHZ81"
