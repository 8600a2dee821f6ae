"""The table of the Cronus paper, simulated: most throughput and P99 latencies of six systems on four pairs."""

from collections.abc import Callable, Iterator, Mapping

import msgspec

from services.bench.policies.pairs import BUDGET, Pair, PairSystem, Tuning
from services.bench.report import Row, Where
from services.scheduling.policies.registry import load_policy
from services.simulator.runs.report import Report
from services.simulator.runs.sweep import SHARES, search
from services.simulator.simulate import simulate
from services.simulator.workload.arrivals import all_at_once, poisson
from services.simulator.workload.requests import Workload

POLICY_OF: Mapping[PairSystem, str] = {
    PairSystem.CRONUS: "cronus",
    PairSystem.DP_UNTUNED: "dp",
    PairSystem.DP_TUNED: "dp",
    PairSystem.PP: "dp",
    PairSystem.LOW_HIGH: "disagg",
    PairSystem.HIGH_LOW: "disagg",
}
DEALT_AT_ARRIVAL = 1_000_000
"""decode_batches of dp: a request is dealt when it arrives and waits at its instance, as in the systems compared."""
RATES = (0.3, 0.5, 0.7, 0.9)
"""Of the most throughput of Cronus."""
BAND_RATE = 0.7
"""Of the smaller of two systems' most throughput: where their latencies are compared."""
SEED = 1

_WITH_PREFILL = (PairSystem.CRONUS, PairSystem.LOW_HIGH, PairSystem.HIGH_LOW)

OnStep = Callable[[str], None]


class Served(msgspec.Struct, frozen=True):
    """One system under one load."""

    system: PairSystem
    rate_rps: float | None
    compared_with: PairSystem | None
    report: Report


def serve(pair: Pair, system: PairSystem, workload: Workload, tuning: Tuning = Tuning()) -> Report:
    """One run."""
    is_dp = POLICY_OF[system] == "dp"
    return simulate(
        pair.of(system, tuning, workload),
        workload,
        load_policy(POLICY_OF[system], "full"),
        policy_name=system,
        decode_batches=DEALT_AT_ARRIVAL if is_dp else 2,
    )


def tuned(pair: Pair, workload: Workload) -> Tuning:
    """What gives each rival the most throughput: dp by the search of its weight, pp by its budget."""
    shares = search(
        lambda share: serve(pair, PairSystem.DP_TUNED, workload, Tuning(dp_weight=share)).throughput_rps, SHARES
    )
    budgets = {
        budget: serve(pair, PairSystem.PP, workload, Tuning(pp_budget=budget)).throughput_rps
        for budget in (BUDGET // 2, BUDGET)
    }
    return Tuning(max(shares, key=shares.__getitem__), max(budgets, key=budgets.__getitem__))


def paper_rows(pair: Pair, lengths: Workload, on_step: OnStep) -> list[Row]:
    """The rows of a pair: all requests at once, over rates, and each rival beside Cronus at the rate of the bands."""
    offline = all_at_once(lengths)
    on_step(f"{pair.name}, {pair.model.name}: tuning")
    tuning = tuned(pair, offline)
    most: dict[PairSystem, Report] = {}
    for system in PairSystem:
        on_step(f"{pair.name}, {pair.model.name}: {system}, all at once")
        most[system] = serve(pair, system, offline, tuning)
    rows = [_row(pair, Served(system, None, None, report), tuning) for system, report in most.items()]
    peaks = {system: report.throughput_rps for system, report in most.items()}
    for served in _over_rates(pair, lengths, peaks, tuning, on_step):
        rows.append(_row(pair, served, tuning))
    return rows


def _over_rates(
    pair: Pair, lengths: Workload, peaks: Mapping[PairSystem, float], tuning: Tuning, on_step: OnStep
) -> Iterator[Served]:
    for share in RATES:
        rate = share * peaks[PairSystem.CRONUS]
        for system in PairSystem:
            if rate < peaks[system]:
                on_step(f"{pair.name}, {pair.model.name}: {system} at {rate:.2f} requests/s")
                report = serve(pair, system, poisson(lengths, rate, SEED), tuning)
                yield Served(system, rate, None, report)
    for rival in PairSystem:
        if rival is PairSystem.CRONUS:
            continue
        rate = BAND_RATE * min(peaks[PairSystem.CRONUS], peaks[rival])
        for system in (PairSystem.CRONUS, rival):
            on_step(f"{pair.name}, {pair.model.name}: {system} at {rate:.2f} requests/s")
            yield Served(system, rate, rival, serve(pair, system, poisson(lengths, rate, SEED), tuning))


def paper_summary(rows: list[Row]) -> dict[str, float]:
    """Ratios to hold against the paper's, named by pair and model: throughputs, and P99 changes at the band's rate."""
    summary: dict[str, float] = {}
    cells = dict.fromkeys((row["pair"], row["model"]) for row in rows)
    for pair, model in cells:
        mine = [row for row in rows if (row["pair"], row["model"]) == (pair, model)]
        key = f"{str(pair).split()[-1].lower()}_{str(model).split('-')[0].lower()}"
        peak = {row["system"]: float(row["throughput_rps"] or 0) for row in mine if row["load"] == "all_at_once"}
        for rival in PairSystem:
            if rival is not PairSystem.CRONUS:
                summary[f"{key}_throughput_over_{rival}"] = peak["cronus"] / peak[rival.value]
        bands = [row for row in mine if row["compared_with"]]
        for ours, theirs in zip(bands[::2], bands[1::2], strict=True):
            for column in ("ttft_p99_s", "tbt_p99_s"):
                ratio = float(ours[column] or 0) / float(theirs[column] or 1)
                summary[f"{key}_{column.removesuffix('_s')}_change_to_{theirs['system']}"] = ratio - 1.0
    return summary


def _row(pair: Pair, served: Served, tuning: Tuning) -> Row:
    report, system = served.report, served.system
    weight = {PairSystem.DP_TUNED: tuning.dp_weight, PairSystem.DP_UNTUNED: pair.untuned_weight}.get(system)
    return {
        "kind": "policy",
        "where": Where.SIMULATED,
        "repeats": 1,
        "pair": pair.name,
        "model": pair.model.name,
        "system": system.value,
        "dp_weight": weight,
        "settings": _settings(system, tuning),
        "load": "all_at_once" if served.rate_rps is None else "rate",
        "rate_rps": served.rate_rps,
        "compared_with": served.compared_with,
        "throughput_rps": report.throughput_rps,
        "ttft_p99_s": report.ttft.p99,
        "tbt_p99_s": report.tbt.p99,
        "ttft_mean_s": report.ttft.mean,
        "tbt_mean_s": report.tbt.mean,
        "split_share": report.split_share,
        "high_busy": _busy(report, "high"),
        "low_busy": _busy(report, "low"),
        "prediction_error": report.mean_prediction_error,
    }


def _settings(system: PairSystem, tuning: Tuning) -> str:
    if system is PairSystem.PP:
        return f"budget {tuning.pp_budget} in each of two micro-batches"
    return f"budget {BUDGET}, at most 2 requests in P" if system in _WITH_PREFILL else f"budget {BUDGET}"


def _busy(report: Report, name: str) -> float | None:
    return next((use.busy for use in report.instances if use.name == name), None)
