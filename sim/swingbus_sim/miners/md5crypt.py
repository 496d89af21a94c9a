"""The `$1$` password hash (md5crypt) that Whatsminer's token protocol is built on.

Written here because `crypt` left the standard library with Python 3.13. For the protocol only: it is no protection by
today's standards. Source of the algorithm: Poul-Henning Kamp's public-domain `crypt_md5`, 1994.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

_ALPHABET = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ROUNDS = 1000
_GROUPS = ((0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5))


def _to64(value: int, digits: int) -> str:
    out = ""
    for _ in range(digits):
        out += _ALPHABET[value & 0x3F]
        value >>= 6
    return out


@lru_cache(maxsize=4096)
def md5crypt_hash(secret: str, salt: str) -> str:
    """Return the last field of `$1$salt$hash` (22 characters).

    >>> md5crypt_hash("password", "saltsalt")
    'qjXMvbEw8oaL.CzflDtaK/'
    """
    key, pepper = secret.encode(), salt.encode()[:8]
    alternate = hashlib.md5(key + pepper + key, usedforsecurity=False).digest()
    first = key + b"$1$" + pepper
    first += (alternate * (len(key) // 16 + 1))[: len(key)]
    length = len(key)
    while length:
        first += b"\0" if length & 1 else key[:1]
        length >>= 1
    digest = hashlib.md5(first, usedforsecurity=False).digest()
    for turn in range(_ROUNDS):
        block = key if turn & 1 else digest
        if turn % 3:
            block += pepper
        if turn % 7:
            block += key
        block += digest if turn & 1 else key
        digest = hashlib.md5(block, usedforsecurity=False).digest()
    text = "".join(_to64(digest[a] << 16 | digest[b] << 8 | digest[c], 4) for a, b, c in _GROUPS)
    return text + _to64(digest[11], 2)
