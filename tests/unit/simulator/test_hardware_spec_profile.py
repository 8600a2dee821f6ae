"""Profiles computed from specifications: their points are the roofline's, their costs are near them."""

import pytest

from common.costs.shape import StepShape
from common.errors import ConfigError
from services.scheduling.profiles.profile import Origin, Profile, Subject, decode_profile, encode_profile
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.memory import InfeasibleError
from services.simulator.hardware.models import find_model
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.hardware.spec_profile import spec_points, spec_profile

CATALOGUE = load_catalogue()
BUDGET = 512


def profile(device: str, model: str = "LLaMA3-8B") -> Profile:
    return spec_profile(CATALOGUE.device(device), find_model(model), "float16", BUDGET)


def test_it_says_what_it_is_about() -> None:
    made = profile("A10")
    assert made.subject == Subject(model="LLaMA3-8B", dtype="float16")
    assert made.origin is Origin.SPEC
    assert made.device == "A10"
    assert made.kv_capacity_tokens == pytest.approx(28_076, rel=0.03)
    assert set(made.fits) == {"prefill", "mixed", "decode"}
    assert decode_profile(encode_profile(made), "a file") == made


@pytest.mark.parametrize("device", ["A100 80GB SXM", "A10", "A30", "MI300X", "H100 SXM"])
@pytest.mark.parametrize("model", ["LLaMA3-8B", "Qwen2-7B"])
def test_the_costs_are_near_the_roofline(device: str, model: str) -> None:
    made = profile(device, model)
    # What a line loses on a roofline; docs/devices.md says more.
    assert made.fits["prefill"].worst_relative_residual < 0.2
    assert made.fits["mixed"].worst_relative_residual < 0.15
    assert made.fits["decode"].worst_relative_residual < 0.25
    timer = RooflineTimer(CATALOGUE.device(device), find_model(model), "float16")
    prompt = timer.step_seconds([(1014, 0)], 0, 0)
    assert made.costs.prefill.seconds(1014) == pytest.approx(prompt, rel=0.15)
    step = timer.step_seconds([(500, 1000)], 12, 12_000)
    assert made.costs.step_seconds(StepShape(500, 1000, 12, 12_000)) == pytest.approx(step, rel=0.15)


def test_a_decode_line_that_never_leaves_the_memory_bound_is_exact() -> None:
    made = profile("A10")
    timer = RooflineTimer(CATALOGUE.device("A10"), find_model("LLaMA3-8B"), "float16")
    assert made.costs.decode.seconds(10, 9_000) == pytest.approx(timer.step_seconds((), 10, 9_000), rel=1e-6)


def test_points_are_the_rooflines_fit_the_kv_and_fill_the_budget() -> None:
    timer = RooflineTimer(CATALOGUE.device("A10"), find_model("LLaMA3-8B"), "float16")
    points = list(spec_points(timer.step_seconds, BUDGET, 256, capacity=20_000))
    for point in points:
        shape = point.shape
        chunks = ((shape.chunk_tokens, shape.chunk_context),) if shape.chunk_tokens else ()
        assert point.seconds == timer.step_seconds(chunks, shape.decodes, shape.decode_context)
        assert point.seconds_min == point.seconds == point.seconds_max
        assert shape.tokens + shape.chunk_context + shape.decode_context <= 20_000
    assert len({(point.is_prefill, point.shape) for point in points}) == len(points)
    assert {point.shape.chunk_tokens for point in points if point.is_prefill} >= {128, 1024, 8192}
    mixed = [point.shape for point in points if not point.is_prefill and point.shape.chunk_tokens]
    assert {shape.tokens for shape in mixed} == {128, 256, 384, 512}
    assert any(shape.decodes == 0 for shape in mixed)
    decodes = [point.shape for point in points if not point.shape.chunk_tokens]
    assert {shape.decodes for shape in decodes} == {1, 2, 4, 8, 16, 32, 64, 128}


def test_no_more_decodes_than_the_instance_takes() -> None:
    timer = RooflineTimer(CATALOGUE.device("A100"), find_model("LLaMA3-8B"), "float16")
    assert max(point.shape.decodes for point in spec_points(timer.step_seconds, BUDGET, 16, capacity=10**6)) == 16


def test_what_cannot_be_served_has_no_profile() -> None:
    with pytest.raises(InfeasibleError, match="does not fit T4"):
        profile("T4")
    with pytest.raises(ConfigError, match="T4 cannot compute in bfloat16; give its instances dtype float16"):
        spec_profile(CATALOGUE.device("T4"), find_model("SmolLM2-135M"), "bfloat16", BUDGET)
    with pytest.raises(ConfigError, match="budget is 8 tokens"):
        spec_profile(CATALOGUE.device("A10"), find_model("LLaMA3-8B"), "float16", 8)


def test_a_small_model_and_a_small_budget() -> None:
    made = spec_profile(CATALOGUE.device("T4"), find_model("SmolLM2-135M"), "float16", 64, max_batch=16)
    assert made.costs.prefill.per_token > 0
    assert made.costs.decode.per_context > 0


def test_an_instance_of_one_sequence_has_a_profile() -> None:
    made = spec_profile(CATALOGUE.device("A10"), find_model("LLaMA3-8B"), "float16", BUDGET, max_batch=1)
    assert made.costs.decode.seconds(1, 1000) == pytest.approx(profile("A10").costs.decode.seconds(1, 1000), rel=1e-6)
