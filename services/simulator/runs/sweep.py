"""Procedures of many runs: the most throughput, latencies over a range of rates, and the tuning of rivals. Pure."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from services.simulator.runs.report import Report
from services.simulator.runs.system import System
from services.simulator.workload.arrivals import all_at_once, fixed_interval, gamma, poisson
from services.simulator.workload.requests import Workload

Serve = Callable[[System, Workload], Report]
"""services.simulator.runs.system.serve, or one that tells somebody of it."""

SHARES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)
"""Where the search of a weight begins."""
SPLITS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_REFINEMENTS = 4
_PASSES = 3


class Trial(msgspec.Struct, frozen=True):
    """One value that was tried for a parameter, and the most throughput with it."""

    parameter: str
    value: float
    throughput_rps: float


class Tuned(msgspec.Struct, frozen=True):
    """A system with the best value found, and all that were tried."""

    system: System
    trials: tuple[Trial, ...]


def max_throughput(system: System, workload: Workload, serve: Serve) -> Report:
    """Every request is there at 0 s; `throughput_rps` is requests over the time until the last has ended."""
    return serve(system, all_at_once(workload))


def over_rates(
    system: System, workload: Workload, rates: Sequence[float], seed: int, serve: Serve, cv: float = 1.0
) -> tuple[Report, ...]:
    """The same requests at each of `rates` (per second); see arriving_at. Raises WorkloadError."""
    return tuple(serve(system, arriving_at(workload, rate, seed, cv)) for rate in rates)


def arriving_at(workload: Workload, rate: float, seed: int, cv: float = 1.0) -> Workload:
    """Arrivals at `rate` per second with gaps whose standard deviation is `cv` times their mean.

    1 is a Poisson process, 0 even gaps, any other a gamma process.  One seed gives the same gaps at every rate,
    stretched, so that rates are compared on like streams.  Raises WorkloadError for values that make no stream.
    """
    if cv == 1.0:
        return poisson(workload, rate, seed)
    if cv == 0.0 and rate > 0:
        return fixed_interval(workload, 1 / rate)
    return gamma(workload, rate, cv, seed)


def tuned(system: System, workload: Workload, serve: Serve) -> Tuned:
    """`system` with what it leaves to be found, its weights or its split; as it is where it leaves nothing."""
    if system.tunes_weights:
        return tune_weight(system, workload, serve)
    if system.tunes_split:
        return tune_split(system, workload, serve)
    return Tuned(system, ())


def tune_weight(system: System, workload: Workload, serve: Serve) -> Tuned:
    """The weights of policy dp with the most throughput, searched by `search` for the share of one entry at a time.

    With two entries there is one share to search; with more each share is searched in turn, the others keeping their
    ratios, until a pass over all gains nothing, and three times at most.
    """
    sizes = system.entry_sizes()
    total = sum(sizes.values())
    shares = {entry: size / total for entry, size in sizes.items()}
    offline = all_at_once(workload)
    trials: list[Trial] = []

    def weighted(shares: dict[str, float]) -> System:
        return system.with_weights({entry: share / sizes[entry] for entry, share in shares.items()})

    def throughput_of(shares: dict[str, float], entry: str, share: float) -> float:
        return serve(weighted(_moved(shares, entry, share)), offline).throughput_rps

    best = 0.0
    for _ in range(_PASSES if len(sizes) > 2 else len(sizes) - 1):
        before = best
        for entry in sizes if len(sizes) > 2 else [*sizes][:1]:
            found = search(partial(throughput_of, shares, entry), SHARES)
            trials += [Trial(f"share of {entry}", value, throughput) for value, throughput in found.items()]
            value = _best(found)
            if found[value] > best:
                best, shares = found[value], _moved(shares, entry, value)
        if best == before:
            break
    return Tuned(weighted(shares), tuple(trials))


def tune_split(system: System, workload: Workload, serve: Serve) -> Tuned:
    """The one share of every prompt, computed by a prefill instance under policy fixed, with the most throughput."""
    offline = all_at_once(workload)
    found = search(lambda share: serve(system.with_split(share), offline).throughput_rps, SPLITS)
    trials = tuple(Trial("split", value, throughput) for value, throughput in found.items())
    return Tuned(system.with_split(_best(found)), trials)


def search(throughput_of: Callable[[float], float], grid: Sequence[float]) -> dict[float, float]:
    """Throughput by value: of the whole `grid`, then, four times, half-way from the best to each of its neighbours.

    The grid keeps a search of something that is not quite unimodal from ending far off.  Each refinement halves the
    steps around the best: on a grid of steps of 0.1 the last is 0.006.
    """
    found = {value: throughput_of(value) for value in grid}
    for _ in range(_REFINEMENTS):
        best = _best(found)
        values = sorted(found)
        at = values.index(best)
        for neighbour in values[max(0, at - 1) : at] + values[at + 1 : at + 2]:
            middle = (best + neighbour) / 2
            found[middle] = throughput_of(middle)
    return dict(sorted(found.items()))


def _best(found: dict[float, float]) -> float:
    """The value with the most throughput, of several the smallest."""
    return max(found, key=lambda value: (found[value], -value))


def _moved(shares: dict[str, float], entry: str, share: float) -> dict[str, float]:
    """`entry` gets `share` of all; the others keep their ratios."""
    others = 1.0 - shares[entry]
    return {name: share if name == entry else its * (1.0 - share) / others for name, its in shares.items()}
