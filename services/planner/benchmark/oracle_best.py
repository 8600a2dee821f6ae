"""The planner's own answer to what aiconfigurator is asked last: the most throughput of one instance."""

import msgspec

from common.messages.control import Role
from services.planner.benchmark.cases import Kind, machines, plan_keys
from services.planner.benchmark.desk import Desk
from services.planner.checks.oracle import OUTPUT, PROMPT, Machine, Served
from services.planner.closed_forms.capacity import rate_rps
from services.planner.files.plan_keys import LengthKeys, WorkloadKeys
from services.planner.plan import Group, Serving
from services.planner.request import Objective
from services.planner.search.problem import make_plan
from services.simulator.hardware.strategy import Strategy


def best_tokens_per_s(desk: Desk, machine: Machine) -> Served:
    """Of one instance that serves whole requests, all alike, by closed form and simulated, for each of its devices."""
    alike = WorkloadKeys(prompt=LengthKeys(PROMPT), output=LengthKeys(OUTPUT))
    keys = plan_keys(machine.model, [machines(Kind(machine.device, 1.0), 1, machine.tp)], Objective.THROUGHPUT)
    request = desk.request(msgspec.structs.replace(keys, workload=alike))
    option = next(
        each
        for each in desk.options(request, Serving.AGGREGATED)
        if each.role is Role.DECODE and each.strategy == Strategy(tp=machine.tp)
    )
    groups = (Group(option, 1),)
    plan = make_plan(Serving.AGGREGATED, groups, rate_rps(Serving.AGGREGATED, groups))
    simulated_rps = desk.rate_of(plan, request)
    return Served(plan.rate_rps * OUTPUT / machine.tp, simulated_rps * OUTPUT / machine.tp)
