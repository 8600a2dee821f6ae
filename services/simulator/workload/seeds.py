"""Random numbers from a seed: equal seeds give equal streams, and unlike purposes unrelated ones."""

from enum import IntEnum

import numpy as np

from services.simulator.workload.errors import WorkloadError


class Purpose(IntEnum):
    """What is drawn. Lengths and arrivals of one seed must not follow each other."""

    LENGTHS = 1
    ARRIVALS = 2


def generator(seed: int, purpose: Purpose) -> np.random.Generator:
    """A fresh generator. Raises WorkloadError for a negative seed, which numpy does not take."""
    if seed < 0:
        raise WorkloadError(f"seed is {seed!r}; give a whole number from 0")
    return np.random.default_rng([seed, int(purpose)])
