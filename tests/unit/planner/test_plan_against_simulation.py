"""The closed forms against the simulator, which has the queues, the chunks and the batching rules of a live mesh."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from common.ids import InstanceId
from common.messages.control import Role
from services.planner.closed_forms.options import make_options
from services.planner.files.plan_keys import MachineKeys
from services.planner.files.pools import Setting, pool_of
from services.planner.plan import Option, Serving
from services.planner.request import Limits, Objective, PlanRequest
from services.scheduling.policies.registry import load_policy
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.cluster.keys import InstanceKeys
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.strategy import Strategy
from services.simulator.simulation import Simulation
from services.simulator.workload.arrivals import all_at_once, poisson
from services.simulator.workload.requests import Workload
from services.simulator.workload.shapes import shape_named
from services.simulator.workload.synthetic import synthetic
from tests.unit.planner.closed_form_case import MODEL

SETTING = Setting(MODEL, load_catalogue(), Path(), None, longest=20_000)
TP1, TP2, PP2 = Strategy(), Strategy(2), Strategy(1, 2)
AGGREGATED, DISAGGREGATED = Serving.AGGREGATED, Serving.DISAGGREGATED


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


def ran(options: tuple[tuple[PlanRequest, Option], ...], workload: Workload) -> Simulation:
    """One instance of each option, which are of requests for one model."""
    cluster = Cluster(
        instances=tuple(simulated(made, option) for made, option in options),
        layers=MODEL.spec.layers,
        kv_bytes_per_token=MODEL.token_bytes,
        link=options[0][0].pools[0].host_link,
    )
    policy = load_policy("disagg" if len(options) == 2 else "dp", "full")
    made = Simulation(cluster, policy, workload, prefill_slots=1 + max(option.strategy.pp for _, option in options))
    made.run()
    return made


def simulated(made: PlanRequest, option: Option) -> SimulatedInstance:
    template, name = made.pools[0].template, option.role.value
    keys = InstanceKeys(
        id=InstanceId(name), role=option.role, budget=template.budget, max_batch=option.batch or template.max_batch
    )
    return made.pools[0].facts[option.strategy].instance(name, keys, option.role, None)


def steady_rps(run: Simulation) -> float:
    """Between a third and two thirds of the requests' ends: without filling and draining."""
    ends = sorted(record.finished_at or 0.0 for record in run.records)
    third = len(ends) // 3
    return third / (ends[2 * third] - ends[third])


def p99s(run: Simulation) -> tuple[float, float]:
    """Of TTFT, and of the mean gaps of the requests."""
    firsts = [(record.first_token_at or 0.0) - record.arrived_at for record in run.records]
    gaps = [
        ((record.finished_at or 0.0) - (record.first_token_at or 0.0)) / (record.output_tokens - 1)
        for record in run.records
        if record.output_tokens > 1
    ]
    return float(np.quantile(firsts, 0.99)), float(np.quantile(gaps, 0.99))


@pytest.mark.parametrize(
    ("device", "shape", "strategy"),
    [
        ("A100 80GB SXM", "azure_conv_first1000", TP1),
        ("A100 80GB SXM", "prefill_heavy", TP2),
        ("A10", "azure_conv_first1000", PP2),
        ("A10", "decode_heavy", TP1),
    ],
)
@pytest.mark.parametrize("serving", [AGGREGATED, DISAGGREGATED])
def test_the_throughput_of_one_pool_is_within_15_percent(device, shape, strategy, serving):
    made = request(device, shape, 1200, strategy)
    rate, options = planned(made, serving)
    run = ran(tuple((made, option) for option in options), all_at_once(made.workload))
    assert rate == pytest.approx(steady_rps(run), rel=0.15)


def test_the_bottleneck_of_two_unlike_pools_is_the_simulated_one():
    # An A10 computes prompts, an A100 decodes; then the other way round, with too little KV at D.
    fast, slow = (request(device, "azure_conv_first1000", 1000, TP1) for device in ("A100 80GB SXM", "A10"))
    for at_p, at_d in ((slow, fast), (fast, slow)):
        (prefill,), (decode,) = (
            [each for each in planned(made, DISAGGREGATED)[1] if each.role is role]
            for made, role in ((at_p, Role.PREFILL), (at_d, Role.DECODE))
        )
        run = ran(((at_p, prefill), (at_d, decode)), all_at_once(fast.workload))
        assert min(1 / prefill.prefill_s, 1 / decode.decode_s) == pytest.approx(steady_rps(run), rel=0.15)


@pytest.mark.parametrize("serving", [AGGREGATED, DISAGGREGATED])
@pytest.mark.parametrize(
    ("device", "shape", "limits"),
    [
        ("A100 80GB SXM", "azure_conv_first1000", Limits(1.5, 0.1)),
        ("A100 80GB SXM", "decode_heavy", Limits(1.0, 0.05)),
    ],
)
def test_limits_hold_at_the_planned_rate_and_not_at_half_as_much_again(device, shape, limits, serving):
    made = request(device, shape, 1200, TP1, limits)
    rate, options = planned(made, serving)
    within, beyond = (
        p99s(ran(tuple((made, option) for option in options), poisson(made.workload, share * rate, 3)))
        for share in (1.0, 1.5)
    )
    # The tail of 1,200 requests is 12 of them.
    assert within[0] <= 1.25 * limits.ttft_p99_s
    assert within[1] <= 1.05 * limits.tpot_p99_s
    assert beyond[0] > limits.ttft_p99_s
