"""Scheduling by capacity beside its rivals in the simulator: policies, parts of the score, predictors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial

import msgspec

from services.bench.repeats import Measured, OnStep
from services.bench.report import Row, Where
from services.bench.scheduling.clusters import BUDGET, MAX_BATCH, MODEL, SchedulerCluster
from services.bench.scheduling.loads import SchedulerLoad
from services.bench.scheduling.predictors import DEFAULT, PREDICTORS, predictor
from services.scheduling.policies.capacity import CapacityPolicy, CapacitySettings
from services.scheduling.policies.registry import load_policy
from services.scheduling.policies.routing import PlacementPolicy
from services.scheduling.policies.weighted import WeightedPolicy
from services.simulator.runs.report import Report
from services.simulator.simulate import simulate
from services.simulator.workload.requests import Workload

CAPACITY, DP, ROUND_ROBIN = "capacity", "dp", "round_robin"
POLICIES = (CAPACITY, DP, ROUND_ROBIN, "random", "jsq", "power_of_two", "least_kv")
"""dp is weighted round robin, by what the instances say that their steps cost: the rival that knows who is fast."""
PARTS: Mapping[str, CapacitySettings] = {
    "compute and KV": CapacitySettings(),
    "compute only": CapacitySettings(counts_kv=False),
    "KV only": CapacitySettings(counts_work=False),
}


class Dispatch(StrEnum):
    """When a request is given to an instance."""

    BOUND = "bound"
    """When it arrives, as by a router in front of engines that have queues of their own."""
    LATE = "late"
    """When the instance has fewer than two batches of requests; until then it waits at the gateway."""

    @property
    def decode_batches(self) -> int:
        """As Lifecycle takes it."""
        return 1_000_000 if self is Dispatch.BOUND else 2


class Case(msgspec.Struct, frozen=True):
    """One row: a policy on a cluster under a load."""

    kind: str
    """scheduler, ablation (parts of the score) or predictor."""
    cluster: SchedulerCluster
    load: SchedulerLoad
    dispatch: Dispatch
    policy: str
    make_policy: Callable[[], PlacementPolicy]
    setting: str | None = None
    lengths: str = DEFAULT

    def run(self, workload: Workload) -> Report:
        """Simulate it. Raises SimulationError."""
        return simulate(
            self.load.on(self.cluster).cluster(),
            workload,
            self.make_policy(),
            policy_name=self.policy,
            decode_batches=self.dispatch.decode_batches,
            max_tokens=self.load.max_tokens,
            output_lengths=predictor(self.lengths, self.load, workload),
        )


class Ran(msgspec.Struct, frozen=True):
    """A case with a report for each seed of its load."""

    case: Case
    reports: tuple[Report, ...]

    def measured(self, value: Callable[[Report], float]) -> Measured:
        """Over the seeds."""
        return Measured.of(map(value, self.reports))


def cases(cluster: SchedulerCluster, load: SchedulerLoad, dispatch: Dispatch) -> Iterator[Case]:
    """Every policy, round robin first, then the parts of the score and, where they differ, the predictors."""
    for policy in sorted(POLICIES, key=lambda name: name != ROUND_ROBIN):
        yield Case("scheduler", cluster, load, dispatch, policy, partial(load_policy, policy, "full"))
    for part, settings in PARTS.items():
        make = partial(CapacityPolicy, settings)
        yield Case("ablation", cluster, load, dispatch, CAPACITY, make, setting=part)
    if load.name == "heavy_tail":
        for name in PREDICTORS:
            yield Case("predictor", cluster, load, dispatch, CAPACITY, CapacityPolicy, setting=name, lengths=name)


def scheduler_rows(
    clusters: Sequence[SchedulerCluster], loads: Sequence[SchedulerLoad], on_step: OnStep, *, quick: bool
) -> list[Row]:
    """A row for each case: medians over the seeds of the load. `quick` takes a tenth of the requests of one seed."""
    rows: list[Row] = []
    for cluster in clusters:
        for load in loads:
            count = load.requests(cluster) // (10 if quick else 1)
            workloads = [load.make(count, seed) for seed in (load.seeds[:1] if quick else load.seeds)]
            ceiling = _ceiling(load.on(cluster), workloads[0]) if load.is_compute_bound else None
            for dispatch in Dispatch:
                rows += _rows_of(list(cases(cluster, load, dispatch)), workloads, ceiling, on_step)
    return rows


def _rows_of(
    cases: Sequence[Case], workloads: Sequence[Workload], ceiling: float | None, on_step: OnStep
) -> Iterator[Row]:
    """The first of `cases` is round robin."""
    round_robin: Ran | None = None
    for case in cases:
        on_step(" · ".join(filter(None, (case.cluster.name, case.load.name, case.dispatch, case.policy, case.setting))))
        ran = Ran(case, tuple(map(case.run, workloads)))
        round_robin = round_robin or ran
        yield _row(ran, round_robin, ceiling)


def _ceiling(cluster: SchedulerCluster, workload: Workload) -> float:
    """mean(c) / min(c) of the instances' rates, each alone with its part of the requests."""
    share = len(workload.requests) // len(cluster.instances)
    mine = msgspec.structs.replace(workload, requests=workload.requests[:share])
    rates = [simulate(alone, mine, WeightedPolicy()).tokens_per_s for alone in cluster.alone()]
    return sum(rates) / len(rates) / min(rates)


def _row(ran: Ran, round_robin: Ran, ceiling: float | None) -> Row:
    case = ran.case
    throughput = ran.measured(lambda report: report.tokens_per_s)
    over = throughput.over(round_robin.measured(lambda report: report.tokens_per_s))
    return {
        "kind": case.kind,
        "where": Where.SIMULATED,
        "repeats": len(ran.reports),
        "cluster": case.cluster.name,
        "cluster_key": case.cluster.key,
        "model": MODEL,
        "settings": f"batch {MAX_BATCH}, budget {BUDGET}",
        "load": case.load.name,
        "load_words": case.load.words,
        "requests": ran.reports[0].requests,
        "dispatch": case.dispatch,
        "policy": case.policy,
        "setting": case.setting,
        "output_lengths": case.lengths,
        **throughput.columns("throughput_tokens_per_s"),
        **over.columns("over_round_robin"),
        "ceiling": ceiling,
        **ran.measured(_finish_spread).columns("finish_spread"),
        **ran.measured(lambda report: float(_preemptions(report))).columns("preemptions"),
    }


def _finish_spread(report: Report) -> float:
    """(last finish - first finish) / makespan, of the instances."""
    finishes = [use.last_finish_s for use in report.instances]
    return (max(finishes) - min(finishes)) / report.makespan_s


def _preemptions(report: Report) -> int:
    return sum(use.preemptions for use in report.instances)


def scheduler_summary(rows: Sequence[Row]) -> dict[str, float]:
    """Shares of the ceilings, capacity over dp, both parts of the score over one, predictors over the truth."""
    summary: dict[str, float] = {}
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        place = f"{row['cluster_key']}_{row['load']}_{row['dispatch']}"
        groups.setdefault(place, {})[f"{row['kind']} {row['setting'] or row['policy']}"] = row
    for place, found in groups.items():
        mine, rival = found[f"scheduler {CAPACITY}"], found[f"scheduler {DP}"]
        if (ceiling := mine["ceiling"]) is not None:
            for name, row in ((CAPACITY, mine), (DP, rival)):
                gain = _number(row, "over_round_robin") - 1.0
                prefix = "" if name == CAPACITY else f"{name}_"
                summary[f"{prefix}gain_over_ceiling_{place}"] = gain / (float(ceiling) - 1.0)
            summary[f"finish_spread_{place}"] = _number(mine, "finish_spread")
        summary[f"capacity_over_dp_{place}"] = _over(mine, rival)
        for part in ("compute only", "KV only"):
            ratio = _over(found["ablation compute and KV"], found[f"ablation {part}"])
            summary[f"both_over_{part.replace(' ', '_').lower()}_{place}"] = ratio
        for name in PREDICTORS[1:]:
            if f"predictor {name}" in found:
                ratio = _over(found[f"predictor {name}"], found["predictor oracle"])
                summary[f"{name.replace(' ', '_')}_over_truth_{place}"] = ratio
    return summary


def _over(one: Row, other: Row) -> float:
    return _number(one, "throughput_tokens_per_s") / _number(other, "throughput_tokens_per_s")


def _number(row: Row, column: str) -> float:
    value = row[column]
    assert isinstance(value, int | float)
    return float(value)
