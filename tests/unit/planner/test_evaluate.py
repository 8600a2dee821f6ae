"""Plans in the simulator: what is simulated, how much, and what comes first afterwards."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_case import MODEL, aggregated, group, pairs, plan, pool, request, workload

from common.messages.control import Role
from services.planner.files.mesh_file import mesh_of
from services.planner.plan import Group, Serving
from services.planner.report.plan_words import in_words
from services.planner.request import Limits, Objective
from services.planner.trials.deployment import deployed
from services.planner.trials.evaluate import Effort, Evaluation, evaluate, largest_rate, ranked, steady_rps, within
from services.planner.trials.plan_part import part_of
from services.planner.trials.trial_load import coming_at, resized, trial_of
from services.simulator.links import LinkSpec
from services.simulator.runs.sweep import max_throughput
from services.simulator.runs.system import serve
from services.simulator.workload.arrivals import fixed_interval, poisson

EFFORT = Effort(most_requests=200)
LIMITS = Limits(ttft_p99_s=0.05, tpot_p99_s=0.01)


# ---------------------------------------------------------------- the system


def test_a_plan_becomes_its_instances():
    system = deployed(pairs(), request())
    assert [(each.name, each.role, each.max_batch, each.budget) for each in system.cluster.instances] == [
        ("a10-p0", Role.PREFILL, 8, None),
        ("l4-d0", Role.DECODE, 8, 64),
        ("l4-d1", Role.DECODE, 8, 64),
    ]
    assert system.policy == "cronus"
    assert system.name == "1 x a10 prefill + 2 x l4 decode"
    assert system.cluster.kv_bytes_per_token == MODEL.token_bytes


def test_a_plan_may_lower_the_batch():
    few = plan(Serving.AGGREGATED, Group(msgspec.structs.replace(group("a10", Role.DECODE, 1).option, batch=3), 2))
    assert [each.max_batch for each in deployed(few, request()).cluster.instances] == [3, 3]
    assert [each.max_batch for each in mesh_of(few, request()).instances] == [3, 3]


def test_the_link_is_as_slow_as_the_slowest_machine_in_use():
    pools = (
        pool("a10", host_link=LinkSpec(9e9, 1e-6)),
        pool("l4", host_link=LinkSpec(5e9, 3e-6)),
        pool("idle", host_link=LinkSpec(1e9, 1.0)),
    )
    # Four devices share the link of a machine of P.
    assert deployed(pairs(), request(*pools)).cluster.link == LinkSpec(9e9 / 4, 3e-6)
    whole = (msgspec.structs.replace(pools[0], devices_per_machine=1), *pools[1:])
    assert deployed(pairs(), request(*whole)).cluster.link == LinkSpec(5e9, 3e-6)
    assert deployed(aggregated(), request(*pools)).cluster.link == LinkSpec(9e9, 1e-6)


@pytest.mark.parametrize("serving", Serving)
def test_every_serving_can_be_simulated(serving):
    chosen = aggregated() if serving is Serving.AGGREGATED else pairs(serving)
    found = evaluate(chosen, request(), EFFORT, serve)
    assert found.problem is None
    assert found.shown is found.offline
    assert found.steady_rps == found.rate_rps
    used = [use.name for use in found.offline.instances if use.requests]
    assert len(used) == 3
    assert (found.offline.split_share > 0) == (serving is not Serving.AGGREGATED)


# ---------------------------------------------------------------- how many requests, and when


def test_as_many_requests_as_there_are_places_four_times_over():
    cluster = deployed(aggregated(3), request()).cluster
    many = trial_of(workload(), cluster, Limits(), 10.0, 4000)
    # 40 for each instance: more than 4 x 3 x 8 places.
    assert (len(many.workload.requests), many.is_enough) == (120, True)
    few = trial_of(workload(), cluster, Limits(), 10.0, 100)
    assert (len(few.workload.requests), few.is_enough) == (100, False)
    crowd = msgspec.structs.replace(
        cluster, instances=tuple(msgspec.structs.replace(each, max_batch=50) for each in cluster.instances)
    )
    assert trial_of(workload(), crowd, Limits(), 10.0, 4000).wanted == 4 * 3 * 50
    # By Little's law 100 requests/s of at most 0.5 + 10 x 0.1 s are 150 at once.
    assert trial_of(workload(), crowd, Limits(0.5, 0.1), 100.0, 4000).wanted == 4 * 150
    # An instance whose KV holds two requests has two places.
    full = msgspec.structs.replace(
        cluster, instances=tuple(msgspec.structs.replace(each, kv_tokens=210) for each in crowd.instances)
    )
    assert trial_of(workload(), full, Limits(), 10.0, 4000).wanted == 120


@given(st.integers(1, 50), st.integers(1, 200))
def test_a_workload_is_cut_or_repeated_in_order(available, wanted):
    given_ = fixed_interval(workload(available), 0.5)
    found = resized(given_, wanted).requests
    assert len(found) == wanted
    if available > 1:
        assert [each.arrival_s for each in found] == pytest.approx([0.5 * number for number in range(wanted)])


def test_a_trace_keeps_its_pattern_at_another_rate():
    even = fixed_interval(workload(9), 1.0)
    assert [each.arrival_s for each in coming_at(even, 4.0, 0).requests] == [number / 4 for number in range(9)]
    drawn, apart = poisson(workload(9), 4.0, 5), coming_at(workload(9), 4.0, 5)
    times = [each.arrival_s for each in apart.requests]
    assert times[-1] == pytest.approx(8 / 4)
    assert times[3] / times[-1] == pytest.approx(drawn.requests[3].arrival_s / drawn.requests[-1].arrival_s)
    assert coming_at(workload(1), 4.0, 5).requests == workload(1).requests


def test_of_a_plan_too_large_a_part_of_the_same_mix_is_simulated():
    large = pairs(Serving.DISAGGREGATED, prefill=2, decode=8, rate_rps=40.0)
    wanted = request(pool("a10"), pool("l4", "L4", devices=8))
    whole = evaluate(large, wanted, Effort(most_requests=4000), serve)
    assert (whole.part.share, len(whole.trial.workload.requests)) == (1.0, 400)
    half = evaluate(large, wanted, Effort(most_requests=200), serve)
    assert in_words(half.part.plan) == "1 x a10 prefill + 4 x l4 decode"
    assert (half.part.share, half.trial.is_enough, half.plan) == (0.5, True, large)
    assert half.steady_rps == pytest.approx(whole.steady_rps, rel=0.1)
    at_rate = evaluate(large, msgspec.structs.replace(wanted, rate_rps=30.0), Effort(most_requests=200), serve)
    assert at_rate.shown_rps == 30.0
    assert at_rate.shown.arrivals == "Poisson, seed 0, 15 requests/s"


def test_rounded_counts_of_a_part_are_scaled_by_what_they_do():
    part = part_of(plan(Serving.AGGREGATED, group("a10", Role.DECODE, 9), group("l4", Role.DECODE, 1)), 4)
    assert in_words(part.plan) == "2 x a10 + 1 x l4"
    assert (part.share, part.plan.rate_rps) == (pytest.approx(3 / 10), pytest.approx(3.0))


@pytest.mark.parametrize("serving", Serving)
def test_a_short_run_tells_the_rate_of_a_long_one(serving):
    chosen = aggregated() if serving is Serving.AGGREGATED else pairs(serving)
    system = deployed(chosen, request())
    mixed = workload(prompt=100, output=60), workload(prompt=400, output=20)
    lengths = [each for two in zip(*(each.requests for each in mixed), strict=True) for each in two]
    both = msgspec.structs.replace(mixed[0], requests=tuple(lengths))
    short, long = (max_throughput(system, resized(both, count), serve) for count in (120, 1500))
    assert steady_rps(short) == pytest.approx(long.throughput_rps, rel=0.1)
    assert abs(steady_rps(short) - long.throughput_rps) < abs(short.throughput_rps - long.throughput_rps)


# ---------------------------------------------------------------- rates within limits


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0.1, 100))
def test_the_largest_rate_is_found_from_both_sides(true, first, top):
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= true

    found = largest_rate(holds, first, top, 30)
    assert found <= min(true, top)
    assert found >= 0.98 * min(true, top)
    assert len(set(tried)) == len(tried)
    assert max(tried) <= top


def test_where_no_rate_holds_it_is_none():
    assert largest_rate(lambda _: False, 4.0, 8.0, 5) == 0.0


def test_goodput_is_a_rate_that_holds_the_limits_and_more_breaks_them():
    wanted = request(objective=Objective.GOODPUT, limits=LIMITS)
    found = evaluate(pairs(Serving.DISAGGREGATED, rate_rps=50.0), wanted, EFFORT, serve)
    assert found.holds
    assert found.shown_rps == found.largest_rps == found.rate_rps
    assert within(found.shown, LIMITS)
    system, trial = deployed(found.plan, wanted), found.trial.workload
    assert not within(serve(system, coming_at(trial, 1.5 * found.largest_rps, 0)), LIMITS)
    assert found.closed_over_simulated == 50.0 / found.largest_rps


def test_limits_that_no_rate_holds_are_told_with_the_latencies():
    wanted = request(objective=Objective.GOODPUT, limits=Limits(ttft_p99_s=1e-6))
    found = evaluate(pairs(), wanted, EFFORT, serve)
    assert (found.largest_rps, found.holds, found.shown_rps) == (0.0, False, 10.0)
    assert found.shown.ttft.p99 > 1e-6
    assert found.shown.arrivals == "Poisson, seed 0, 10 requests/s"
    assert found.closed_over_simulated is None


def test_a_requested_rate_is_what_is_shown():
    slow = evaluate(aggregated(), request(rate_rps=2.0), EFFORT, serve)
    assert (slow.shown_rps, slow.holds, slow.largest_rps) == (2.0, True, None)
    assert slow.shown.throughput_rps == pytest.approx(2.0, rel=0.3)
    assert slow.rate_rps == slow.steady_rps > 10
    fast = evaluate(aggregated(), request(rate_rps=100 * slow.steady_rps), EFFORT, serve)
    assert fast.holds is False


def test_equal_arguments_give_equal_figures():
    wanted = request(objective=Objective.GOODPUT, limits=LIMITS)
    assert evaluate(pairs(), wanted, EFFORT, serve) == evaluate(pairs(), wanted, EFFORT, serve)


def test_what_cannot_be_simulated_says_why():
    found = evaluate(aggregated(), request(workload=workload(prompt=10_000_000)), EFFORT, serve)
    assert "10000000" in found.problem.replace(",", "")
    assert found.rate_rps is None


# ---------------------------------------------------------------- the order


def evaluation(rate: float | None, *, count: int = 1, holds: bool | None = None) -> Evaluation:
    return Evaluation(aggregated(count), steady_rps=rate, holds=holds)


def test_the_most_simulated_throughput_comes_first_and_the_unknown_last():
    slow, fast, unknown = evaluation(1.0), evaluation(2.0), evaluation(None)
    assert ranked([unknown, slow, fast], request()) == (fast, slow, unknown)


def test_the_least_price_that_holds_comes_first():
    wanted = request(objective=Objective.PRICE, rate_rps=1.0)
    broken = evaluation(9.0, count=1, holds=False)
    cheap, cheap_and_slow, dear = (
        evaluation(3.0, count=2, holds=True),
        evaluation(2.0, count=2, holds=True),
        evaluation(9.0, count=3, holds=True),
    )
    assert ranked([broken, dear, cheap_and_slow, cheap], wanted) == (cheap, cheap_and_slow, dear, broken)


def test_plans_without_simulation_stay_as_they_came():
    plans = [Evaluation(plan(Serving.AGGREGATED, rate_rps=rate)) for rate in (3.0, 5.0, 1.0)]
    assert ranked(plans, request()) == tuple(plans)
