"""The byte alphabet of byte-level BPE (GPT-2): every byte is written as one printable character."""

from types import MappingProxyType
from typing import Final


def _alphabet() -> dict[str, int]:
    """Character to byte: printable Latin-1 stands for itself, the other bytes follow from U+0100 in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF: Final = MappingProxyType(_alphabet())

ALPHABET: Final = frozenset(_BYTE_OF)
"""The characters that stand for a byte."""


def bytes_of_token(token: str) -> bytes:
    """The bytes that a byte-level token stands for; a token with any other character stands for its own UTF-8."""
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token)
    return token.encode()
