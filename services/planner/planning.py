"""From a request to its best plans: options, and a search for each way of serving. Pure."""

from collections.abc import Iterable, Mapping

import msgspec

from common.errors import ConfigError
from services.planner.closed_forms.options import Options, make_options
from services.planner.errors import PlanError
from services.planner.plan import Plan, Serving
from services.planner.report.plan_words import in_words, wanted_in_words
from services.planner.request import Misfit, Objective, PlanRequest
from services.planner.search.problem import Problem
from services.planner.search.pruning import Pruned
from services.planner.search.search import Found, best


class Planned(msgspec.Struct, frozen=True):
    """What closed forms say of a request."""

    options: Options
    found: Mapping[Serving, Found]
    """Of every serving that has options: what their utilisation may be differs."""
    plans: tuple[Plan, ...]
    """Of all servings, the best first; at least one."""

    @property
    def pruned(self) -> tuple[Pruned, ...]:
        """What no search needed to look at, with reasons."""
        return tuple(each for found in self.found.values() for each in found.pruned)

    def top(self, count: int) -> tuple[Plan, ...]:
        """The best, with the best of each serving among them: closed forms may err more for one than for another."""
        firsts = [found.plans[0] for found in self.found.values() if found.plans]
        chosen = {*sorted(firsts, key=self.plans.index)[:count]}
        for plan in self.plans:
            if len(chosen) >= count:
                break
            chosen.add(plan)
        return tuple(plan for plan in self.plans if plan in chosen)


def planned(request: PlanRequest, *, runnable: bool = False) -> Planned:
    """Search for the best plans; with `runnable` among those that need no ranks.

    Raises PlanError where there is none, which says what would make one.
    """
    options = make_options(_single_devices(request) if runnable else request)
    found = _search(request, options)
    plans = _ranked(found.values(), request)
    if not plans:
        raise _nothing_suits(request, options)
    return Planned(options, found, plans)


def best_plan(request: PlanRequest, *, runnable: bool = False) -> Plan | None:
    """The best by closed forms; None where none is feasible."""
    try:
        return planned(request, runnable=runnable).plans[0]
    except PlanError:
        return None


def with_wishes(request: PlanRequest, objective: Objective | None, rate_rps: float | None) -> PlanRequest:
    """`request` with another objective or rate; None: its own. Raises ConfigError where something needed is missing."""
    changed = msgspec.structs.replace(
        request,
        objective=request.objective if objective is None else objective,
        rate_rps=request.rate_rps if rate_rps is None else rate_rps,
    )
    limits = changed.limits
    if changed.objective is Objective.PRICE:
        if changed.rate_rps is None:
            raise ConfigError("objective price is the least price for a rate: give requests per second with --rate")
        unpriced = [pool.name for pool in request.pools if pool.device_price is None]
        if unpriced:
            raise ConfigError(
                f"objective price needs the price of every machine, and {', '.join(unpriced)} has none; write `price:`"
            )
    if changed.objective is Objective.GOODPUT and limits.ttft_p99_s is None and limits.tpot_p99_s is None:
        raise ConfigError(
            "objective goodput counts requests within limits, and the plan file has none; write `limits:`, or take "
            "objective throughput"
        )
    return changed


def _single_devices(request: PlanRequest) -> PlanRequest:
    """Its pools without the strategies that span several devices."""
    why = Misfit("it needs ranks: instances that span several devices cannot be run yet")
    pools = []
    for pool in request.pools:
        several = {strategy: why for strategy in pool.facts if strategy.devices > 1}
        facts = {strategy: facts for strategy, facts in pool.facts.items() if strategy not in several}
        pools.append(msgspec.structs.replace(pool, facts=facts, refused={**pool.refused, **several}))
    return msgspec.structs.replace(request, pools=tuple(pools))


def _search(request: PlanRequest, options: Options) -> dict[Serving, Found]:
    return {
        serving: best(
            Problem(
                pools={pool.name: pool.devices for pool in request.pools},
                options=options.of(serving),
                servings=(serving,),
                rate_rps=request.rate_rps if request.objective is Objective.PRICE else None,
                budget=request.budget,
            )
        )
        for serving in options.servings()
    }


def _ranked(found: Iterable[Found], request: PlanRequest) -> tuple[Plan, ...]:
    """The alternatives of every search, then all other plans that were listed."""
    # The order is that of every problem of this request, whatever its options.
    rate = request.rate_rps if request.objective is Objective.PRICE else None
    ranking = Problem(pools={}, options=(), rate_rps=rate, budget=request.budget).ranking
    searches = tuple(found)
    alternatives = sorted((plan for each in searches for plan in each.plans), key=ranking)
    others = sorted({plan for each in searches for plan in each.table} - {*alternatives}, key=ranking)
    return (*alternatives, *others)


def _nothing_suits(request: PlanRequest, options: Options) -> PlanError:
    """Options there are, but no number of instances is enough, or cheap enough."""
    free = msgspec.structs.replace(request, objective=Objective.GOODPUT)
    most = _ranked(_search(free, options).values(), free)
    wanted = f"no plan has {wanted_in_words(request)}"
    if most:
        return PlanError(
            f"{wanted}: the most is {most[0].rate_rps:.4g} requests/s, with {in_words(most[0])} ({most[0].serving}); "
            "lower the rate, raise a limit or the budget, or add machines"
        )
    return PlanError(f"{wanted}: the budget is less than any plan costs; raise it, or add cheaper machines")
