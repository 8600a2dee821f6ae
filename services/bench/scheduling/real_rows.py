"""What policies made of a fast and a slow process, beside the ceiling that their measured rates set."""

from collections.abc import Mapping

from services.bench.repeats import Measured
from services.bench.report import Row, Where
from services.bench.scheduling.real_runs import PairServed
from services.bench.scheduling.simulated import CAPACITY, ROUND_ROBIN
from services.simulator.runs.report import Report


def pair_rows(served: PairServed, predicted: Mapping[str, Report]) -> list[Row]:
    """A row for each policy, and one for the rates. `predicted` is by policy."""
    return [_rates_row(served), *(_row(served, policy, predicted[policy]) for policy in served.run.policies)]


def pair_summary(served: PairServed) -> dict[str, float]:
    """The ceiling, the gain of each policy over round robin, and the share of the ceiling that it is.

    Gain and ceiling are medians over the rounds, less 1: `gain_over_ceiling_3.45` is that of policy capacity at a
    slowdown of 3.45, the others' have the name of the policy before it.
    """
    slowdown = f"{served.run.slowdown:g}"
    ceiling = _ceiling(served).median - 1.0
    summary = {f"ceiling_{slowdown}": ceiling}
    for policy in served.run.policies:
        if policy != ROUND_ROBIN:
            prefix = "" if policy == CAPACITY else f"{policy}_"
            gain = _over_round_robin(served, policy).median - 1.0
            summary[f"{prefix}gain_{slowdown}"] = gain
            if ceiling > 0.0:
                summary[f"{prefix}gain_over_ceiling_{slowdown}"] = gain / ceiling
    return summary


def _row(served: PairServed, policy: str, prediction: Report) -> Row:
    runs = served.dealt[policy]
    return {
        **_common(served),
        "kind": "scheduler",
        "policy": policy,
        **_throughput(served, policy).columns("throughput_tokens_per_s"),
        "predicted_throughput_tokens_per_s": prediction.tokens_per_s,
        **_over_round_robin(served, policy).columns("over_round_robin"),
        **_ceiling(served).columns("ceiling"),
        **Measured.of(run.finish_spread for run in runs).columns("finish_spread"),
        **Measured.of(run.makespan_s for run in runs).columns("makespan_s"),
        **Measured.of(run.requests.get("fast", 0) / served.run.requests for run in runs).columns("share_of_fast"),
        "same_answers_as_round_robin": served.same_answers[policy],
    }


def _rates_row(served: PairServed) -> Row:
    tokens = served.run.settings.request_tokens
    return {
        **_common(served),
        "kind": "co_running_rates",
        **Measured.of(tokens * rates.fast for rates in served.rates).columns("fast_tokens_per_s"),
        **Measured.of(tokens * rates.slow for rates in served.rates).columns("slow_tokens_per_s"),
        **Measured.of(rates.fast / rates.slow for rates in served.rates).columns("fast_over_slow"),
        **_ceiling(served).columns("ceiling"),
    }


def _common(served: PairServed) -> Row:
    run = served.run
    settings = run.settings
    return {
        "where": Where.EMULATED if run.slowdown > 1.0 else Where.REAL,
        "repeats": run.rounds,
        "cluster": f"one core + one core emulated {run.slowdown:g} x slower",
        "slowdown": run.slowdown,
        "model": settings.model,
        "dtype": settings.dtype,
        "load": f"{settings.prompt_tokens} + {settings.output_tokens} tokens, all at once",
        "requests": run.requests,
        "settings": f"batch {settings.max_batch}, budget {settings.budget}",
        "largest_request_share": (1.0 + run.slowdown) / run.requests,
    }


def _throughput(served: PairServed, policy: str) -> Measured:
    """Tokens of prompts and answers per second."""
    tokens = served.run.requests * served.run.settings.request_tokens
    return Measured.of(tokens / run.makespan_s for run in served.dealt[policy])


def _over_round_robin(served: PairServed, policy: str) -> Measured:
    return _throughput(served, policy).over(_throughput(served, ROUND_ROBIN))


def _ceiling(served: PairServed) -> Measured:
    return Measured.of(rates.ceiling for rates in served.rates)
