"""Why a plan is as it is: what limits each part of it, what could not be a part, and how far closed forms were off."""

from collections.abc import Iterable, Iterator

from common.messages.control import Role
from services.planner.closed_forms.capacity import decode_rps, prefill_rps, whole_rps
from services.planner.closed_forms.options import Options
from services.planner.plan import Group, Plan, Serving
from services.planner.planning import Planned
from services.planner.refusals import Refused
from services.planner.report.plan_words import group_in_words, in_words
from services.planner.request import PlanRequest, Pool
from services.planner.search.pruning import Pruned
from services.planner.trials.evaluate import Evaluation
from services.planner.trials.packing import seats
from services.simulator.workload.statistics import statistics


def explanation(planned: Planned, evaluations: tuple[Evaluation, ...], request: PlanRequest) -> Iterator[str]:
    """Lines for a person, about the first of `evaluations` and about what was left out."""
    chosen = evaluations[0]
    yield f"why {chosen.plan.serving}, {in_words(chosen.plan)}:"
    yield from _indented(_stages(chosen.plan))
    yield from _indented(_parts(chosen, planned.options, request))
    yield from _indented(_first_token(chosen.plan, planned.options, request))
    yield "how far closed forms and simulations were apart:"
    yield from _indented(_agreement(evaluations))
    yield "how it was searched:"
    yield from _indented(_searches(planned))
    yield "refused:"
    yield from _indented(_or_none(map(_refused, planned.options.refused)))
    yield "not looked at, without loss:"
    yield from _indented(_or_none(map(_pruned, planned.pruned)))


def _stages(plan: Plan) -> Iterator[str]:
    """Which stage bounds the rate, and what the other could do more."""
    if plan.serving is Serving.AGGREGATED:
        yield f"{plan.rate_rps:.4g} requests/s: all instances together, each serves whole requests"
        return
    prompts, answers = prefill_rps(plan.groups), decode_rps(plan.groups)
    if plan.serving is Serving.CRONUS:
        yield (
            f"{plan.rate_rps:.4g} requests/s: without P its D would do {whole_rps(plan.groups):.4g}; "
            f"P compute up to {prompts:.4g} whole prompts/s for them"
        )
        return
    first, second = ("prefill", "decode") if prompts <= answers else ("decode", "prefill")
    slack = max(prompts, answers) / min(prompts, answers) - 1
    yield (
        f"{plan.rate_rps:.4g} requests/s: P do {prompts:.4g} prompts/s and D {answers:.4g} answers/s, so that {first} "
        f"bounds the rate and {second} has {slack:.0%} to spare"
    )


def _parts(chosen: Evaluation, options: Options, request: PlanRequest) -> Iterator[str]:
    for group in chosen.plan.groups:
        found = options.assessment(chosen.plan.serving, group.option)
        used = f", may be used to {found.utilisation:.0%}" if found.utilisation < 1 else ""
        busy = _busy(chosen, group, request)
        yield (
            f"{group_in_words(group)}: limited by {found.limited_by}{used}{busy}; "
            f"costs are {_facts_words(group, request)}{_batch(group, request, found.tpot_p99_s)}"
        )


def _facts_words(group: Group, request: PlanRequest) -> str:
    facts = _pool(group, request).facts[group.option.strategy]
    return f"{facts.origin}, lines off by at most {facts.worst_fit:.0%}"


def _batch(group: Group, request: PlanRequest, tpot_p99_s: float | None) -> str:
    """How many sequences have room, and may decode at once."""
    if group.option.role is Role.PREFILL:
        return ""
    pool, lengths = _pool(group, request), statistics(request.workload)
    kv_tokens = pool.facts[group.option.strategy].kv_tokens
    room = kv_tokens / (lengths.prompt.mean + lengths.output.mean / 2)
    allowed = pool.template.max_batch if group.option.batch is None else group.option.batch
    tpot = "" if tpot_p99_s is None else f" (TPOT P99 {1e3 * tpot_p99_s:.4g} ms then)"
    return f"; KV for {kv_tokens:,} tokens, some {room:,.0f} sequences, of which {allowed:,} may be there at once{tpot}"


def _busy(chosen: Evaluation, group: Group, request: PlanRequest) -> str:
    """How much of the shown simulation its instances computed, on average."""
    if chosen.shown is None:
        return ""
    simulated = chosen.plan if chosen.part is None else chosen.part.plan
    names = {seat.name for seat in seats(simulated, request.pools) if seat.option == group.option}
    mine = [use for use in chosen.shown.instances if use.name in names]
    return f", busy {sum(use.busy for use in mine) / len(mine):.0%} in the simulation" if mine else ""


def _first_token(plan: Plan, options: Options, request: PlanRequest) -> Iterator[str]:
    """How much of TTFT passes without any load, at the worst of P and the worst of D."""
    floors = {
        role: max(
            (
                options.assessment(plan.serving, group.option).ttft_floor_s
                for group in plan.groups
                if group.option.role is role
            ),
            default=0.0,
        )
        for role in Role
    }
    floor_s, limit_s = sum(floors.values()), request.limits.ttft_p99_s
    share = (
        "" if limit_s is None else f", {floor_s / limit_s:.0%} of the limit of {limit_s:g} s; queues may take the rest"
    )
    yield f"first token without any load within {floor_s:.4g} s (P99){share}"


def _agreement(evaluations: Iterable[Evaluation]) -> Iterator[str]:
    for rank, each in enumerate(evaluations, 1):
        if each.problem is not None:
            yield f"{rank}: cannot be simulated: {each.problem}"
        elif each.trial is None:
            yield f"{rank}: not simulated"
        elif each.rate_rps is None or each.closed_over_simulated is None:
            yield f"{rank}: closed form {each.plan.rate_rps:.4g} requests/s; no rate was found to keep the limits"
        else:
            yield (
                f"{rank}: closed form {each.plan.rate_rps:.4g}, simulated {each.rate_rps:.4g} requests/s, "
                f"{each.closed_over_simulated:.2f} times as much{_part(each)}{_few(each)}"
            )


def _pool(group: Group, request: PlanRequest) -> Pool:
    return next(pool for pool in request.pools if pool.name == group.option.pool)


def _part(each: Evaluation) -> str:
    return "" if each.part is None or each.part.share == 1.0 else f"; simulated were {in_words(each.part.plan)}"


def _few(each: Evaluation) -> str:
    if each.trial is None or each.trial.is_enough:
        return ""
    return (
        f"; of only {len(each.trial.workload.requests):,} requests, where {each.trial.wanted:,} would show its steady "
        "state: raise --requests"
    )


def _searches(planned: Planned) -> Iterator[str]:
    for serving, found in planned.found.items():
        if not found.plans:
            yield f"{serving}: nothing suits"
            continue
        how = "by a mixed-integer programme" if found.searched is None else f"all {found.searched:,} combinations"
        bound = "" if found.bound is None else f"; no plan beats {found.bound:.4g}, even with parts of instances"
        yield f"{serving}: {how}, best {found.plans[0].rate_rps:.4g} requests/s{bound}"


def _refused(each: Refused) -> str:
    who = [each.pool, str(each.strategy), *([each.role.value] if each.role else [])]
    serving = f", {each.serving}" if each.serving else ""
    return f"{' '.join(who)}{serving}: {each.reason}"


def _pruned(each: Pruned) -> str:
    option = each.option
    return f"{option.pool} {option.strategy} {option.role.value}, {each.serving}: {each.reason}"


def _or_none(lines: Iterable[str]) -> Iterator[str]:
    found = list(lines)
    yield from found or ["nothing"]


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
