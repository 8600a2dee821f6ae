"""Who prefills and who decodes, as an outcome: swapped devices swap the roles."""

from collections.abc import Iterator, Sequence

from common.messages.control import Role
from services.planner.benchmark.cases import CHAT, Kind, machines, plan_keys
from services.planner.benchmark.desk import Desk, Row
from services.planner.plan import Option, Plan, Serving
from services.planner.request import Objective, PlanRequest

LEFT, RIGHT = "left", "right"
_MODEL = "LLaMA3-8B"
DEVICE_PAIRS = (("A800 80GB SXM", "H20"), ("H100 SXM", "H20"), ("A100 40GB SXM", "L4"), ("H100 SXM", "MI300X"))


def role_rows(desk: Desk, *, quick: bool) -> Iterator[Row]:
    """A row for each pair of devices and each order: which pool has which role in the best disaggregated plan of as
    many of each, and what it would be the other way round.
    """
    for left, right in DEVICE_PAIRS[:1] if quick else DEVICE_PAIRS:
        for devices in ((left, right), (right, left)):
            desk.on_step(f"roles: {' + '.join(devices)}")
            yield _row(desk, *devices, of=2 if quick else 8)


def _row(desk: Desk, left: str, right: str, *, of: int) -> Row:
    pools = [machines(Kind(device, 1.0), 1, of, pool=pool) for pool, device in ((LEFT, left), (RIGHT, right))]
    request = desk.request(plan_keys(_MODEL, pools, Objective.THROUGHPUT, shape=CHAT))
    options = desk.options(request, Serving.DISAGGREGATED)
    best = desk.best_with(request, Serving.DISAGGREGATED, options)
    left_prefills, right_prefills = (_one_way(desk, request, options, pool) for pool in (LEFT, RIGHT))
    return {
        "kind": "role",
        "where": "simulated",
        "repeats": 1,
        "left": left,
        "right": right,
        "model": _MODEL,
        "load": CHAT,
        "left_roles": _roles(best, LEFT),
        "right_roles": _roles(best, RIGHT),
        "closed_form_rps": None if best is None else best.rate_rps,
        **_tried(desk, request, LEFT, left_prefills),
        **_tried(desk, request, RIGHT, right_prefills),
        "prefiller": _prefiller(left_prefills, right_prefills, left, right),
    }


def _tried(desk: Desk, request: PlanRequest, pool: str, plan: Plan | None) -> Row:
    return {
        f"{pool}_prefills_closed_form_rps": None if plan is None else plan.rate_rps,
        f"{pool}_prefills_simulated_rps": None if plan is None else desk.rate_of(plan, request),
    }


def _one_way(desk: Desk, request: PlanRequest, options: Sequence[Option], prefilling: str) -> Plan | None:
    """The best plan in which one pool only prefills and the other only decodes."""
    mine = [option for option in options if (option.role is Role.PREFILL) == (option.pool == prefilling)]
    return desk.best_with(request, Serving.DISAGGREGATED, mine)


def _roles(plan: Plan | None, pool: str) -> str | None:
    """Such as `6 prefill, 2 decode`, in devices."""
    if plan is None:
        return None
    devices = dict.fromkeys(Role, 0)
    for group in plan.groups:
        if group.option.pool == pool:
            devices[group.option.role] += group.count * group.option.devices
    return ", ".join(f"{count} {role.value}" for role, count in devices.items() if count) or "idle"


def _prefiller(left_prefills: Plan | None, right_prefills: Plan | None, left: str, right: str) -> str:
    rates = [0.0 if plan is None else plan.rate_rps for plan in (left_prefills, right_prefills)]
    return left if rates[0] >= rates[1] else right
