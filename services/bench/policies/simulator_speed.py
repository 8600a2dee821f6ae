"""How fast the simulator is: seconds of this machine for a large cluster and many requests."""

from collections.abc import Callable

import msgspec

from common.clock import Clock
from common.config.types import DType
from common.messages.control import Role
from services.bench.repeats import Measured, OnStep
from services.bench.report import Row, Where
from services.scheduling.policies.balancer import Balance
from services.scheduling.policies.cronus import CronusPolicy, CronusSettings
from services.scheduling.policies.routing import PlacementPolicy
from services.scheduling.policies.weighted import WeightedPolicy
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.models import find_model
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.hardware.spec_profile import spec_profile
from services.simulator.links import LinkSpec
from services.simulator.runs.report import Report
from services.simulator.simulate import simulate
from services.simulator.workload.arrivals import poisson
from services.simulator.workload.synthetic import synthetic

_MODEL = "LLaMA3-8B"
_DTYPE: DType = "float16"
_HIGH, _LOW = "A100 80GB SXM", "A10"
_BUDGET = 512
_SEED = 1


class SpeedCase(msgspec.Struct, frozen=True):
    """A cluster of `high` decode instances on A100s and `low` prefill instances on A10s.

    `rate` is in requests per second, about 80 % of the most that the cluster serves of the workload.
    """

    name: str
    policy: Callable[[], PlacementPolicy]
    high: int
    low: int
    rate: float


CASES = (
    SpeedCase("aggregated", WeightedPolicy, high=100, low=0, rate=500.0),
    # The paper's balance: the other one leaves P idle while nobody waits.
    SpeedCase("cronus", lambda: CronusPolicy(CronusSettings(balance=Balance.STAGES)), high=50, low=50, rate=340.0),
)


def measure_simulator_speed(
    requests: int, rounds: int, clock: Clock, on_step: OnStep, cases: tuple[SpeedCase, ...] = CASES
) -> tuple[Row, ...]:
    """A row for each case: seconds of one core for `requests` requests with lengths as in the Azure chat trace.

    100,000 requests take one or two minutes a round.
    """
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    reports: dict[str, Report] = {}
    clusters = {case.name: _cluster(case) for case in cases}
    for _ in range(rounds):
        for case in cases:
            on_step(f"simulator speed: {case.name}")
            workload = poisson(synthetic(requests, _SEED), case.rate, _SEED)
            started = clock.now()
            reports[case.name] = simulate(clusters[case.name], workload, case.policy(), policy_name=case.name)
            seconds[case.name].append(clock.now() - started)
    return tuple(_row(case, reports[case.name], Measured.of(seconds[case.name])) for case in cases)


def _cluster(case: SpeedCase) -> Cluster:
    model = find_model(_MODEL)
    high = _instances(case.high, "high", Role.DECODE, _HIGH)
    low = _instances(case.low, "low", Role.PREFILL, _LOW)
    return Cluster((*high, *low), model.layers, model.kv_bytes_per_token(_DTYPE), LinkSpec(bytes_per_s=12.5e9))


def _instances(count: int, prefix: str, role: Role, device_name: str) -> list[SimulatedInstance]:
    device, model = load_catalogue().device(device_name), find_model(_MODEL)
    profile = spec_profile(device, model, _DTYPE, _BUDGET)
    assert profile.kv_capacity_tokens is not None
    timer = RooflineTimer(device, model, _DTYPE)
    budget = _BUDGET if role is Role.DECODE else None
    return [
        SimulatedInstance(f"{prefix}{i}", role, timer, profile.kv_capacity_tokens, profile.costs, budget)
        for i in range(count)
    ]


def _row(case: SpeedCase, report: Report, seconds: Measured) -> Row:
    steps = sum(instance.steps for instance in report.instances)
    return {
        "kind": "simulator_speed",
        # The simulated cluster is made up; that so many requests of it took so long was measured.
        "where": Where.REAL,
        "repeats": len(seconds.values),
        "system": case.name,
        "instances": len(report.instances),
        "requests": report.requests,
        "steps": steps,
        "simulated_rate": case.rate,
        "simulated_s": report.makespan_s,
        "decode_busy": _mean_busy(report, Role.DECODE),
        "prefill_busy": _mean_busy(report, Role.PREFILL),
        "split_share": report.split_share,
        **seconds.columns("seconds"),
        **_rate(report.requests, seconds).columns("requests_per_s"),
        **_rate(steps, seconds).columns("steps_per_s"),
    }


def _rate(count: int, seconds: Measured) -> Measured:
    return Measured.of(count / value for value in seconds.values)


def _mean_busy(report: Report, role: Role) -> float | None:
    busy = [instance.busy for instance in report.instances if instance.role is role]
    return sum(busy) / len(busy) if busy else None
