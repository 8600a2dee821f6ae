"""How long a search takes."""

from collections.abc import Iterator

from common.clock import Clock
from services.planner.benchmark.cases import LIMITS, Kind, machines, plan_keys
from services.planner.benchmark.desk import Desk, Row
from services.planner.planning import planned
from services.planner.report.plan_words import in_words
from services.planner.request import Objective

_KINDS = (
    Kind("A100 80GB SXM", 4.0),
    Kind("H100 SXM", 6.9),
    Kind("H20", 1.5),
    Kind("L40S", 1.86),
    Kind("MI300X", 6.0),
    Kind("A10", 2.0),
)
_COUNTS = ((11, 11, 11, 11, 10, 10), (1, 1, 1, 1, 1, 1))
"""Machines of each kind: 64, and 6."""
_MODELS = ("LLaMA3-8B", "Llama2-70B")


def speed_rows(desk: Desk, clock: Clock, *, quick: bool) -> Iterator[Row]:
    """A row for each size of cluster, model and objective: seconds from the plan file's keys to the best plans."""
    for counts in _COUNTS[1:] if quick else _COUNTS:
        for model in _MODELS[:1] if quick else _MODELS:
            for objective in (Objective.THROUGHPUT, Objective.GOODPUT):
                desk.on_step(f"search: {sum(counts)} machines, {model}, {objective.value}")
                yield _row(desk, clock, counts, model, objective)


def _row(desk: Desk, clock: Clock, counts: tuple[int, ...], model: str, objective: Objective) -> Row:
    of = [machines(kind, count) for kind, count in zip(_KINDS, counts, strict=True)]
    keys = plan_keys(model, of, objective, limits=LIMITS)
    begun_s = clock.now()
    request = desk.request(keys)
    read_s = clock.now()
    found = planned(request)
    ended_s = clock.now()
    return {
        "kind": "search",
        "where": "real",
        "repeats": 1,
        "machines": sum(counts),
        "devices": 8 * sum(counts),
        "device_kinds": len(counts),
        "model": model,
        "objective": objective.value,
        "options": len(found.options.assessed),
        "pruned": sum(len(each.pruned) for each in found.found.values()),
        "is_listed": all(each.searched is not None for each in found.found.values()),
        "facts_s": read_s - begun_s,
        "search_s": ended_s - read_s,
        "best": in_words(found.plans[0]),
        "serving": found.plans[0].serving.value,
        "closed_form_rps": found.plans[0].rate_rps,
        "bound_rps": max(each.bound for each in found.found.values() if each.bound is not None),
    }
