"""The search against going through everything, written as plainly as can be."""

import random
from collections.abc import Iterator
from itertools import product
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from common.messages.control import Role
from services.planner.closed_forms.capacity import ceilings, cronus_rps, rate_rps
from services.planner.plan import Group, Option, Plan, Serving
from services.planner.search.problem import Problem, uses_of
from services.planner.search.search import best
from services.simulator.hardware.strategy import Strategy

SEEDS = range(200)
"""Small random problems, each for every serving and by both ways of searching."""

_ROLES = (Role.PREFILL, Role.DECODE)
_USES = [frozenset(), frozenset({Role.PREFILL}), frozenset({Role.DECODE}), frozenset(_ROLES)]


def random_problem(seed: int, serving: Serving) -> Problem:
    """One to three pools; round figures, which make ties, in every second; all kinds of wishes."""
    source = random.Random(seed)
    is_round = seed % 2 == 0
    size = source.choice([1, 2, 2, 3])
    pools = {name: source.randint(1, [8, 4, 2][size - 1]) for name in "abc"[:size]}
    options = tuple(
        option
        for pool, role in product(pools, _ROLES)
        for tp in source.sample([1, 2, 4], source.choice([1, 2]))
        for option in [random_option(source, pool, role, tp, is_round)]
    )
    free = Problem(pools, options, (serving,))
    if seed % 3 == 0:
        return free
    budget = source.uniform(1, 12) if source.random() < 0.5 or seed % 3 == 1 else None
    wanted = source.uniform(0.2, 4) if seed % 3 == 2 else None
    return Problem(pools, options, (serving,), wanted, budget)


def random_option(source: random.Random, pool: str, role: Role, tp: int, is_round: bool) -> Option:
    def figure(least: int, most: int) -> float:
        return float(source.randint(least, most)) if is_round else source.uniform(least, most)

    price = source.choice([0.0, tp * 1.0, tp * 0.3, figure(1, 3)])
    prefill_s, decode_s = (figure(1, 5) / source.choice([1, tp]) for _ in _ROLES)
    whole_s = decode_s + source.choice([0.0, prefill_s, inf])
    if role is Role.PREFILL:
        return Option(pool, role, Strategy(tp), price, prefill_s=prefill_s)
    return Option(pool, role, Strategy(tp), price, decode_s=decode_s, whole_s=whole_s)


def everything(problem: Problem, serving: Serving) -> Iterator[Plan]:
    """Every plan that suits."""
    for parts in product(*(fillings(problem, pool) for pool in problem.pools)):
        groups = tuple(group for part in parts for group in part)
        if serving is Serving.AGGREGATED and any(group.option.whole_s == inf for group in groups):
            continue
        has_prefill = any(group.option.role is Role.PREFILL for group in groups)
        plan = Plan(serving, groups, rate_rps(serving, groups))
        if has_prefill != (serving is Serving.AGGREGATED) and problem.suits(plan):
            yield plan


def fillings(problem: Problem, pool: str) -> list[list[Group]]:
    """Whatever instances fit in a pool."""
    devices = problem.pools[pool]
    options = [option for option in problem.options if option.pool == pool]
    return [
        [Group(option, count) for option, count in zip(options, counts, strict=True) if count]
        for counts in product(*(range(devices // option.devices + 1) for option in options))
        if sum(option.devices * count for option, count in zip(options, counts, strict=True)) <= devices
    ]


@pytest.mark.parametrize("serving", Serving)
@pytest.mark.parametrize("chunk", range(4))
def test_the_best_plan_is_the_best_of_all(serving: Serving, chunk: int) -> None:
    for seed in SEEDS[chunk::4]:
        problem = random_problem(seed, serving)
        plans = list(everything(problem, serving))
        expected = min(map(problem.order, plans), default=None)
        listed, programmed = best(problem), best(problem, listed=0)
        assert len(listed.table) == len(plans), seed
        for found in (listed, programmed):
            first = problem.order(found.plans[0]) if found.plans else None
            assert first == (expected and pytest.approx(expected, rel=1e-7)), (seed, found.searched)
            if expected is not None:
                assert found.bound is not None
                bound = found.bound if problem.rate_rps is not None else -found.bound
                assert bound <= expected[0] + 1e-6, seed


@pytest.mark.parametrize("serving", Serving)
def test_every_alternative_is_the_best_of_its_kind(serving: Serving) -> None:
    for seed in range(1, 60, 2):
        problem = random_problem(seed, serving)
        plans = list(everything(problem, serving))
        for found in (best(problem), best(problem, listed=0)):
            for plan in found.plans:
                same = [each for each in plans if _uses(each, problem) == _uses(plan, problem)]
                assert problem.order(plan) == pytest.approx(min(map(problem.order, same)), rel=1e-7), seed


def test_both_ways_find_the_same_alternatives() -> None:
    for seed in range(1, 60, 2):
        problem = random_problem(seed, Serving.CRONUS)
        listed, programmed = best(problem), best(problem, listed=0)
        assert [problem.order(plan) for plan in programmed.plans] == [
            pytest.approx(problem.order(plan), rel=1e-7) for plan in listed.plans
        ], seed


def _uses(plan: Plan, problem: Problem) -> list[frozenset[Role]]:
    return [uses_of(plan, pool) for pool in problem.pools]


_SECONDS = st.floats(0.01, 100)
_COUNTS = st.integers(0, 9)
_PREFILLS = st.lists(st.tuples(_COUNTS, _SECONDS), max_size=3)
_DECODES = st.lists(st.tuples(_COUNTS, _SECONDS, st.one_of(st.just(0.0), _SECONDS)), max_size=4)


@settings(max_examples=200, deadline=None)
@given(_PREFILLS, _DECODES)
def test_cronus_rate_is_the_linear_programme_of_who_computes_what(
    prefills: list[tuple[int, float]], decodes: list[tuple[int, float, float]]
) -> None:
    groups = _groups(prefills, decodes)
    assert cronus_rps(groups) == pytest.approx(_programme(groups), rel=1e-6, abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(_PREFILLS, _DECODES, st.sampled_from(Serving))
def test_the_rate_is_the_least_of_its_ceilings(
    prefills: list[tuple[int, float]], decodes: list[tuple[int, float, float]], serving: Serving
) -> None:
    groups = _groups(prefills, decodes)
    rows = ceilings(serving, [group.option for group in groups])
    least = min(sum(each * group.count for each, group in zip(row, groups, strict=True)) for row in rows)
    assert rate_rps(serving, groups) == pytest.approx(least, rel=1e-9, abs=1e-12)


def _groups(prefills: list[tuple[int, float]], decodes: list[tuple[int, float, float]]) -> tuple[Group, ...]:
    return (
        *(Group(Option("a", Role.PREFILL, Strategy(), prefill_s=s), n) for n, s in prefills),
        *(Group(Option("a", Role.DECODE, Strategy(), decode_s=s, whole_s=s + more), n) for n, s, more in decodes),
    )


def _programme(groups: tuple[Group, ...]) -> float:
    """x requests/s of each D, of which y <= x with their prompts computed by P: as the model states it."""
    decodes = [group for group in groups if group.option.role is Role.DECODE]
    if not decodes:
        return 0.0
    size = len(decodes)
    rows, bounds = (
        [[0.0] * size + [1.0] * size],
        [sum(g.count / g.option.prefill_s for g in groups if g not in decodes)],
    )
    for index, group in enumerate(decodes):
        option = group.option
        busy, part = [0.0] * 2 * size, [0.0] * 2 * size
        busy[index], busy[size + index] = option.whole_s, option.decode_s - option.whole_s
        part[index], part[size + index] = -1.0, 1.0
        rows += [busy, part]
        bounds += [group.count, 0.0]
    return -linprog([-1.0] * size + [0.0] * size, A_ub=rows, b_ub=bounds).fun
