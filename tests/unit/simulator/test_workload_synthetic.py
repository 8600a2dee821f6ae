import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.workload.errors import WorkloadError
from services.simulator.workload.quantiles import FRACTIONS, QuantileTable
from services.simulator.workload.requests import TracedRequest
from services.simulator.workload.seeds import Purpose, generator
from services.simulator.workload.shapes import SHAPES, shape_named
from services.simulator.workload.statistics import statistics
from services.simulator.workload.synthetic import synthetic

MEASURED = {
    "azure_conv": ((1155, 1020, 2734, 4142, 14050), (211, 129, 424, 601, 1000)),
    "azure_conv_first1000": ((1014, 999, 1380, 4096, 4145), (247, 203, 428, 585, 1000)),
    "prefill_heavy": ((2567, 2708, 3679, 3937, 4009), (297, 166, 397, 3098, 3716)),
    "decode_heavy": ((94, 22, 278, 863, 1021), (229, 216, 413, 597, 737)),
}
"""Mean, p50, p90, p99 and maximum of prompts and outputs, measured in the public files."""


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_requests_have_the_measured_statistics(name, seed):
    found = statistics(synthetic(1000, seed, shape_named(name)))
    for lengths, (mean, p50, p90, p99, maximum) in zip((found.prompt, found.output), MEASURED[name], strict=True):
        assert lengths.mean == pytest.approx(mean, rel=0.05)
        assert lengths.p50 == pytest.approx(p50, rel=0.05)
        assert lengths.p90 == pytest.approx(p90, rel=0.05)
        assert lengths.p99 == pytest.approx(p99, rel=0.05)
        assert lengths.max <= maximum


@pytest.mark.parametrize("name", MEASURED)
def test_as_many_requests_as_the_trace_come_near_its_maximum(name):
    found = statistics(synthetic(19366, 1, shape_named(name)))
    assert found.prompt.max == pytest.approx(MEASURED[name][0][4], rel=0.05)
    assert found.output.max == pytest.approx(MEASURED[name][1][4], rel=0.05)


def test_every_shape_is_measured():
    assert set(SHAPES) == set(MEASURED)


def test_the_default_is_the_azure_trace():
    workload = synthetic(10, 3)
    assert workload == synthetic(10, 3, SHAPES["azure_conv"])
    assert workload.name == "synthetic-azure_conv"
    assert "seed 3" in workload.source
    assert "Azure/AzurePublicDataset" in workload.source
    assert workload.arrivals is None


def test_the_seed_decides():
    assert synthetic(50, 1) == synthetic(50, 1)
    assert synthetic(50, 1).requests != synthetic(50, 2).requests


def test_prompts_and_outputs_are_drawn_apart():
    requests = synthetic(5000, 0).requests
    prompts, outputs = [r.prompt_tokens for r in requests], [r.output_tokens for r in requests]
    ranks = np.argsort(np.argsort([prompts, outputs], axis=1), axis=1)
    assert abs(np.corrcoef(ranks)[0, 1]) < 0.06  # four standard deviations


def test_the_order_is_random():
    prompts = [request.prompt_tokens for request in synthetic(2000, 0).requests]
    assert np.mean(prompts[:1000]) == pytest.approx(np.mean(prompts[1000:]), rel=0.2)


@given(st.integers(1, 60), st.integers(0, 2**64), st.sampled_from(sorted(SHAPES)))
def test_any_number_of_requests_stays_within_the_shape(requests, seed, name):
    shape = SHAPES[name]
    for request in synthetic(requests, seed, shape).requests:
        assert isinstance(request, TracedRequest)
        assert shape.prompt.tokens[0] <= request.prompt_tokens <= shape.prompt.tokens[-1]
        assert shape.output.tokens[0] <= request.output_tokens <= shape.output.tokens[-1]


@given(st.integers(2, 50), st.integers(0, 1000))
def test_each_stratum_is_drawn_from_once(requests, seed):
    table = SHAPES["azure_conv"].prompt
    edges = table.at(np.arange(requests + 1) / requests)
    lengths = sorted(request.prompt_tokens for request in synthetic(requests, seed).requests)
    for low, length, high in zip(edges[:-1], lengths, edges[1:], strict=True):
        assert low <= length <= high


def test_what_cannot_be_drawn():
    with pytest.raises(WorkloadError, match="requests is 0"):
        synthetic(0, 1)
    with pytest.raises(WorkloadError, match="seed is -1"):
        synthetic(1, -1)
    with pytest.raises(WorkloadError, match=r"'nope'; there are azure_conv, .*decode_heavy"):
        shape_named("nope")


# ---------------------------------------------------------------- quantiles


def table(*tokens: int) -> QuantileTable:
    return QuantileTable(tokens + (tokens[-1],) * (len(FRACTIONS) - len(tokens)))


def test_quantiles_are_met_and_geometric_between():
    quantiles = table(1, 100, 10_000)
    assert quantiles.at(np.array([0, 0.005, 0.01, 0.03, 0.05, 1])).tolist() == [1, 10, 100, 1000, 10_000, 10_000]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.sampled_from(sorted(SHAPES)))
def test_quantiles_never_fall(fractions, name):
    lengths = SHAPES[name].output.at(np.sort(np.array(fractions)))
    assert (np.diff(lengths) >= 0).all()


def test_quantiles_that_are_none():
    with pytest.raises(WorkloadError, match="must not fall"):
        table(5, 4)
    with pytest.raises(WorkloadError, match="1 token or more"):
        table(0, 4)
    with pytest.raises(WorkloadError, match="2 quantiles"):
        QuantileTable((1, 2))


# ---------------------------------------------------------------- seeds


def test_purposes_do_not_follow_each_other():
    lengths, arrivals = (generator(7, purpose).random(2000) for purpose in Purpose)
    assert abs(np.corrcoef(lengths, arrivals)[0, 1]) < 0.1
