"""How much an instance may be used so that 99 of 100 requests get their first token in time. Pure.

Each has a function that says how likely a request is late at a utilisation; `queueing` finds the most of it.
"""

import numpy as np

from services.planner.closed_forms.chunks import chunk_latency, chunk_seconds
from services.planner.closed_forms.curves import Curve
from services.planner.closed_forms.lengths import Vector
from services.planner.closed_forms.queueing import LATE_SHARE, NEVER_WAITS, Wait, both_beyond, most_utilisation, wait_of
from services.planner.closed_forms.rates import (
    Instance,
    busy_seconds,
    decode_seconds,
    mean_busy_seconds,
    prompt_seconds,
)


def handing_seconds(instance: Instance, part: float = 1.0) -> Vector:
    """From the start of a prompt at an idle P until D has all its KV, of each of the lengths: `[n]`.

    The KV of a layer leaves while the next is computed: computing and the last layer's KV, or the first layer and all
    KV, whichever is longer; and the latency.  Of a `part` of every prompt.
    """
    tokens = part * instance.lengths.prompts.tokens
    computing = prompt_seconds(instance, tokens)
    sending = instance.link_seconds(tokens)
    layers = instance.layers
    return np.maximum(computing + sending / layers, computing / layers + sending) + instance.link_latency_s


def prefill_floor_s(instance: Instance, part: float = 1.0) -> float:
    """The P99 of `handing_seconds`: what nobody's waiting can be below."""
    return instance.lengths.prompts.p99(handing_seconds(instance, part))


def prefill_utilisation(instance: Instance, allowed_s: float | None, part: float = 1.0) -> float | None:
    """The most that a P may be used so that 99 % of the prompts are handed over in `allowed_s`; None: it cannot.

    An M/G/1 queue whose service is computing a `part` of the prompt, or sending its KV where that takes longer.
    """
    prompts = instance.lengths.prompts
    tokens = part * prompts.tokens
    sending = instance.link_seconds(tokens)
    # The stages of a pipeline wait for each other.
    computing = busy_seconds(instance, tokens)
    computing = computing * (mean_busy_seconds(instance, tokens) / prompts.average(computing))
    busy_s = max(prompts.average(computing), prompts.average(sending))
    service = np.maximum(computing, sending)
    handing = handing_seconds(instance, part)

    def holds(utilisation: float) -> bool:
        wait = _single(instance, service, utilisation / busy_s)
        return allowed_s is None or _late(instance, wait.beyond(allowed_s - handing)) <= LATE_SHARE

    return most_utilisation(holds)


def decode_floor_s(instance: Instance) -> float:
    """Of a request whose prompt was computed elsewhere, at an idle D: its first step."""
    return float(decode_seconds(instance, np.array([1.0]))[0])


def decode_utilisation(instance: Instance, curve: Curve, allowed_s: float | None) -> float | None:
    """The most that a D may be used so that 99 % of the requests make their first step in `allowed_s` of the KV's
    landing; None: it cannot.

    They wait for one of the curve's places, then for the end of the step in progress.
    """

    def holds(utilisation: float) -> bool:
        if allowed_s is None:
            return True
        batch = curve.batch_at(utilisation / curve.least_seconds)
        wait = _for_place(instance, curve, utilisation, 0.0)
        left = allowed_s - _step_s(instance, batch) * (1 + min(1.0, batch))
        return float(wait.beyond(np.array([left]))[0]) <= LATE_SHARE

    return most_utilisation(holds)


def whole_floor_s(instance: Instance) -> float:
    """The P99 of the time in which an idle D computes a prompt."""
    return instance.lengths.prompts.p99(chunk_latency(instance, np.array([0.0]))[0])


def whole_utilisation(instance: Instance, curve: Curve, allowed_s: float | None) -> float | None:
    """The most that a D that computes prompts as well may be used so that 99 % of the first tokens come in `allowed_s`;
    None: it cannot.

    They wait for one of the curve's places, for the step in progress, for the prompts before theirs (an M/G/1 queue
    whose service is the steps with its chunks), and for their own.  The oldest prompt shares the budget of a step half
    and half with those that come after it: its own steps are as many again, for the share of time that others are
    there.
    """

    def holds(utilisation: float) -> bool:
        if allowed_s is None:
            return True
        rate = utilisation / curve.least_seconds
        batch = curve.batch_at(rate)
        service = chunk_seconds(instance, np.array([batch]))[0]
        own = chunk_latency(instance, np.array([batch]))[0]
        busy = min(1.0, rate * instance.lengths.prompts.average(service))
        prompts = _single(instance, service, rate)
        place = _for_place(instance, curve, utilisation, instance.lengths.prompts.average(own))
        left = allowed_s - own * (1 + busy) - _step_s(instance, batch) * min(1.0, batch)
        return _late(instance, both_beyond(place, prompts, left)) <= LATE_SHARE

    return most_utilisation(holds)


def _single(instance: Instance, service: Vector, rate_rps: float) -> Wait:
    """The M/G/1 queue of prompts that take `service`."""
    prompts = instance.lengths.prompts
    mean = prompts.average(service)
    variation = prompts.average(service**2) / mean**2 - 1
    return wait_of(1, rate_rps * mean, mean, variation)


def _for_place(instance: Instance, curve: Curve, utilisation: float, before_s: float) -> Wait:
    """How long a request waits for a place among those that are served at once.

    A place is taken for as long as a request decodes, by Little's law the mean batch over the rate, and `before_s`.
    """
    rate = utilisation / curve.least_seconds
    taken = curve.batch_at(rate) + rate * before_s
    outputs = instance.lengths.outputs
    variation = outputs.second_moment / outputs.mean**2 - 1
    # As many are taken of the places that are there as of those that count.
    return wait_of(curve.places, taken / curve.crowd, taken / rate, variation) if rate > 0 else NEVER_WAITS


def _step_s(instance: Instance, batch: float) -> float:
    return float(decode_seconds(instance, np.array([max(1.0, batch)]))[0])


def _late(instance: Instance, chances: Vector) -> float:
    return instance.lengths.prompts.average(chances)
