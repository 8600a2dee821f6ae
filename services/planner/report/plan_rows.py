"""What planning found, as the flat rows that every benchmark writes. Times are in seconds, prices per hour."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from services.planner.refusals import Refused
from services.planner.report.plan_words import in_words, num_devices, origins, price_of, price_per_million
from services.planner.request import Objective, PlanRequest
from services.planner.search.pareto import FrontPoint
from services.planner.search.pruning import Pruned
from services.planner.trials.evaluate import Evaluation
from services.simulator.workload.statistics import statistics

Row = dict[str, str | int | float | bool | None]
_ORIGIN: Row = {"where": "simulated", "repeats": 1}
"""One repeat, and no least and most: the same file always gives the same."""


def plan_row(rank: int, each: Evaluation, request: PlanRequest) -> Row:
    """The row of kind "plan". Columns of simulations are null where none were made."""
    plan, price = each.plan, price_of(each.plan, request)
    output_tokens = statistics(request.workload).output.mean
    served = _served_rps(each, request)
    return {
        "kind": "plan",
        **_ORIGIN,
        "rank": rank,
        "serving": plan.serving.value,
        "plan": in_words(plan),
        "objective": request.objective.value,
        "requested_rps": request.rate_rps,
        "limit_ttft_p99_s": request.limits.ttft_p99_s,
        "limit_tpot_p99_s": request.limits.tpot_p99_s,
        "closed_form_rps": plan.rate_rps,
        "simulated_rps": each.rate_rps,
        "closed_over_simulated": each.closed_over_simulated,
        "steady_rps": each.steady_rps,
        "offline_rps": _offline_rps(each),
        "largest_rps_within_limits": each.largest_rps,
        **_latencies(each),
        "price_per_h": price,
        "price_per_million_output_tokens": price_per_million(price, served, output_tokens),
        "devices": num_devices(plan),
        "instances": sum(group.count for group in plan.groups),
        "needs_ranks": plan.needs_ranks,
        "costs": origins(plan, request),
        "simulated_share": each.part.share if each.part else None,
        "simulated_requests": len(each.trial.workload.requests) if each.trial else None,
        "enough_requests": each.trial.is_enough if each.trial else None,
        "problem": each.problem,
    }


def group_rows(rank: int, each: Evaluation, request: PlanRequest) -> Iterator[Row]:
    """A row of kind "group" for each group of the plan."""
    pools = {pool.name: pool for pool in request.pools}
    for group in each.plan.groups:
        option = group.option
        facts = pools[option.pool].facts[option.strategy]
        yield {
            "kind": "group",
            **_ORIGIN,
            "rank": rank,
            "pool": option.pool,
            "device": pools[option.pool].device,
            "role": option.role.value,
            "tp": option.strategy.tp,
            "pp": option.strategy.pp,
            "count": group.count,
            "price_per_h": None if pools[option.pool].device_price is None else group.count * option.price,
            "kv_tokens": facts.kv_tokens,
            "costs": facts.origin.value,
        }


def front_rows(points: Sequence[FrontPoint], request: PlanRequest) -> Iterator[Row]:
    """A row of kind "front" for each point of the Pareto front."""
    for point in points:
        plan = point.plan
        yield {
            "kind": "front",
            **_ORIGIN,
            "limit": point.limit,
            "limit_ttft_p99_s": point.limits.ttft_p99_s,
            "limit_tpot_p99_s": point.limits.tpot_p99_s,
            "plan": None if plan is None else in_words(plan),
            "closed_form_rps": None if plan is None else plan.rate_rps,
            "price_per_h": None if plan is None else price_of(plan, request),
        }


def left_out_rows(refused: Iterable[Refused], pruned: Iterable[Pruned]) -> Iterator[Row]:
    """A row of kind "refused" for what is no option, and of kind "pruned" for options that no best plan needs."""
    for no in refused:
        yield {
            "kind": "refused",
            **_ORIGIN,
            "pool": no.pool,
            "tp": no.strategy.tp,
            "pp": no.strategy.pp,
            "role": None if no.role is None else no.role.value,
            "serving": None if no.serving is None else no.serving.value,
            "obstacle": no.obstacle.value,
            "reason": no.reason,
            "short_bytes": no.short_bytes,
            "floor_s": no.floor_s,
        }
    for less in pruned:
        option = less.option
        yield {
            "kind": "pruned",
            **_ORIGIN,
            "pool": option.pool,
            "tp": option.strategy.tp,
            "pp": option.strategy.pp,
            "role": option.role.value,
            "serving": less.serving.value,
            "reason": less.reason,
        }


def summary_of(evaluations: Sequence[Evaluation], request: PlanRequest) -> dict[str, float]:
    """The best plan over each other: of the rate, or of the price; and closed form over simulation of each."""
    found: dict[str, float] = {}
    best = evaluations[0]
    for rank, each in enumerate(evaluations, 1):
        if each.closed_over_simulated is not None:
            found[f"closed_over_simulated_{rank}"] = each.closed_over_simulated
        mine, its = _figure(best, request), _figure(each, request)
        if rank > 1 and mine is not None and its:
            found[f"{'price' if _is_price(request) else 'rate'}_1_over_{rank}"] = mine / its
    return found


def _is_price(request: PlanRequest) -> bool:
    return request.objective is Objective.PRICE


def _figure(each: Evaluation, request: PlanRequest) -> float | None:
    if _is_price(request):
        return price_of(each.plan, request)
    return each.plan.rate_rps if each.trial is None else each.rate_rps


def _served_rps(each: Evaluation, request: PlanRequest) -> float:
    """What is paid for: the requested rate where the price is wanted, else all that the plan gives."""
    if _is_price(request) and request.rate_rps is not None:
        return request.rate_rps
    return each.plan.rate_rps if each.rate_rps is None else each.rate_rps


def _offline_rps(each: Evaluation) -> float | None:
    """Requests over the makespan of all at once, filling and draining included."""
    if each.offline is None or each.part is None:
        return None
    return each.offline.throughput_rps / each.part.share


def _latencies(each: Evaluation) -> Row:
    """Of the run that is shown."""
    shown = each.shown
    return {
        "shown_rps": each.shown_rps,
        "arrivals": None if shown is None else shown.arrivals,
        **_spread("ttft", None if shown is None else msgspec.structs.asdict(shown.ttft)),
        **_spread("tpot", None if shown is None else msgspec.structs.asdict(shown.tpot)),
        **_spread("tbt", None if shown is None else msgspec.structs.asdict(shown.tbt)),
        "within_limits": each.holds,
    }


def _spread(name: str, values: dict[str, float] | None) -> Row:
    return {f"{name}_{which}_s": None if values is None else values[which] for which in ("p50", "p99")}
