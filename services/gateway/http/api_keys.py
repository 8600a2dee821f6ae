"""API keys: how they are made, kept and told apart. Pure.

A key is 32 random bytes, and what is kept of it is its SHA-256. Passwords need a slow hash, since people choose them
and they can be guessed; nobody guesses 256 random bits, however fast the hash is, and a slow one would let anybody keep
the gateway busy with wrong keys.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Final

import msgspec

SECRET_BYTES: Final = 32
_PREFIX: Final = "pdmesh-"
"""Lets scanners for leaked secrets know one."""
_KIND: Final = "sha256:"
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MOST_CHARACTERS: Final = 512
"""Of a key that is looked at."""


class StoredKey(msgspec.Struct, frozen=True):
    """What is kept of one key."""

    name: str
    """Whose it is, for logs and for taking it back."""
    digest: bytes
    """SHA-256 of the key as text."""

    def line(self) -> str:
        """As it stands in the file, without the end of the line."""
        return f"{self.name} {_KIND}{self.digest.hex()}"


class KeyLines(msgspec.Struct, frozen=True):
    """A file of keys, read."""

    keys: tuple[StoredKey, ...]
    problems: tuple[str, ...]
    """Lines that are no keys, in words."""


def key_of(secret: bytes) -> str:
    """The key made of `secret`, SECRET_BYTES random bytes."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a key is made of {SECRET_BYTES} random bytes, not of {len(secret)}")
    return _PREFIX + base64.urlsafe_b64encode(secret).decode().rstrip("=")


def stored(name: str, key: str) -> StoredKey:
    """What to keep of `key`."""
    return StoredKey(name, _digest(key))


def name_problem(name: str) -> str | None:
    """Why a key cannot have this name; None: it can."""
    if _NAME.fullmatch(name):
        return None
    return f"the name {name!r} is not allowed: use 1 to 64 letters, digits, '_', '.' and '-'"


def read_lines(text: str) -> KeyLines:
    """The keys of a file: one a line, its name and `sha256:` with 64 hexadecimal digits; # begins a comment."""
    keys: list[StoredKey] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if (key := _read(words)) is None:
            problems.append(f"line {number} is not 'NAME sha256:HASH'; `pdmesh keys api NAME` writes such a line")
        elif any(key.name == other.name for other in keys):
            problems.append(f"line {number}: the name {key.name!r} is given twice; remove one")
        else:
            keys.append(key)
    return KeyLines(tuple(keys), tuple(problems))


def owner_among(key: str, keys: Iterable[StoredKey]) -> str | None:
    """The name of `key`; None where it is not among them. The time it takes does not tell how near it came."""
    if len(key) > _MOST_CHARACTERS:
        return None
    digest, owner = _digest(key), None
    for known in keys:
        if hmac.compare_digest(known.digest, digest):
            owner = known.name
    return owner


def bearer_of(authorization: str | None) -> str | None:
    """The key in an Authorization header; None where it holds none."""
    if authorization is None:
        return None
    scheme, _, key = authorization.strip().partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def _read(words: list[str]) -> StoredKey | None:
    if len(words) != 2 or name_problem(words[0]) is not None or not words[1].startswith(_KIND):
        return None
    digits = words[1].removeprefix(_KIND)
    return StoredKey(words[0], bytes.fromhex(digits)) if _DIGEST.fullmatch(digits) else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
