"""When requests come: every function gives the same requests, in the same order, at other times.

All start at 0 s, so n requests have n - 1 gaps.  One seed at two rates gives the same gaps, stretched: rates are
compared on like streams.
"""

import math
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.simulator.workload.errors import WorkloadError
from services.simulator.workload.requests import Workload
from services.simulator.workload.seeds import Purpose, generator
from services.simulator.workload.statistics import statistics

CV_LIMITS = (0.01, 100.0)
"""Of gamma gaps: below, a fixed interval says it better; above, nearly every gap would be too small for a float."""


def all_at_once(workload: Workload) -> Workload:
    """Every request at 0 s: the offline run, for the most throughput."""
    return _arriving(workload, [0.0] * len(workload.requests), "all at once")


def fixed_interval(workload: Workload, interval_s: float) -> Workload:
    """One request every `interval_s` seconds, above 0."""
    _check_positive("interval_s", interval_s)
    times = [index * interval_s for index in range(len(workload.requests))]
    return _arriving(workload, times, f"one every {interval_s:g} s")


def poisson(workload: Workload, rate: float, seed: int) -> Workload:
    """A Poisson process of `rate` requests per second: independent exponential gaps."""
    _check_positive("rate", rate)
    gaps = _draw(workload, seed, 1.0) / rate
    return _arriving(workload, _times(gaps), f"Poisson, {rate:g} requests/s, seed {seed}")


def gamma(workload: Workload, rate: float, cv: float, seed: int) -> Workload:
    """Independent gamma gaps of mean 1 / `rate` seconds; `cv` is their standard deviation over their mean.

    Above 1 requests come in bursts, 1 is a Poisson process, towards 0 the gaps are even.  The gamma distribution's
    shape is 1 / cv², its scale cv² / rate.  Raises WorkloadError for a `cv` outside CV_LIMITS.
    """
    _check_positive("rate", rate)
    if not CV_LIMITS[0] <= cv <= CV_LIMITS[1]:
        raise WorkloadError(f"cv is {cv!r}; give one from {CV_LIMITS[0]:g} to {CV_LIMITS[1]:g}, or a fixed interval")
    gaps = _draw(workload, seed, cv) / rate
    return _arriving(workload, _times(gaps), f"gamma, {rate:g} requests/s, cv {cv:g}, seed {seed}")


def as_recorded(workload: Workload, time_scale: float = 1.0) -> Workload:
    """The times that the workload has, multiplied by `time_scale`: 0.5 is twice the rate, with the same bursts.

    Raises WorkloadError where it has none.
    """
    _check_positive("time_scale", time_scale)
    if workload.arrivals is None:
        raise WorkloadError(f"{workload.name!r} has lengths and no times; choose other arrivals, such as poisson")
    if time_scale == 1:
        return workload
    times = [request.arrival_s * time_scale for request in workload.requests]
    return _arriving(workload, times, f"{workload.arrivals}, times multiplied by {time_scale:g}")


def recorded_at(workload: Workload, rate: float) -> Workload:
    """The recorded pattern, stretched to a mean of `rate` requests per second.

    Raises WorkloadError where the workload has no times, or all are the same.
    """
    _check_positive("rate", rate)
    recorded_rate = statistics(workload).requests_per_s
    if recorded_rate is None:
        raise WorkloadError(f"all requests of {workload.name!r} come at once; there is no pattern to stretch")
    return as_recorded(workload, recorded_rate / rate)


def _draw(workload: Workload, seed: int, cv: float) -> NDArray[np.float64]:
    """Gaps of mean 1, one fewer than there are requests."""
    shape = 1 / cv**2
    return generator(seed, Purpose.ARRIVALS).standard_gamma(shape, len(workload.requests) - 1) / shape


def _times(gaps: NDArray[np.float64]) -> list[float]:
    return [0.0, *np.cumsum(gaps).tolist()]


def _arriving(workload: Workload, times: Iterable[float], arrivals: str) -> Workload:
    requests = tuple(
        msgspec.structs.replace(request, arrival_s=time) for request, time in zip(workload.requests, times, strict=True)
    )
    return msgspec.structs.replace(workload, requests=requests, arrivals=arrivals)


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise WorkloadError(f"{name} is {value!r}; give a finite number above 0")
