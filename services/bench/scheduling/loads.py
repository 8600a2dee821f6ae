"""The simulated loads on which schedulers are compared: one bound by compute, one by memory, one with a heavy tail."""

from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.bench.scheduling.clusters import Rooms, SchedulerCluster
from services.simulator.workload.requests import TracedRequest, Workload

SEEDS = (1, 2, 3)
CLASSES = {"short": (0.65, 16), "medium": (0.25, 64), "long": (0.10, 320)}
"""Of the heavy tail: the share of the requests, and the median of their answers in tokens."""
_CLASS_SIGMA = 0.4
_HEAVY_MOST, _MEMORY_MOST = 512, 1024


class SchedulerLoad(msgspec.Struct, frozen=True):
    """Requests that are all there at 0 s."""

    name: str
    words: str
    make: Callable[[int, int], Workload]
    """(requests, seed) → the workload."""
    per_instance: tuple[int, int]
    """Requests for each instance of a pair, and of a larger cluster."""
    seeds: tuple[int, ...] = SEEDS
    max_tokens: int | None = None
    """What requests say that their answers may have at most; None: just how long each is."""
    rooms: Rooms | None = None
    is_compute_bound: bool = False
    """Whether mean(c) / min(c) can be reached: requests of one size, and memory never counts."""

    def on(self, cluster: SchedulerCluster) -> SchedulerCluster:
        """The cluster with the room for KV that this load leaves it."""
        return cluster if self.rooms is None else cluster.with_rooms(self.rooms)

    def requests(self, cluster: SchedulerCluster) -> int:
        """How many there are for a cluster."""
        count = len(cluster.instances)
        return count * self.per_instance[count > 2]


def scheduler_loads() -> tuple[SchedulerLoad, ...]:
    """All three."""
    return (
        SchedulerLoad(
            name="compute",
            words="512 + 32 tokens each",
            make=_equal,
            per_instance=(500, 500),
            seeds=SEEDS[:1],
            is_compute_bound=True,
        ),
        SchedulerLoad(
            name="memory",
            words="means 512 + 256 tokens; the fastest type holds 8192 tokens, the others 32768",
            make=_memory,
            per_instance=(2000, 1000),
            max_tokens=_MEMORY_MOST,
            rooms=lambda place, count: 8192 if 4 * place < count else 32768,
        ),
        SchedulerLoad(
            name="heavy_tail",
            words="mean 128 + 62 tokens, answers of three classes; each instance holds 4096 tokens",
            make=heavy_tailed,
            per_instance=(3000, 1000),
            max_tokens=_HEAVY_MOST,
            rooms=lambda _place, _count: 4096,
        ),
    )


def heavy_tailed(requests: int, seed: int) -> Workload:
    """Answers of CLASSES, whose coefficient of variation is 1.6; the class is the request's user."""
    draw = np.random.default_rng(seed)
    names = draw.choice(list(CLASSES), requests, p=[share for share, _ in CLASSES.values()])
    medians = np.array([CLASSES[name][1] for name in names])
    outputs = np.clip(np.round(medians * np.exp(_CLASS_SIGMA * draw.standard_normal(requests))), 1, _HEAVY_MOST)
    prompts = _lognormal(draw, requests, mean=128, sigma=0.5, most=512)
    return _workload("heavy tail", seed, prompts, outputs, names.tolist())


def _equal(requests: int, seed: int) -> Workload:  # noqa: ARG001 - nothing is drawn
    one = TracedRequest(0.0, 512, 32)
    return Workload("equal", "requests of one size", (one,) * requests, "all at once")


def _memory(requests: int, seed: int) -> Workload:
    draw = np.random.default_rng(seed)
    outputs = _lognormal(draw, requests, mean=256, sigma=0.6, most=_MEMORY_MOST)
    prompts = _lognormal(draw, requests, mean=512, sigma=0.5, most=2048)
    return _workload("memory", seed, prompts, outputs, [""] * requests)


def _lognormal(draw: np.random.Generator, count: int, *, mean: float, sigma: float, most: int) -> NDArray[np.float64]:
    values = mean * np.exp(sigma * draw.standard_normal(count) - sigma * sigma / 2)
    return np.clip(np.round(values), 1, most)


def _workload(
    name: str, seed: int, prompts: NDArray[np.float64], outputs: NDArray[np.float64], users: list[str]
) -> Workload:
    requests = tuple(
        TracedRequest(0.0, int(prompt), int(output), user=user)
        for prompt, output, user in zip(prompts, outputs, users, strict=True)
    )
    return Workload(name, f"drawn, seed {seed}", requests, "all at once")
