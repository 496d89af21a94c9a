"""Whatsminer's password hash and AES envelope, in plain Python.

Here because the well-kept library for it costs the child 8 MB for the dozen AES blocks that a command is, and the edge box's
whole memory budget is 72 MB; the tests hold every function against that library. It is the vendor's obfuscation (ECB, key
from an md5crypt hash), good for talking to the miner and for nothing else. Sources: FIPS 197; Poul-Henning Kamp's md5crypt.
"""

from __future__ import annotations

import base64
import hashlib

_ALPHABET = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BLOCK = 16
_ROUNDS = 14


def md5crypt(secret: str, salt: str) -> str:
    """Return the hash field of `$1$salt$hash`.

    >>> md5crypt("password", "saltsalt")
    'qjXMvbEw8oaL.CzflDtaK/'
    """
    key, pepper = secret.encode(), salt.encode()[:8]

    def md5(data: bytes) -> bytes:
        return hashlib.md5(data, usedforsecurity=False).digest()

    mixed = key + b"$1$" + pepper + (md5(key + pepper + key) * (len(key) // _BLOCK + 1))[: len(key)]
    bits = len(key)
    while bits:
        mixed += b"\0" if bits & 1 else key[:1]
        bits >>= 1
    digest = md5(mixed)
    for turn in range(1000):
        is_odd = turn & 1
        middle = (pepper if turn % 3 else b"") + (key if turn % 7 else b"")
        digest = md5((key if is_odd else digest) + middle + (digest if is_odd else key))
    order = (0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5)
    words = [(digest[a] << 16 | digest[b] << 8 | digest[c], 4) for a, b, c in order] + [(digest[11], 2)]
    return "".join(_ALPHABET[word >> 6 * place & 63] for word, digits in words for place in range(digits))


def _double(value: int) -> int:
    return (value << 1) ^ (0x11B if value & 0x80 else 0)


def _times(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = _double(a), b >> 1
    return product


def _make_sbox() -> bytes:
    sbox = bytearray(256)
    p = q = 1
    while True:  # p runs through all non-zero values by powers of 3, q is its inverse
        p ^= _double(p)
        q ^= q << 1
        q ^= q << 2
        q ^= q << 4
        q &= 0xFF
        if q & 0x80:
            q ^= 0x09
        rotated = q
        for turn in range(1, 5):
            rotated ^= (q << turn | q >> 8 - turn) & 0xFF
        sbox[p] = rotated ^ 0x63
        if p == 1:
            sbox[0] = 0x63
            return bytes(sbox)


_SBOX = _make_sbox()
_UNSBOX = bytes(_SBOX.index(value) for value in range(256))
_MIX = {factor: bytes(_times(value, factor) for value in range(256)) for factor in (2, 3, 9, 11, 13, 14)}
_SHIFT = tuple((index + 4 * (index % 4)) % _BLOCK for index in range(_BLOCK))
_UNSHIFT = tuple(_SHIFT.index(index) for index in range(_BLOCK))


class Envelope:
    """AES-256-ECB with zero padding and base64, keyed by the SHA-256 of a password hash."""

    def __init__(self, password_hash: str) -> None:
        self._round_keys = _expand(hashlib.sha256(password_hash.encode()).digest())

    def seal(self, data: bytes) -> str:
        """Return `data`, padded with zero bytes, encrypted and in base64."""
        padded = data + b"\0" * (-len(data) % _BLOCK)
        blocks = (self._encrypt(padded[at : at + _BLOCK]) for at in range(0, len(padded), _BLOCK))
        return base64.b64encode(b"".join(blocks)).decode()

    def open(self, text: str) -> bytes:
        """Return what was sealed, without the padding; raises `ValueError` on anything that cannot be a sealed text."""
        data = base64.b64decode(text, validate=True)
        if not data or len(data) % _BLOCK:
            raise ValueError(f"{len(data)} bytes are no whole number of AES blocks")
        blocks = (self._decrypt(data[at : at + _BLOCK]) for at in range(0, len(data), _BLOCK))
        return b"".join(blocks).rstrip(b"\0")

    def _encrypt(self, block: bytes) -> bytes:
        keys, twice, thrice = self._round_keys, _MIX[2], _MIX[3]
        state = _xor(block, keys[0])
        for turn in range(1, _ROUNDS + 1):
            state = bytes(_SBOX[state[place]] for place in _SHIFT)
            if turn < _ROUNDS:
                mixed = bytearray()
                for at in range(0, _BLOCK, 4):
                    a, b, c, d = state[at : at + 4]
                    mixed.append(twice[a] ^ thrice[b] ^ c ^ d)
                    mixed.append(a ^ twice[b] ^ thrice[c] ^ d)
                    mixed.append(a ^ b ^ twice[c] ^ thrice[d])
                    mixed.append(thrice[a] ^ b ^ c ^ twice[d])
                state = bytes(mixed)
            state = _xor(state, keys[turn])
        return state

    def _decrypt(self, block: bytes) -> bytes:
        keys, by9, by11, by13, by14 = self._round_keys, _MIX[9], _MIX[11], _MIX[13], _MIX[14]
        state = _xor(block, keys[_ROUNDS])
        for turn in range(_ROUNDS - 1, -1, -1):
            state = _xor(bytes(_UNSBOX[state[place]] for place in _UNSHIFT), keys[turn])
            if turn:
                mixed = bytearray()
                for at in range(0, _BLOCK, 4):
                    a, b, c, d = state[at : at + 4]
                    mixed.append(by14[a] ^ by11[b] ^ by13[c] ^ by9[d])
                    mixed.append(by9[a] ^ by14[b] ^ by11[c] ^ by13[d])
                    mixed.append(by13[a] ^ by9[b] ^ by14[c] ^ by11[d])
                    mixed.append(by11[a] ^ by13[b] ^ by9[c] ^ by14[d])
                state = bytes(mixed)
        return state


def _xor(a: bytes, b: bytes) -> bytes:
    return (int.from_bytes(a) ^ int.from_bytes(b)).to_bytes(_BLOCK)


def _expand(key: bytes) -> list[bytes]:
    words = [key[at : at + 4] for at in range(0, 32, 4)]
    constant = 1
    while len(words) < 4 * (_ROUNDS + 1):
        last = words[-1]
        if len(words) % 8 == 0:
            last = bytes((_SBOX[last[1]] ^ constant, _SBOX[last[2]], _SBOX[last[3]], _SBOX[last[0]]))
            constant = _double(constant)
        elif len(words) % 8 == 4:
            last = bytes(_SBOX[value] for value in last)
        words.append(bytes(a ^ b for a, b in zip(words[-8], last, strict=True)))
    return [b"".join(words[at : at + 4]) for at in range(0, len(words), 4)]
