"""Interleaved repeats: variants that are to be compared run in turn, so that a machine's moods strike all alike."""

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from statistics import median
from typing import TypeVar

import msgspec

Key = TypeVar("Key", bound=Hashable)
Sample = TypeVar("Sample")

OnStep = Callable[[str], None]
"""Hears what is about to run once."""


class Measured(msgspec.Struct, frozen=True):
    """One quantity, with a value for each round."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Measured":
        """At least one."""
        return cls(tuple(values))

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("nothing was measured: at least one round is needed")

    @property
    def median(self) -> float:
        """The middle value."""
        return median(self.values)

    def over(self, other: "Measured") -> "Measured":
        """The ratio in each round; both must have the same rounds."""
        return Measured.of(mine / its for mine, its in zip(self.values, other.values, strict=True))

    def columns(self, name: str) -> dict[str, float]:
        """`name`, `name`_min and `name`_max."""
        return {name: self.median, f"{name}_min": min(self.values), f"{name}_max": max(self.values)}


async def interleave(
    variants: Mapping[Key, Callable[[], Awaitable[Sample]]], rounds: int, on_step: OnStep
) -> dict[Key, tuple[Sample, ...]]:
    """Run every variant once to warm up, and then once in each round; the samples of the rounds.

    Each round starts one variant later than the one before, so that nobody always runs after the same neighbour's
    end of a round.
    """
    samples: dict[Key, list[Sample]] = {key: [] for key in variants}
    keys = list(variants)
    for number in range(rounds + 1):
        shift = number % len(keys)
        for key in keys[shift:] + keys[:shift]:
            on_step(str(key))
            sample = await variants[key]()
            if number > 0:
                samples[key].append(sample)
    return {key: tuple(found) for key, found in samples.items()}
