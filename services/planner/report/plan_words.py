"""Plans in words and figures that a person reads."""

from collections.abc import Iterator, Sequence

from common.messages.control import Role
from services.planner.plan import Group, Plan, Serving
from services.planner.request import Limits, Objective, PlanRequest, Pool
from services.simulator.workload.statistics import LengthStatistics, statistics

NEEDS_RANKS = "needs ranks"
"""What marks a plan that cannot be run yet."""


def in_words(plan: Plan) -> str:
    """Such as `2 x a100 TP2 prefill + 8 x l4 decode`; of aggregated serving without the role, which all share."""
    ordered = sorted(plan.groups, key=lambda group: group.option.role is Role.DECODE)
    return " + ".join(group_in_words(group, with_role=plan.serving is not Serving.AGGREGATED) for group in ordered)


def group_in_words(group: Group, *, with_role: bool = True) -> str:
    """Such as `2 x a100 TP2 prefill`."""
    option = group.option
    words = [str(group.count), "x", option.pool]
    if option.devices > 1:
        words.append(str(option.strategy))
    if with_role:
        words.append(option.role.value)
    return " ".join(words)


def used_pools(plan: Plan, request: PlanRequest) -> tuple[Pool, ...]:
    """The pools that have an instance of `plan`."""
    names = {group.option.pool for group in plan.groups}
    return tuple(pool for pool in request.pools if pool.name in names)


def num_devices(plan: Plan) -> int:
    """Devices that `plan` takes, over all pools."""
    return sum(group.count * group.option.devices for group in plan.groups)


def price_of(plan: Plan, request: PlanRequest) -> float | None:
    """Per hour; None where the price of a used device is not known."""
    if any(pool.device_price is None for pool in used_pools(plan, request)):
        return None
    return plan.price


def price_per_million(price: float | None, rate_rps: float, output_tokens: float) -> float | None:
    """Of a million output tokens, at `price` per hour, `rate_rps` and a mean of `output_tokens` of each request."""
    if price is None or rate_rps <= 0:
        return None
    return price / (3600 * rate_rps * output_tokens) * 1e6


def origins(plan: Plan, request: PlanRequest) -> str:
    """Where the costs of its instances come from: measured, spec, or both."""
    pools = {pool.name: pool for pool in request.pools}
    found = {pools[group.option.pool].facts[group.option.strategy].origin.value for group in plan.groups}
    return " + ".join(sorted(found))


def limits_in_words(limits: Limits) -> str:
    """Such as `TTFT P99 at most 2 s and TPOT P99 at most 50 ms`."""
    parts: Sequence[str] = [
        *([f"TTFT P99 at most {limits.ttft_p99_s:g} s"] if limits.ttft_p99_s is not None else []),
        *([f"TPOT P99 at most {1e3 * limits.tpot_p99_s:g} ms"] if limits.tpot_p99_s is not None else []),
    ]
    return " and ".join(parts) or "no limits"


def wanted_in_words(request: PlanRequest) -> str:
    """What the plans are for, as one sentence without a full stop."""
    rate = "" if request.rate_rps is None else f" at {request.rate_rps:g} requests/s"
    match request.objective:
        case Objective.THROUGHPUT:
            wanted = f"the most throughput{rate and f', looked at{rate}'}"
        case Objective.GOODPUT:
            wanted = f"the most requests/s within {limits_in_words(request.limits)}{rate and f', looked at{rate}'}"
        case Objective.PRICE:
            wanted = f"the least price{rate} within {limits_in_words(request.limits)}"
    budget = "" if request.budget is None else f", for at most {request.budget:g} per hour"
    return f"{wanted}{budget}"


def facts_lines(request: PlanRequest) -> Iterator[str]:
    """What is planned for, in words."""
    found = statistics(request.workload)
    yield f"planned, not run: {request.model.spec.name}, {request.model.dtype}, for {wanted_in_words(request)}"
    yield f"machines: {'; '.join(map(_pool, request.pools))}"
    yield (
        f"requests: {request.workload.source}; tokens, mean / P50 / P99: "
        f"prompts {_lengths(found.prompt)}, outputs {_lengths(found.output)}"
    )


def _pool(pool: Pool) -> str:
    price = "" if pool.device_price is None else f" at {pool.device_price:g} per device and hour"
    return f"{pool.name}, {pool.machines} with {pool.devices_per_machine} x {pool.device}{price}"


def _lengths(lengths: LengthStatistics) -> str:
    return " / ".join(f"{value:,.0f}" for value in (lengths.mean, lengths.p50, lengths.p99))
