"""What stands above a planned mesh.yaml: what it was planned for, and what to expect of it."""

from collections.abc import Iterator, Sequence

from services.planner.report.plan_words import in_words, price_of, wanted_in_words
from services.planner.request import PlanRequest
from services.planner.trials.evaluate import Evaluation


def mesh_comments(each: Evaluation, request: PlanRequest, command: str, hosts: Sequence[str]) -> Iterator[str]:
    """One line each, without the #. `hosts`: the machines that the mesh names."""
    plan, price = each.plan, price_of(each.plan, request)
    yield f"Written by: {command}"
    yield f"for {request.model.spec.name}, {wanted_in_words(request)},"
    yield f"and requests: {request.workload.source}"
    yield f"Plan: {plan.serving}, {in_words(plan)}" + ("" if price is None else f"; {price:g} per hour")
    yield f"Predicted: {plan.rate_rps:.4g} requests/s by closed form{_simulated(each)}"
    if plan.needs_ranks:
        yield "It needs ranks: instances that span several devices can be planned and simulated, but not run yet."
    if hosts:
        yield f"Machines: {', '.join(hosts)}; `pdmesh keys init --config FILE` makes the keys by which they know each"
        yield "other, and `pdmesh compose FILE` writes what each of them is to run."


def _simulated(each: Evaluation) -> str:
    if each.shown is None or each.rate_rps is None:
        return ""
    at = "all at once" if each.shown_rps is None else f"at {each.shown_rps:.4g} requests/s"
    return (
        f", {each.rate_rps:.4g} simulated; "
        f"{at} TTFT P99 {each.shown.ttft.p99:.3g} s, TPOT P99 {1e3 * each.shown.tpot.p99:.3g} ms"
    )
