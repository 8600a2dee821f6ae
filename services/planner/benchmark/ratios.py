"""How many of the instances should prefill: every division around the planned one."""

from collections.abc import Iterator, Sequence

import msgspec

from common.messages.control import Role
from services.planner.benchmark.cases import CHAT, DECODE_HEAVY, PREFILL_HEAVY, Kind, machines, plan_keys
from services.planner.benchmark.desk import Desk, Row
from services.planner.closed_forms.capacity import rate_rps
from services.planner.plan import Group, Option, Plan, Serving
from services.planner.request import Objective, PlanRequest
from services.planner.search.problem import make_plan


class Division(msgspec.Struct, frozen=True):
    """Devices, all of one price, of which some are to prefill and the others to decode."""

    prefill: Kind
    decode: Kind
    devices: int
    model: str
    shape: str

    @property
    def name(self) -> str:
        """In words."""
        kinds = dict.fromkeys((self.prefill.device, self.decode.device))
        return f"{self.devices} x {' or '.join(kinds)}"


_A100, _A800, _H20 = Kind("A100 40GB SXM", 1.0), Kind("A800 80GB SXM", 1.0), Kind("H20", 1.0)
DIVISIONS = (
    Division(_A100, _A100, 8, "LLaMA3-8B", CHAT),
    Division(_A800, _H20, 8, "LLaMA3-8B", CHAT),
    Division(_A800, _H20, 8, "LLaMA3-8B", PREFILL_HEAVY),
    Division(_A800, _H20, 8, "LLaMA3-8B", DECODE_HEAVY),
)


def ratio_rows(desk: Desk, *, quick: bool) -> Iterator[Row]:
    """A row for each division and number of prefill instances, at one device an instance, without limits."""
    for division in DIVISIONS[:1] if quick else DIVISIONS:
        of = [
            machines(kind, division.devices, 1, pool=pool)
            for pool, kind in (("p", division.prefill), ("d", division.decode))
        ]
        request = desk.request(plan_keys(division.model, of, Objective.THROUGHPUT, shape=division.shape))
        options = desk.options(request, Serving.DISAGGREGATED)
        plans = [_plan(options, prefill, division.devices) for prefill in range(1, division.devices)]
        best = max(plans, key=lambda plan: plan.rate_rps)
        for plan in plans:
            desk.on_step(f"P:D of {division.name}, {division.shape}: {plan.instances(Role.PREFILL)} prefill")
            yield _row(desk, request, division, plan, is_planned=plan is best)


def _plan(options: Sequence[Option], prefill: int, devices: int) -> Plan:
    counts = {("p", Role.PREFILL): prefill, ("d", Role.DECODE): devices - prefill}
    groups = tuple(Group(_option(options, *which), count) for which, count in counts.items())
    return make_plan(Serving.DISAGGREGATED, groups, rate_rps(Serving.DISAGGREGATED, groups))


def _option(options: Sequence[Option], pool: str, role: Role) -> Option:
    return next(each for each in options if (each.pool, each.role, each.devices) == (pool, role, 1))


def _row(desk: Desk, request: PlanRequest, division: Division, plan: Plan, *, is_planned: bool) -> Row:
    return {
        "kind": "ratio",
        "where": "simulated",
        "repeats": 1,
        "cluster": division.name,
        "prefill_device": division.prefill.device,
        "decode_device": division.decode.device,
        "model": division.model,
        "load": division.shape,
        "prefill_instances": plan.instances(Role.PREFILL),
        "decode_instances": plan.instances(Role.DECODE),
        "is_planned": is_planned,
        "closed_form_rps": plan.rate_rps,
        "simulated_rps": desk.rate_of(plan, request),
    }
