"""Options of two unlike devices and of a cluster of six, for the tests of the search."""

from common.messages.control import Role
from services.planner.plan import Group, Option
from services.planner.search.problem import Problem
from services.simulator.hardware.strategy import Strategy

COMPUTE, BANDWIDTH = (0.1, 1.0), (1.0, 0.1)
"""Seconds of a prompt and of an answer: strong in compute; strong in bandwidth."""

STRATEGIES = [Strategy(tp, pp) for tp in (1, 2, 4, 8) for pp in (1, 2, 4, 8) if tp * pp <= 8]


def prefill(pool: str, seconds: float, strategy: Strategy = Strategy(), price: float = 0.0) -> Option:
    return Option(pool, Role.PREFILL, strategy, price, prefill_s=seconds)


def decode(pool: str, seconds: float, whole: float, strategy: Strategy = Strategy(), price: float = 0.0) -> Option:
    return Option(pool, Role.DECODE, strategy, price, decode_s=seconds, whole_s=whole)


def device(pool: str, seconds: tuple[float, float], price: float = 0.0) -> tuple[Option, Option]:
    """A device of these seconds, in both roles."""
    prompt, answer = seconds
    return prefill(pool, prompt, price=price), decode(pool, answer, prompt + answer, price=price)


def groups(*counts: tuple[int, Option]) -> tuple[Group, ...]:
    return tuple(Group(option, count) for count, option in counts)


def large_cluster(rate_rps: float | None = None, budget: float | None = None) -> Problem:
    """64 machines of 8 devices of six types, with every TP × PP of up to 8 devices."""
    machines = {"a100": 12, "h100": 12, "l40s": 10, "h20": 10, "910b": 10, "mi300x": 10}
    prompt_s = {"a100": 0.08, "h100": 0.03, "l40s": 0.085, "h20": 0.19, "910b": 0.11, "mi300x": 0.032}
    answer_s = {"a100": 0.115, "h100": 0.07, "l40s": 0.39, "h20": 0.061, "910b": 0.15, "mi300x": 0.05}
    price = {"a100": 1.6, "h100": 3.0, "l40s": 0.9, "h20": 1.2, "910b": 1.0, "mi300x": 2.2}
    options = []
    for rank, pool in enumerate(machines):
        for strategy in STRATEGIES:
            if pool == "l40s" and strategy.devices == 1:
                continue
            # Some devices scale better than linearly at first, as weights leave more room for sequences.
            lost = (
                1
                + 0.07 * (strategy.tp - 1) ** 0.8
                + 0.05 * (strategy.pp - 1)
                - (rank % 2) * 0.15 * (strategy.devices == 2)
            )
            cost = price[pool] * strategy.devices
            prompt = prompt_s[pool] * lost / strategy.devices
            answer = answer_s[pool] * lost**0.7 / strategy.devices
            options.append(prefill(pool, prompt, strategy, cost))
            options.append(decode(pool, answer, answer + 1.1 * prompt, strategy, cost))
    return Problem(
        {pool: 8 * count for pool, count in machines.items()}, tuple(options), rate_rps=rate_rps, budget=budget
    )
