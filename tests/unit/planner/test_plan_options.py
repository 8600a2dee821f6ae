"""Options of hand-made pools: seconds, what is refused and why, and that looser limits never take anything away."""

import re
from math import inf
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages.control import Role
from services.planner.closed_forms.options import Options, make_options
from services.planner.closed_forms.queueing import MOST_UTILISATION
from services.planner.closed_forms.rates import Factor
from services.planner.errors import PlanError
from services.planner.plan import Serving
from services.planner.refusals import Obstacle
from services.planner.request import Limits, Misfit, Objective, PlanRequest
from services.simulator.hardware.strategy import Strategy
from services.simulator.links import LinkSpec
from tests.unit.planner.closed_form_case import COSTS, engine, facts, pool, request, seconds, workload

TP1, TP2 = Strategy(), Strategy(2)
P, D = Role.PREFILL, Role.DECODE


def within(ttft_s: float | None = None, tpot_s: float | None = None, **changes: Any) -> PlanRequest:
    return request(**({"limits": Limits(ttft_s, tpot_s), "objective": Objective.GOODPUT} | changes))


def test_throughput_has_the_seconds_of_the_closed_forms():
    found = seconds(make_options(request()))
    apart, whole = 200 * 0.066 / 20, 3 * 0.066 + 0.1 + 1476e-6 + 7 * 0.066
    assert found == {
        (Serving.AGGREGATED, "x", D): (0, pytest.approx(apart), pytest.approx(whole)),
        (Serving.DISAGGREGATED, "x", P): (pytest.approx(0.11), 0, 0),
        (Serving.DISAGGREGATED, "x", D): (0, pytest.approx(apart), inf),
        (Serving.CRONUS, "x", P): (pytest.approx(0.11), 0, 0),
        (Serving.CRONUS, "x", D): (0, pytest.approx(apart), pytest.approx(whole)),
    }


def test_throughput_counts_whatever_the_latencies():
    limits = Limits(1e-3, 1e-3)
    assert seconds(make_options(request(limits=limits))) == seconds(make_options(request()))


def test_goodput_divides_by_the_use_that_limits_allow():
    free, limited = seconds(make_options(request())), make_options(within(ttft_s=1.0))
    for each in limited.assessed:
        prefill_s, decode_s, whole_s = free[each.serving, "x", each.option.role]
        found = each.option.prefill_s, each.option.decode_s, each.option.whole_s
        assert found == pytest.approx([busy / each.utilisation for busy in (prefill_s, decode_s, whole_s)])
        assert each.limited_by is Factor.TTFT or each.utilisation == MOST_UTILISATION
    assert min(each.utilisation for each in limited.assessed) < 0.9


def test_without_any_limit_goodput_leaves_a_fiftieth_of_the_time():
    found = make_options(within())
    assert {each.utilisation for each in found.assessed} == {MOST_UTILISATION}


def test_a_tpot_limit_lowers_the_batch_and_says_so():
    found = make_options(within(tpot_s=0.042))
    (apart,) = (each for each in found.assessed if each.serving is Serving.DISAGGREGATED and each.option.role is D)
    assert (apart.option.batch, apart.batch_limited_by, apart.limited_by) == (9, Factor.TPOT, Factor.TPOT)
    assert apart.tpot_p99_s == pytest.approx(0.0407)


def test_a_budget_that_bounds_a_batch_keeps_crowds_away_where_d_computes_all_prompts():
    small = pool(template=engine(budget=120, max_batch=100), facts={TP1: facts(kv_tokens=220_000)})
    found = make_options(request(small))
    assert [each.batch for each in found.of(Serving.AGGREGATED)] == [25]
    assert {each.batch for each in found.of(Serving.CRONUS)} == {None}


def test_prices_and_strategies_come_from_the_pool():
    large = pool(device_price=1.5, devices_per_machine=2, facts={TP1: facts(), TP2: facts(COSTS.scaled(0.5), 60_000)})
    found = make_options(request(large)).of(Serving.DISAGGREGATED)
    assert [(each.role, each.strategy, each.price) for each in found] == [
        (D, TP1, 1.5),
        (D, TP2, 3.0),
        (P, TP1, 1.5),
        (P, TP2, 3.0),
    ]


def test_an_instance_has_its_share_of_the_machines_link():
    # 1000 tokens of KV take 0.5 s over the whole link, 1 s over the half of it that TP1 has of two devices.
    link = LinkSpec(1000 * 131_072 / 0.5, 0.0)
    shared = pool(devices_per_machine=2, host_link=link, facts={TP1: facts(), TP2: facts()})
    found = {each.option.strategy: each for each in make_options(request(shared)).assessed if each.option.role is P}
    assert (found[TP1].option.prefill_s, found[TP2].option.prefill_s) == (pytest.approx(1.0), pytest.approx(0.5))
    assert found[TP1].limited_by is Factor.LINK


def test_a_small_kv_may_prefill_what_it_cannot_serve():
    tight = pool("tight", facts={TP1: facts(kv_tokens=1100)})
    found = make_options(request(tight, pool("roomy")))
    assert {(each.pool, each.role) for each in found.of(Serving.DISAGGREGATED)} == {
        ("roomy", D),
        ("roomy", P),
        ("tight", P),
    }
    (refused,) = found.refused
    assert (refused.pool, refused.role, refused.obstacle) == ("tight", D, Obstacle.MEMORY)
    # 1,199 tokens are held at the end, 99 more than there are.
    assert refused.short_bytes == 99 * 131_072
    assert "1,199" in refused.reason


def test_what_a_pool_refuses_is_among_the_refused():
    misfits = {TP2: Misfit("TP2 does not divide 9 heads"), Strategy(4): Misfit("short", 5)}
    found = make_options(request(pool(refused=misfits))).refused
    assert [(each.obstacle, each.short_bytes, each.role) for each in found] == [
        (Obstacle.STRATEGY, None, None),
        (Obstacle.MEMORY, 5, None),
    ]


def test_no_memory_anywhere_names_the_nearest_device():
    pools = (
        pool("far", facts={}, refused={TP1: Misfit("far away", 9_000_000_000)}),
        pool("near", device="B1", facts={}, refused={TP1: Misfit("nearly", 2_500_000_000)}),
    )
    with pytest.raises(PlanError, match=re.escape("short everywhere, least by 2.50 GB on each B1 (near with TP1)")):
        make_options(request(*pools))


def test_a_ttft_below_the_floor_is_refused_with_the_floor():
    # Apart: 0.11 s at P and a step of 0.0223 s at D.  Whole: two chunks, 0.1405 s.
    with pytest.raises(PlanError, match=r"ttft_p99_s is 0\.1, below the floor of 0\.1323 s") as caught:
        make_options(within(ttft_s=0.1))
    assert "disaggregated" in str(caught.value)


def test_a_tpot_below_the_floor_is_refused_with_the_floor():
    with pytest.raises(PlanError, match=r"tpot_p99_s is 0\.02, below the floor of 0\.0223 s"):
        make_options(within(tpot_s=0.02))


def test_a_role_alone_is_no_option():
    # Only whole requests are too late.
    found = make_options(within(ttft_s=0.137))
    assert found.servings() == (Serving.DISAGGREGATED,)
    assert {each.obstacle for each in found.refused} == {Obstacle.TTFT}


MIXED = [(100, 20), (1000, 200), (400, 50), (3000, 400), (700, 300)]


def slower_than(found: Options, others: Options) -> list[Any]:
    """Options of `others` that `found` lacks or has with more seconds."""
    mine, theirs = seconds(found), seconds(others)
    worse = [key for key in theirs if key not in mine]
    return worse + [
        key
        for key in theirs
        if key in mine and any(a > b * (1 + 1e-4) for a, b in zip(mine[key], theirs[key], strict=True))
    ]


def options(made: PlanRequest) -> Options:
    try:
        return make_options(made)
    except PlanError:
        return Options((), ())


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 8), st.floats(0.015, 0.4), st.floats(1, 3), st.floats(1, 3))
def test_looser_limits_never_take_anything_away(ttft_s, tpot_s, looser_ttft, looser_tpot):
    tight = within(ttft_s, tpot_s, workload=workload(*MIXED))
    loose = msgspec.structs.replace(tight, limits=Limits(ttft_s * looser_ttft, tpot_s * looser_tpot))
    assert not slower_than(options(loose), options(tight))


@settings(max_examples=40, deadline=None)
@given(st.floats(1e7, 1e10), st.floats(1, 10), st.floats(0.03, 0.4) | st.none())
def test_a_faster_link_never_makes_anything_slower(bytes_per_s, faster, tpot_s):
    slow, fast = (
        within(tpot_s=tpot_s, workload=workload(*MIXED), pools=(pool(host_link=LinkSpec(rate, 0.0)),))
        for rate in (bytes_per_s, bytes_per_s * faster)
    )
    assert not slower_than(options(fast), options(slow))


@settings(max_examples=40, deadline=None)
@given(st.integers(4000, 80_000), st.integers(0, 80_000), st.floats(0.03, 0.4) | st.none())
def test_more_kv_never_makes_anything_slower(kv_tokens, more, tpot_s):
    little, much = (
        within(tpot_s=tpot_s, workload=workload(*MIXED), pools=(pool(facts={TP1: facts(kv_tokens=tokens)}),))
        for tokens in (kv_tokens, kv_tokens + more)
    )
    assert not slower_than(options(much), options(little))


@settings(max_examples=40, deadline=None)
@given(st.integers(256, 1024), st.floats(1, 3))
def test_a_larger_token_budget_costs_no_more_than_the_contexts_of_its_chunks(budget, larger):
    small, large = (
        request(pool(template=engine(budget=tokens)), workload=workload(*MIXED))
        for tokens in (budget, round(budget * larger))
    )
    (few,), (many,) = (make_options(each).of(Serving.AGGREGATED) for each in (small, large))
    assert many.whole_s <= few.whole_s * 1.01


@settings(max_examples=40, deadline=None)
@given(st.floats(1, 5), st.floats(0.1, 5) | st.none())
def test_a_slower_device_is_slower_in_every_way(slowdown, ttft_s):
    fast = within(ttft_s, workload=workload(*MIXED))
    slow = msgspec.structs.replace(fast, pools=(pool(facts={TP1: facts(COSTS.scaled(slowdown))}),))
    assert not slower_than(options(fast), options(slow))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.001, 0.5), st.floats(0.001, 0.1))
def test_where_nothing_is_left_the_floor_that_is_named_is_one(ttft_s, tpot_s):
    if (message := refusal(within(ttft_s, tpot_s))) is None:
        assert ttft_s > 0.1323
        assert tpot_s > 0.0223
    else:
        floors = [float(number) for number in re.findall(r"floor of ([\d.]+) s", message)]
        assert floors, message
        assert set(floors) <= {0.1323, 0.0223}, message


def refusal(made: PlanRequest) -> str | None:
    try:
        make_options(made)
    except PlanError as error:
        return str(error)
    return None
