"""The seconds of each option of a serving, within the limits; or why it cannot keep them. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Final

import msgspec

from common.messages.control import Role
from services.planner.closed_forms.candidates import Candidate
from services.planner.closed_forms.curves import Curve, decode_curve, whole_curve
from services.planner.closed_forms.latencies import (
    decode_floor_s,
    decode_utilisation,
    prefill_floor_s,
    prefill_utilisation,
    whole_floor_s,
    whole_utilisation,
)
from services.planner.closed_forms.queueing import MOST_UTILISATION
from services.planner.closed_forms.rates import Factor, prefill_seconds
from services.planner.plan import Option, Serving
from services.planner.refusals import Obstacle, Refused
from services.planner.request import Limits, Objective, PlanRequest

_DECODE_SHARE: Final = 0.25
"""Of what a TTFT limit leaves above the least of P and of D: for waiting at D. The rest is for waiting at P. Ours."""
_CRONUS_PART: Final = 0.25
"""Of each prompt, that a P of Cronus is taken to compute. Ours: the balancer gives it shorter parts when it has more to
do."""
_CRONUS_SHARE: Final = 0.5
"""Of the TTFT limit, for that part: the balancer divides prompts so that P and D take equally long. Ours."""


class Assessed(msgspec.Struct, frozen=True):
    """An option, and what limits it."""

    serving: Serving
    option: Option
    limited_by: Factor
    utilisation: float
    """The share of its time that the limits let it be used; 1 where only throughput counts."""
    ttft_floor_s: float
    """Its part of the P99 of TTFT, without any load."""
    tpot_p99_s: float | None = None
    """D: at its largest batch."""
    batch_limited_by: Factor | None = None
    """D: what keeps this from being larger."""


class Terms(msgspec.Struct, frozen=True):
    """What options are made for."""

    limits: Limits
    is_queued: bool
    """Whether requests come by and by; else all are there at once, and nobody minds waiting."""

    @classmethod
    def of(cls, request: PlanRequest) -> "Terms":
        """Throughput counts whatever the latencies."""
        if request.objective is Objective.THROUGHPUT:
            return cls(Limits(), is_queued=False)
        return cls(request.limits, is_queued=True)

    @property
    def ttft_s(self) -> float | None:
        """The limit."""
        return self.limits.ttft_p99_s


def aggregated(decodes: Iterable[Candidate], terms: Terms) -> Iterator[Assessed | Refused]:
    """D that serve whole requests."""
    for candidate in decodes:
        instance, serving = candidate.instance, Serving.AGGREGATED
        every = whole_curve(instance)
        curve = every.within(terms.limits.tpot_p99_s)
        if curve is None:
            yield _gaps_too_long(candidate, serving, every)
            continue
        floor_s = whole_floor_s(instance)
        utilisation = whole_utilisation(instance, curve, terms.ttft_s) if terms.is_queued else 1.0
        if utilisation is None:
            yield _too_late(candidate, serving, floor_s, floor_s, terms.ttft_s)
            continue
        whole_s = curve.least_seconds / utilisation
        apart = decode_curve(instance)
        apart_s = float(apart.seconds[apart.batches <= max(1.0, curve.batches[-1])].min()) / utilisation
        # With a slow link receiving a prompt may take longer than computing it.
        found = _decode(candidate, serving, curve, utilisation, floor_s, min(apart_s, whole_s), whole_s)
        yield _without_crowd(found, candidate, curve)


def disaggregated(
    prefills: Sequence[Candidate], decodes: Sequence[Candidate], terms: Terms
) -> Iterator[Assessed | Refused]:
    """P that compute whole prompts, and D that compute none."""
    serving = Serving.DISAGGREGATED
    kept: list[tuple[Candidate, Curve]] = []
    for candidate in decodes:
        every = decode_curve(candidate.instance)
        curve = every.within(terms.limits.tpot_p99_s)
        if curve is None:
            yield _gaps_too_long(candidate, serving, every)
        else:
            kept.append((candidate, curve))
    if not kept or not prefills:
        return
    least_p = min(prefill_floor_s(each.instance) for each in prefills)
    least_d = min(decode_floor_s(each.instance) for each, _ in kept)
    at_d = at_p = None
    if terms.ttft_s is not None:
        at_d = least_d + max(0.0, _DECODE_SHARE * (terms.ttft_s - least_p - least_d))
        at_p = terms.ttft_s - at_d
    for candidate, curve in kept:
        floor_s = decode_floor_s(candidate.instance)
        utilisation = decode_utilisation(candidate.instance, curve, at_d) if terms.is_queued else 1.0
        if utilisation is None:
            yield _too_late(candidate, serving, floor_s, floor_s + least_p, at_d)
        else:
            seconds = curve.least_seconds / utilisation
            yield _decode(candidate, serving, curve, utilisation, floor_s, seconds, inf)
    for candidate in prefills:
        yield _prefill(candidate, serving, terms, at_p, beside_s=least_d)


def cronus(prefills: Iterable[Candidate], wholes: Sequence[Assessed], terms: Terms) -> Iterator[Assessed | Refused]:
    """P that compute parts of prompts, and D that do the rest: those that could serve alone (`wholes`, aggregated)."""
    serving = Serving.CRONUS
    if not wholes:
        return
    for whole in wholes:
        # What P computes needs none of its token budget, which leaves room for more.
        batch = whole.option.batch if whole.batch_limited_by is Factor.TPOT else None
        option = msgspec.structs.replace(whole.option, batch=batch)
        yield msgspec.structs.replace(whole, serving=serving, option=option)
    allowed_s = None if terms.ttft_s is None else _CRONUS_SHARE * terms.ttft_s
    for candidate in prefills:
        yield _prefill(candidate, serving, terms, allowed_s, beside_s=0.0, part=_CRONUS_PART)


def _prefill(
    candidate: Candidate,
    serving: Serving,
    terms: Terms,
    allowed_s: float | None,
    *,
    beside_s: float,
    part: float = 1.0,
) -> Assessed | Refused:
    """`beside_s`: the least of TTFT that passes elsewhere."""
    instance = candidate.instance
    floor_s = prefill_floor_s(instance, part)
    utilisation = prefill_utilisation(instance, allowed_s, part) if terms.is_queued else 1.0
    if utilisation is None:
        return _too_late(candidate, serving, floor_s, floor_s + beside_s, allowed_s)
    seconds, limited_by = prefill_seconds(instance)
    option = candidate.option(prefill_s=seconds / utilisation)
    return Assessed(serving, option, _by_queue(utilisation, limited_by), utilisation, floor_s)


def _decode(
    candidate: Candidate,
    serving: Serving,
    curve: Curve,
    utilisation: float,
    floor_s: float,
    decode_s: float,
    whole_s: float,
) -> Assessed:
    batch = curve.most if curve.limited_by is Factor.TPOT else None
    option = candidate.option(decode_s=decode_s, whole_s=whole_s, batch=batch)
    limited_by = _by_queue(utilisation, curve.limited_by)
    tpot_p99_s = float(curve.tpot_p99_s[-1])
    return Assessed(serving, option, limited_by, utilisation, floor_s, tpot_p99_s, curve.limited_by)


def _without_crowd(found: Assessed, candidate: Candidate, curve: Curve) -> Assessed:
    """With no more sequences at once than keep it busy."""
    if curve.limited_by is not Factor.BUDGET or curve.crowd >= candidate.instance.engine.max_batch:
        return found
    return msgspec.structs.replace(found, option=msgspec.structs.replace(found.option, batch=curve.crowd))


def _by_queue(utilisation: float, otherwise: Factor) -> Factor:
    return Factor.TTFT if utilisation < MOST_UTILISATION else otherwise


def _gaps_too_long(candidate: Candidate, serving: Serving, curve: Curve) -> Refused:
    floor_s, least_s = decode_floor_s(candidate.instance), float(curve.tpot_p99_s[0])
    beside = (
        "" if serving is Serving.DISAGGREGATED else f", {1e3 * least_s:.4g} ms with chunks of prompts among its steps"
    )
    reason = f"one request alone has {1e3 * floor_s:.4g} ms between its tokens{beside} (P99), more than the limit"
    return candidate.refused(Obstacle.TPOT, reason, serving=serving, floor_s=floor_s)


def _too_late(candidate: Candidate, serving: Serving, own_s: float, floor_s: float, allowed_s: float | None) -> Refused:
    what = "hands a prompt over" if candidate.role is Role.PREFILL else "makes a first token"
    part = "" if serving is Serving.AGGREGATED else ", its part of the limit"
    reason = f"it {what} in {own_s:.4g} s without any load (P99), and has {allowed_s or 0:.4g} s for it{part}"
    return candidate.refused(Obstacle.TTFT, reason, serving=serving, floor_s=floor_s)
