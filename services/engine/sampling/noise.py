"""Noise for Gumbel-max sampling: a counter-based hash, so that a draw depends on its key and on nothing else.

The bits of one token's noise are `mix64(key + (token + 1) · GAMMA)`, with GAMMA and mix64 those of SplitMix64 (Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).  Integers wrap at 64 bits and are equal
on every device; only the last unit of the two logarithms may differ between devices.
"""

import torch

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 that has the bits of an unsigned 64-bit integer."""
    return value - (1 << 64) if value >> 63 else value


def _mix64(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def noise_key(seed: int, choice: int, position: int) -> int:
    """The unsigned 64-bit key of one draw. Any integers will do; each counts modulo 2^64."""
    key = 0
    for part in (seed, choice, position):
        key = _mix64((key + ((part + 1) * _GAMMA)) & _MASK)
    return key


def _shift_right(bits: torch.Tensor, by: int) -> torch.Tensor:
    # torch shifts int64 arithmetically; the mask removes the copies of the sign bit.
    return (bits >> by) & ((1 << (64 - by)) - 1)


def noise_bits(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Hash each (key, token) to 64 bits: int64 `[k]` and `[m]` to int64 `[k, m]`."""
    bits = keys[:, None] + (tokens + 1)[None, :] * _signed(_GAMMA)
    bits = (bits ^ _shift_right(bits, 30)) * _signed(_MIX_1)
    bits = (bits ^ _shift_right(bits, 27)) * _signed(_MIX_2)
    return bits ^ _shift_right(bits, 31)


def uniform_from(bits: torch.Tensor) -> torch.Tensor:
    """Map int64 bits to float64 in (0, 1), never 0 or 1, by the upper 52 of them."""
    # 52 bits and a half fill the 53 of a float64 exactly; one bit more would round the largest to 1.
    return (_shift_right(bits, 12).double() + 0.5) * 2.0**-52


def gumbel_noise(keys: list[int], tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise of `tokens` (int64 `[m]`) under each key: float64 `[len(keys), m]`, on their device."""
    signed = torch.tensor([_signed(key) for key in keys], dtype=torch.int64, device=tokens.device)
    return uniform_from(noise_bits(signed, tokens)).log_().neg_().log_().neg_()
