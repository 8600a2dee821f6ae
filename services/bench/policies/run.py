"""The whole benchmark of the policies: which rows, in which order, in one report."""

from collections.abc import Callable, Sequence

import msgspec

from common.clock import Clock
from services.bench.occasion import this_occasion
from services.bench.policies.ablations import (
    Variant,
    ablation_row,
    balance_over_best_fraction,
    burst_variants,
    fleet_variants,
    pair_variants,
)
from services.bench.policies.pairs import Pair, PairSystem, paper_pairs
from services.bench.policies.paper import paper_rows, paper_summary, serve
from services.bench.policies.simulator_speed import measure_simulator_speed
from services.bench.report import Report, Row
from services.bench.scheduling.decisions import measure_decisions
from services.scheduling.policies.balancer import Balance
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.workload.arrivals import all_at_once
from services.simulator.workload.requests import Workload, first

OnStep = Callable[[str], None]


class SimulatedLoads(msgspec.Struct, frozen=True):
    """Lengths of requests: the paper's slice, and two of other shapes."""

    paper: Workload
    others: tuple[Workload, ...]
    quick: bool = False
    """A tenth of the requests and one pair: to see that it runs, not for figures."""

    def used(self) -> tuple[Workload, tuple[Workload, ...]]:
        """What is really run."""
        if not self.quick:
            return self.paper, self.others
        return first(self.paper, 100), tuple(first(workload, 100) for workload in self.others)


def simulated_report(command: str, loads: SimulatedLoads, on_step: OnStep) -> Report:
    """The paper's table."""
    occasion = this_occasion()
    lengths, _ = loads.used()
    rows: list[Row] = []
    for pair in _pairs(loads):
        rows += paper_rows(pair, lengths, on_step)
    return occasion.report(command, rows, paper_summary(rows))


def ablations_report(command: str, loads: SimulatedLoads, on_step: OnStep) -> Report:
    """What the paper did not vary."""
    occasion = this_occasion()
    lengths, others = loads.used()
    rows: list[Row] = []
    for index, pair in enumerate(_pairs(loads)):
        _run(pair, list(pair_variants(pair, lengths, others)), rows, on_step)
        if index == 0:
            on_step(f"{pair.name}: the most throughput, for bursts")
            peak = serve(pair, PairSystem.CRONUS, all_at_once(lengths)).throughput_rps
            _run(pair, list(burst_variants(pair, lengths, peak)), rows, on_step)
            _run(pair, list(fleet_variants(load_catalogue(), pair, lengths)), rows, on_step)
    return occasion.report(command, rows, balance_over_best_fraction(rows))


async def costs_report(command: str, clock: Clock, on_step: OnStep, *, quick: bool) -> Report:
    """What a decision costs, and how fast the simulator is: seconds of this machine."""
    occasion = this_occasion()
    rows = await measure_decisions(20 if quick else 200, 2 if quick else 9, clock, on_step)
    rows += measure_simulator_speed(1_000 if quick else 100_000, 1, clock, on_step)
    median = {(row["pairs"], row["shortlist"], row["balance"]): row for row in rows if row["kind"] == "decision"}
    summary = {
        f"us_per_decision_{pairs}_pairs_shortlist_{shortlist}": float(row["us_per_decision"] or 0)
        for (pairs, shortlist, balance), row in median.items()
        if balance == Balance.FINISH
    }
    summary |= {f"simulator_{row['system']}_s": float(row["seconds"] or 0) for row in rows if "seconds" in row}
    return occasion.report(command, rows, summary)


def _pairs(loads: SimulatedLoads) -> Sequence[Pair]:
    pairs = paper_pairs(load_catalogue())
    return pairs[:1] if loads.quick else pairs


def _run(pair: Pair, variants: Sequence[Variant], rows: list[Row], on_step: OnStep) -> None:
    for variant in variants:
        on_step(f"{pair.name}, {pair.model.name}: {variant.ablation} {variant.setting}")
        rows.append(ablation_row(pair, variant, variant.run()))
