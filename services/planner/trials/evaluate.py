"""The best plans tried in the simulator, where there are queues and bursts, and put in order again. Pure."""

from collections.abc import Callable, Sequence

import msgspec

from services.planner.closed_forms.queueing import MOST_UTILISATION
from services.planner.plan import Plan
from services.planner.report.plan_words import num_devices, price_of
from services.planner.request import Limits, Objective, PlanRequest
from services.planner.trials.deployment import deployed
from services.planner.trials.plan_part import Part, part_of, whole_of
from services.planner.trials.trial_load import Trial, coming_at, trial_of
from services.simulator.engine.events import SimulationError
from services.simulator.runs.report import Report
from services.simulator.runs.sweep import Serve, max_throughput

_CLOSE = 0.02
"""Relative: rates that need not be told apart."""
_STRIDE = 0.12
"""Down from a rate that breaks the limits, the first time: closed forms are seldom further off."""


class Effort(msgspec.Struct, frozen=True):
    """How much is simulated."""

    most_requests: int = 4000
    """Of one simulation."""
    probes: int = 6
    """Rates that are tried for the largest within the limits."""
    seed: int = 0


class Evaluation(msgspec.Struct, frozen=True):
    """A plan, and what simulations of it found. Without simulations everything but the plan is None."""

    plan: Plan
    trial: Trial | None = None
    part: Part | None = None
    """What was simulated of a plan too large for the effort: the rates here are the whole's, reports are the part's."""
    steady_rps: float | None = None
    """See steady_rps."""
    offline: Report | None = None
    """Of that run."""
    largest_rps: float | None = None
    """The largest rate that was found to hold the limits; None where the objective does not ask, 0 where none did."""
    shown: Report | None = None
    """The run whose latencies are shown: at the requested rate; else at the largest within limits, or where none is, at
    the planned one; all at once where only throughput counts."""
    shown_rps: float | None = None
    """Its rate; None: all at once."""
    holds: bool | None = None
    """Whether that run is within the limits and the plan keeps pace with it; None where nothing comes at a rate."""
    problem: str | None = None
    """Why it could not be simulated."""

    @property
    def rate_rps(self) -> float | None:
        """What the objective looks at: the largest rate within limits, or the steady one."""
        return self.steady_rps if self.largest_rps is None else self.largest_rps

    @property
    def closed_over_simulated(self) -> float | None:
        """How far the closed form was from the simulation: above 1 it promised too much."""
        return self.plan.rate_rps / self.rate_rps if self.rate_rps else None


def evaluate(plan: Plan, request: PlanRequest, effort: Effort, serve: Serve) -> Evaluation:
    """Simulate one plan. Raises PlannerError where the machines cannot seat it."""
    part, trial = whole_of(plan), _trial(plan, request, effort)
    if not trial.is_enough:
        part = part_of(plan, trial.wanted / effort.most_requests)
        trial = _trial(part.plan, request, effort)
    found = Evaluation(plan, trial, part)
    try:
        return _simulated(found, part, request, effort, serve)
    except SimulationError as error:
        return msgspec.structs.replace(found, problem=str(error))


def ranked(evaluations: Sequence[Evaluation], request: PlanRequest) -> tuple[Evaluation, ...]:
    """The best first, by what was simulated; ties, and plans that were not simulated, stay in the order given."""
    return tuple(sorted(evaluations, key=lambda each: _order(each, request)))


def within(report: Report, limits: Limits) -> bool:
    """Whether the P99 of both latencies are."""
    ttft, tpot = limits.ttft_p99_s, limits.tpot_p99_s
    return (ttft is None or report.ttft.p99 <= ttft) and (tpot is None or report.tpot.p99 <= tpot)


def largest_rate(holds: Callable[[float], bool], first: float, top: float, probes: int) -> float:
    """The largest of at most `probes` rates up to `top` for which `holds`, to within 2 %; 0 where none does.

    From `first` down in growing strides until one holds; then half-way between.
    """
    low, high = 0.0, top
    rate, stride = min(first, top), _STRIDE
    for _ in range(probes):
        if holds(rate):
            low = rate
        else:
            high = rate
        if high - low <= _CLOSE * high:
            break
        rate = (low + high) / 2 if low else high * (1 - stride)
        stride = min(2 * stride, 0.5) if not low else stride
    return low


def _trial(plan: Plan, request: PlanRequest, effort: Effort) -> Trial:
    limits = Limits() if request.objective is Objective.THROUGHPUT else request.limits
    cluster = deployed(plan, request).cluster
    return trial_of(request.workload, cluster, limits, plan.rate_rps, effort.most_requests)


def _simulated(evaluation: Evaluation, part: Part, request: PlanRequest, effort: Effort, serve: Serve) -> Evaluation:
    """Simulates the part; what is filled in are the rates of the whole."""
    assert evaluation.trial is not None
    workload, system, share = evaluation.trial.workload, deployed(part.plan, request), part.share
    wanted_rps = None if request.rate_rps is None else share * request.rate_rps
    offline = max_throughput(system, workload, serve)
    # Where the places are not filled twice over first tokens come as fast as prompts are computed.
    steady = steady_rps(offline) if evaluation.trial.is_enough else offline.throughput_rps
    runs: dict[float, Report] = {}

    def holds(rate: float) -> bool:
        if rate not in runs:
            runs[rate] = serve(system, coming_at(workload, rate, effort.seed))
        return within(runs[rate], request.limits)

    shown_rps, largest = wanted_rps, None
    if request.objective is not Objective.THROUGHPUT:
        first = wanted_rps or part.plan.rate_rps
        # A plan that is always full has queues that grow for as long as requests come; a simulation soon ends.
        largest = largest_rate(holds, first, MOST_UTILISATION * steady, effort.probes)
        # Where no rate holds the limits, the first that was tried shows why.
        shown_rps = wanted_rps or largest or max(runs)
    is_held = None if shown_rps is None else holds(shown_rps) and shown_rps <= steady
    return msgspec.structs.replace(
        evaluation,
        steady_rps=steady / share,
        offline=offline,
        largest_rps=None if largest is None else largest / share,
        shown=offline if shown_rps is None else runs[shown_rps],
        shown_rps=None if shown_rps is None else shown_rps / share,
        holds=is_held,
    )


def steady_rps(offline: Report) -> float:
    """Requests per second at which the second half of those that are all there at 0 s get their first token.

    A first token comes when a place is free, so in the second half as fast as requests are served: neither the filling
    of the places nor the draining at the end counts.  At least requests over makespan, where all get theirs at once.
    """
    spread = offline.ttft
    later_s = spread.max - spread.p50
    return max(offline.throughput_rps, offline.requests / 2 / later_s) if later_s > 0 else offline.throughput_rps


def _order(evaluation: Evaluation, request: PlanRequest) -> tuple[bool, float, float]:
    if evaluation.rate_rps is None:
        return (True, 0.0, 0.0)
    if request.objective is not Objective.PRICE:
        return (False, -evaluation.rate_rps, 0.0)
    price = price_of(evaluation.plan, request)
    cost = num_devices(evaluation.plan) if price is None else price
    return (not evaluation.holds, cost, -evaluation.rate_rps)
