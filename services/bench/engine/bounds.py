"""What the machine itself can do: the rate of matrix products, and how fast memory is read."""

import torch
from torch.nn.functional import linear

from common.clock import Clock
from services.bench.repeats import Measured

_SIDE = 2048
_READ_BYTES = 1 << 28


def measure_bounds(threads: int, rounds: int, clock: Clock) -> dict[str, Measured]:
    """`bf16_tflop_per_s` of a square product, and `read_gb_per_s` of memory far larger than the caches."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return _measure(rounds, clock)
    finally:
        torch.set_num_threads(before)


def _measure(rounds: int, clock: Clock) -> dict[str, Measured]:
    left, right = (torch.randn(_SIDE, _SIDE).bfloat16() for _ in range(2))
    memory = torch.zeros(_READ_BYTES // 4, dtype=torch.float32)
    tflop, gigabytes = [], []
    for number in range(rounds + 1):
        started = clock.now()
        linear(left, right)
        between = clock.now()
        memory.sum()
        ended = clock.now()
        if number > 0:
            tflop.append(2 * _SIDE**3 / (between - started) / 1e12)
            gigabytes.append(_READ_BYTES / (ended - between) / 1e9)
    return {"bf16_tflop_per_s": Measured.of(tflop), "read_gb_per_s": Measured.of(gigabytes)}
