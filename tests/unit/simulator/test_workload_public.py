"""The readers and the built-in shapes against the public files, for those who have them."""

import os
from pathlib import Path

import msgspec
import pytest

from services.simulator.workload.known import KNOWN_TRACES, find_trace, read_known
from services.simulator.workload.mooncake import read_mooncake
from services.simulator.workload.requests import first
from services.simulator.workload.shapes import SHAPES
from services.simulator.workload.statistics import statistics
from services.simulator.workload.synthetic import synthetic

DATA = os.environ.get("PDMESH_DATA")

pytestmark = pytest.mark.skipif(not DATA, reason="needs the public traces: set PDMESH_DATA to their folder")

TRACE_OF_SHAPE = {
    "azure_conv": "azure_conv",
    "azure_conv_first1000": "azure_conv_first1000",
    "prefill_heavy": "arxiv",
    "decode_heavy": "sharegpt",
}


@pytest.fixture
def data() -> Path:
    return Path(DATA)


@pytest.mark.parametrize("name", KNOWN_TRACES)
def test_the_file_is_the_one_that_is_documented(data, name):
    workload = read_known(data, name)
    assert workload.source.endswith("checksum as in docs/data.md")
    assert (workload.arrivals is None) is (name in {"arxiv", "sharegpt"})


def test_the_published_statistics_of_the_azure_trace(data):
    found = statistics(read_known(data, "azure_conv"))
    assert found.num_requests == 19366
    assert [round(value) for value in msgspec.structs.astuple(found.prompt)[:4]] == [1155, 1020, 2734, 4142]
    assert [round(value) for value in msgspec.structs.astuple(found.output)[:4]] == [211, 129, 424, 601]
    assert (found.prompt.max, found.output.max) == (14050, 1000)
    assert found.requests_per_s == pytest.approx(5.5, abs=0.05)
    assert found.gap_cv == pytest.approx(1.09, abs=0.005)


def test_the_slice_is_the_first_thousand_rows(data):
    cut = read_known(data, "azure_conv_first1000")
    assert cut.requests == first(read_known(data, "azure_conv"), 1000).requests
    assert (statistics(cut).prompt.total, statistics(cut).output.total) == (1_014_189, 247_262)


def test_hashes_of_mooncake_cover_the_prompts(data):
    workload = read_mooncake(find_trace(data, "mooncake_conversation"), keep_hash_ids=True)
    assert all(len(request.hash_ids) == -(-request.prompt_tokens // 512) for request in workload.requests)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_statistics_of_its_trace(data, name):
    measured = statistics(read_known(data, TRACE_OF_SHAPE[name]))
    drawn = statistics(synthetic(measured.num_requests, 0, SHAPES[name]))
    for real, ours in ((measured.prompt, drawn.prompt), (measured.output, drawn.output)):
        for fact in ("mean", "p50", "p90", "p99"):
            assert getattr(ours, fact) == pytest.approx(getattr(real, fact), rel=0.05), fact
