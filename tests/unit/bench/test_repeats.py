import pytest

from services.bench.repeats import Measured, interleave


def test_a_measured_quantity_is_its_median_with_its_extremes():
    assert Measured.of([5.0, 1.0, 2.0]).columns("x_s") == {"x_s": 2.0, "x_s_min": 1.0, "x_s_max": 5.0}


def test_ratios_are_taken_round_by_round():
    # The ratio of the medians would be 4 / 2.
    assert Measured.of([4.0, 1.0, 9.0]).over(Measured.of([2.0, 1.0, 3.0])).values == (2.0, 1.0, 3.0)


def test_ratios_need_the_same_rounds():
    with pytest.raises(ValueError, match="shorter"):
        Measured.of([1.0, 2.0]).over(Measured.of([1.0]))


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="at least one round"):
        Measured.of([])


async def test_every_variant_runs_in_every_round_and_the_first_only_warms_up():
    order: list[str] = []
    steps: list[str] = []

    async def run(name: str) -> int:
        order.append(name)
        return len(order)

    variants = {name: (lambda name=name: run(name)) for name in "abc"}
    samples = await interleave(variants, 2, steps.append)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert steps == order
    assert samples == {"a": (6, 8), "b": (4, 9), "c": (5, 7)}
