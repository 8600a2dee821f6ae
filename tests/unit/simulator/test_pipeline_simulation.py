"""A pipeline as an instance of a simulated cluster: the loop, the gateway's life cycle and the report take it so."""

import msgspec
import pytest

from common.messages.control import Role
from services.scheduling.policies.weighted import WeightedPolicy
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.engine.events import SimulationError
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.memory import kv_capacity_tokens
from services.simulator.hardware.models import find_model
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.links import LinkSpec
from services.simulator.pipeline.split import DevicePair, filled_step, pipelined_instance, split_layers
from services.simulator.runs.report import Report
from services.simulator.simulate import simulate
from services.simulator.workload.arrivals import all_at_once, poisson
from services.simulator.workload.requests import TracedRequest, Workload

CATALOGUE = load_catalogue()
A100, A10 = CATALOGUE.device("A100 80GB SXM"), CATALOGUE.device("A10")
MODEL = find_model("LLaMA3-8B")
LINK = LinkSpec(12.5e9)
WORKLOAD = Workload(
    name="mixed",
    source="made up",
    requests=tuple(TracedRequest(0.0, 100 + 317 * key % 1900, 20 + 71 * key % 200) for key in range(300)),
    arrivals=None,
)


def cluster(*instances: SimulatedInstance) -> Cluster:
    return Cluster(
        instances=instances,
        layers=MODEL.layers,
        kv_bytes_per_token=MODEL.kv_bytes_per_token("bfloat16"),
        link=LINK,
    )


def pair_instance(pair: DevicePair, **changes: object) -> SimulatedInstance:
    split = split_layers(pair, MODEL, "bfloat16", filled_step(512, 1050, 120))
    made = pipelined_instance("pp", pair, MODEL, "bfloat16", split, LINK, budget=512)
    return msgspec.structs.replace(made, **changes)


def single(name: str = "d") -> SimulatedInstance:
    return SimulatedInstance(
        name=name,
        role=Role.DECODE,
        timer=RooflineTimer(A100, MODEL, "bfloat16"),
        kv_tokens=kv_capacity_tokens(A100, MODEL, "bfloat16"),
        budget=512,
    )


def serve(*instances: SimulatedInstance, rate: float | None = None) -> Report:
    workload = all_at_once(WORKLOAD) if rate is None else poisson(WORKLOAD, rate, 1)
    return simulate(cluster(*instances), workload, WeightedPolicy(), checked=True)


def test_every_request_is_served_whole() -> None:
    report = serve(pair_instance(DevicePair(A100, A10)))
    (use,) = report.instances
    assert use.requests == 300
    assert use.output_tokens == sum(request.output_tokens for request in WORKLOAD.requests)
    assert use.prompt_tokens >= sum(request.prompt_tokens for request in WORKLOAD.requests) - 300
    assert report.split_share == 0.0
    assert 0.9 < use.busy <= 1.0
    # Its answers are known only after two stages: no gap is shorter than both stages' reading of their weights.
    weights = MODEL.weight_bytes("bfloat16")
    assert report.tbt.p50 > weights / A100.bytes_per_s


def test_a_second_device_serves_more_than_the_first_alone() -> None:
    alone, both = serve(single()), serve(pair_instance(DevicePair(A100, A10)))
    assert both.throughput_rps > 1.05 * alone.throughput_rps
    # Two of a kind cannot do more than twice as much, and lose something between the stages.
    twice = serve(pair_instance(DevicePair(A100, A100)))
    assert both.throughput_rps < twice.throughput_rps < 2.0 * alone.throughput_rps


def test_the_same_arguments_give_the_same_report() -> None:
    made = pair_instance(DevicePair(A10, A100))
    assert serve(made, rate=5.0) == serve(made, rate=5.0)


def test_a_pipeline_and_a_device_share_the_requests() -> None:
    report = serve(pair_instance(DevicePair(A100, A10), weight=1.0), msgspec.structs.replace(single(), weight=2.0))
    assert [use.requests for use in report.instances] == [100, 200]


def test_little_memory_costs_preemptions_and_no_request() -> None:
    report = serve(pair_instance(DevicePair(A100, A10), kv_tokens=16_000))
    (use,) = report.instances
    assert use.preemptions > 0
    assert use.output_tokens == sum(request.output_tokens for request in WORKLOAD.requests)


def test_a_prompt_too_long_for_the_stages_is_an_error() -> None:
    with pytest.raises(SimulationError):
        serve(pair_instance(DevicePair(A100, A10), kv_tokens=1600))
