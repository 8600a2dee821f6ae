"""What every table does: read a plan file, search, simulate."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from services.planner.benchmark.steady import requests_for_steady
from services.planner.closed_forms.options import make_options
from services.planner.errors import PlanError
from services.planner.files.plan_file import load_plan_file
from services.planner.files.plan_keys import PlanKeys
from services.planner.plan import Option, Plan, Serving
from services.planner.planning import Planned, planned
from services.planner.report.plan_words import in_words
from services.planner.request import Objective, PlanRequest
from services.planner.search.problem import Problem
from services.planner.search.search import best
from services.planner.trials.deployment import deployed
from services.planner.trials.evaluate import Effort, Evaluation, evaluate, ranked, steady_rps
from services.planner.trials.trial_load import resized
from services.simulator.hardware.catalogue import Catalogue
from services.simulator.runs.sweep import max_throughput
from services.simulator.runs.system import serve

Row = Mapping[str, str | int | float | bool | None]
"""Flat, as in every report of `pdmesh bench`."""

SIMULATED_PLANS = 3
"""The first so many by closed form are simulated, and the best of them taken."""


class Desk(msgspec.Struct, frozen=True, kw_only=True):
    """Plans as `pdmesh plan` does."""

    folder: Path
    """Where plan files are written, to be read as a user's are."""
    catalogue: Catalogue
    effort: Effort
    on_step: Callable[[str], None]

    def request(self, keys: PlanKeys) -> PlanRequest:
        """The request of a plan file with these keys. Raises ConfigError."""
        file = self.folder / "plan.yaml"
        # JSON is YAML.
        file.write_bytes(msgspec.json.encode(keys))
        return load_plan_file(file, self.catalogue)

    def planned(self, request: PlanRequest) -> Planned | None:
        """What a search finds; None where nothing suits."""
        try:
            return planned(request)
        except PlanError:
            return None

    def options(self, request: PlanRequest, serving: Serving) -> tuple[Option, ...]:
        """What plans of a serving can be made of."""
        return make_options(request).of(serving)

    def best_with(self, request: PlanRequest, serving: Serving, among: Sequence[Option]) -> Plan | None:
        """The best plan of a serving and of these options by closed form; None where there is none."""
        problem = Problem(
            pools={pool.name: pool.devices for pool in request.pools},
            options=tuple(among),
            servings=(serving,),
            rate_rps=request.rate_rps if request.objective is Objective.PRICE else None,
            budget=request.budget,
        )
        plans = best(problem).plans
        return plans[0] if plans else None

    def rate_of(self, plan: Plan, request: PlanRequest) -> float:
        """Requests per second of `plan` in its steady state, simulated. Raises SimulationError."""
        system = deployed(plan, request)
        wanted = min(requests_for_steady(request.workload, system.cluster), self.effort.most_requests)
        return steady_rps(max_throughput(system, resized(request.workload, wanted), serve))

    def tried(self, plan: Plan, request: PlanRequest) -> Evaluation:
        """`plan` in the simulator."""
        return evaluate(plan, request, self.effort, serve)

    def best_of(self, plans: Iterable[Plan], request: PlanRequest) -> Evaluation | None:
        """The first few of `plans` simulated: the one that is best then; None for no plans."""
        tried = [self.tried(plan, request) for plan in islice(plans, SIMULATED_PLANS)]
        return ranked(tried, request)[0] if tried else None


def plan_columns(plan: Plan | None) -> Row:
    """The plan in words and figures; nothing but None where there is none."""
    return {
        "plan": None if plan is None else in_words(plan),
        "serving": None if plan is None else plan.serving.value,
        "price_per_h": None if plan is None else plan.price,
        "closed_form_rps": None if plan is None else plan.rate_rps,
    }


def tried_columns(found: Evaluation | None) -> Row:
    """The plan, and what simulations found of it."""
    return {
        **plan_columns(None if found is None else found.plan),
        "simulated_rps": None if found is None else found.rate_rps,
        "within_limits": None if found is None else found.holds,
    }
