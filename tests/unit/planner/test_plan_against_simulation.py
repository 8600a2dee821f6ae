"""The closed forms against the simulator, which has the queues, the chunks and the batching rules of a live mesh."""

from pathlib import Path

import msgspec
import pytest

from common.ids import InstanceId
from common.messages.control import Role
from services.planner.options import make_options
from services.planner.plan import Option, Serving
from services.planner.plan_keys import MachineKeys
from services.planner.pools import Setting, pool_of
from services.planner.request import Limits, Objective, PlanRequest
from services.scheduling.policies import load_policy
from services.simulator.cluster import Cluster, SimulatedInstance
from services.simulator.cluster_keys import InstanceKeys
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.strategy import Strategy
from services.simulator.report import Report
from services.simulator.simulate import simulate
from services.simulator.workload.arrivals import all_at_once, poisson
from services.simulator.workload.requests import Workload
from services.simulator.workload.shapes import shape_named
from services.simulator.workload.synthetic import synthetic
from tests.unit.planner.closed_form_case import MODEL

SETTING = Setting(MODEL, load_catalogue(), Path(), None, longest=20_000)
TP1, TP2, PP2 = Strategy(), Strategy(2), Strategy(1, 2)
AGGREGATED, DISAGGREGATED = Serving.AGGREGATED, Serving.DISAGGREGATED
P, D = Role.PREFILL, Role.DECODE


def request(device: str, shape: str, requests: int, strategy: Strategy, limits: Limits = Limits()) -> PlanRequest:
    """For one machine whose instances are of `strategy`."""
    pool = pool_of(MachineKeys(name="x", device=device, devices=2), SETTING)
    return PlanRequest(
        pools=(msgspec.structs.replace(pool, facts={strategy: pool.facts[strategy]}),),
        model=MODEL,
        model_word="llama",
        workload=synthetic(requests, 1, shape_named(shape)),
        rate_rps=None,
        limits=limits,
        objective=Objective.THROUGHPUT if limits == Limits() else Objective.GOODPUT,
    )


def planned(made: PlanRequest, serving: Serving) -> tuple[float, tuple[Option, ...]]:
    """Requests per second of one instance of each role, and these."""
    options = make_options(made).of(serving)
    rates = [1 / (each.prefill_s or (each.whole_s if serving is AGGREGATED else each.decode_s)) for each in options]
    return min(rates), options


def served(made: PlanRequest, options: tuple[Option, ...], workload: Workload) -> Report:
    pool = made.pools[0]
    cluster = Cluster(
        instances=tuple(simulated(made, option) for option in options),
        layers=MODEL.spec.layers,
        kv_bytes_per_token=MODEL.token_bytes,
        link=pool.host_link,
    )
    policy = "disagg" if len(options) == 2 else "dp"
    slots = 1 + max(option.strategy.pp for option in options)
    return simulate(cluster, workload, load_policy(policy, "full"), prefill_slots=slots)


def simulated(made: PlanRequest, option: Option) -> SimulatedInstance:
    template, name = made.pools[0].template, option.role.value
    keys = InstanceKeys(
        id=InstanceId(name), role=option.role, budget=template.budget, max_batch=option.batch or template.max_batch
    )
    return made.pools[0].facts[option.strategy].instance(name, keys, option.role, None)


def steady_rps(made: PlanRequest, options: tuple[Option, ...]) -> float:
    """What the second half of the requests adds: without filling and draining."""
    half = msgspec.structs.replace(made.workload, requests=made.workload.requests[: len(made.workload.requests) // 2])
    reports = [served(made, options, all_at_once(each)) for each in (half, made.workload)]
    return (reports[1].requests - reports[0].requests) / (reports[1].makespan_s - reports[0].makespan_s)


@pytest.mark.parametrize(
    ("device", "shape", "strategy"),
    [
        ("A100 80GB SXM", "azure_conv_first1000", TP1),
        ("A100 80GB SXM", "azure_conv_first1000", PP2),
        ("A100 80GB SXM", "decode_heavy", TP2),
        ("A100 80GB SXM", "prefill_heavy", TP1),
        ("A10", "azure_conv_first1000", TP2),
        ("A10", "decode_heavy", PP2),
    ],
)
@pytest.mark.parametrize("serving", [AGGREGATED, DISAGGREGATED])
def test_the_throughput_of_one_pool_is_within_15_percent(device, shape, strategy, serving):
    made = request(device, shape, 1600, strategy)
    rate, options = planned(made, serving)
    assert rate == pytest.approx(steady_rps(made, options), rel=0.15)


def test_the_bottleneck_of_two_unlike_pools_is_the_simulated_one():
    # An A10 computes prompts, an A100 decodes; then the other way round, with too little KV at D.
    fast, slow = (request(device, "azure_conv_first1000", 1000, TP1) for device in ("A100 80GB SXM", "A10"))
    for at_p, at_d in ((slow, fast), (fast, slow)):
        found = [
            next(each for each in planned(made, DISAGGREGATED)[1] if each.role is role)
            for made, role in ((at_p, P), (at_d, D))
        ]
        cluster = Cluster(
            instances=(simulated(at_p, found[0]), simulated(at_d, found[1])),
            layers=MODEL.spec.layers,
            kv_bytes_per_token=MODEL.token_bytes,
            link=fast.pools[0].host_link,
        )
        report = simulate(cluster, all_at_once(fast.workload), load_policy("disagg", "full"))
        assert min(1 / found[0].prefill_s, 1 / found[1].decode_s) == pytest.approx(report.throughput_rps, rel=0.15)


@pytest.mark.parametrize("serving", [AGGREGATED, DISAGGREGATED])
@pytest.mark.parametrize(
    ("device", "shape", "limits"),
    [
        ("A100 80GB SXM", "azure_conv_first1000", Limits(1.5, 0.1)),
        ("A100 80GB SXM", "prefill_heavy", Limits(2.0, 0.05)),
        ("A100 80GB SXM", "decode_heavy", Limits(1.0, 0.05)),
    ],
)
def test_limits_hold_at_the_planned_rate_and_not_at_half_as_much_again(device, shape, limits, serving):
    made = request(device, shape, 1500, TP1, limits)
    rate, options = planned(made, serving)
    within, beyond = (served(made, options, poisson(made.workload, share * rate, 3)) for share in (1.0, 1.5))
    # The tail of 1,500 requests is 15 of them.
    assert within.ttft.p99 <= 1.25 * limits.ttft_p99_s
    assert within.tpot.p99 <= 1.05 * limits.tpot_p99_s
    assert beyond.ttft.p99 > limits.ttft_p99_s
