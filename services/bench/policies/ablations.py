"""What the Cronus paper did not publish, simulated: each choice of the balancer varied by itself."""

from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from common.messages.control import Role
from services.bench.policies.pairs import DTYPE, LINK, Pair, instance
from services.bench.report import Row, Where
from services.scheduling.policies.balancer import Balance
from services.scheduling.policies.cronus import CronusPolicy, CronusSettings
from services.scheduling.policies.disaggregated import DisaggregatedPolicy
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import PlacementPolicy
from services.scheduling.policies.weighted import WeightedPolicy
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.hardware.catalogue import Catalogue
from services.simulator.hardware.spec_profile import spec_profile
from services.simulator.links import LinkSpec
from services.simulator.runs.report import Report
from services.simulator.simulate import simulate
from services.simulator.workload.arrivals import all_at_once, gamma
from services.simulator.workload.requests import Workload

FRACTIONS = tuple(step / 10 for step in range(11))
PREDICTOR_ERRORS = (0.5, 0.8, 1.0, 1.2, 2.0)
CAPS = (1, 2, 4)
GBITS = (1.0, 5.0, 10.0, 25.0, 100.0, 400.0)
BURSTS = (1.0, 2.0, 4.0)
CHUNKS = (None, 512, 256)
BURST_RATE = 0.7
"""Of the most throughput."""
SEED = 1


class Variant(msgspec.Struct, frozen=True):
    """One run of an ablation."""

    ablation: str
    setting: str
    cluster: Cluster
    workload: Workload
    policy: Callable[[], PlacementPolicy] = CronusPolicy
    prefill_slots: int = 2
    decode_batches: int = 2

    def run(self) -> Report:
        """Simulate it."""
        return simulate(
            self.cluster,
            self.workload,
            self.policy(),
            prefill_slots=self.prefill_slots,
            decode_batches=self.decode_batches,
        )


def pair_variants(pair: Pair, lengths: Workload, others: tuple[Workload, ...]) -> Iterator[Variant]:
    """Every ablation on one pair; `others` are workloads of other shapes."""
    offline = all_at_once(lengths)
    cluster = pair.cluster(pair.fast(Role.DECODE), pair.slow(Role.PREFILL))
    for balance in Balance:
        settings = CronusSettings(balance=balance)
        yield Variant("balance", balance, cluster, offline, partial(CronusPolicy, settings))
    yield from fraction_variants(cluster, offline)
    for factor in PREDICTOR_ERRORS:
        slow = _believed(pair.slow(Role.PREFILL), factor)
        yield Variant("T_pre predicted", f"x{factor:g}", pair.cluster(pair.fast(Role.DECODE), slow), offline)
    for cap in CAPS:
        yield Variant("requests in P", str(cap), cluster, offline, prefill_slots=cap)
    for gbits in GBITS:
        linked = pair.cluster(pair.fast(Role.DECODE), pair.slow(Role.PREFILL), link=LinkSpec(gbits * 1e9 / 8))
        yield Variant("link", f"{gbits:g} Gb/s", linked, offline)
    for chunk in CHUNKS:
        chunked = pair.cluster(pair.fast(Role.DECODE), pair.slow(Role.PREFILL, chunk=chunk))
        yield Variant("chunk of P", "whole prompts" if chunk is None else str(chunk), chunked, offline)
    for workload in (lengths, *others):
        for counts in (True, False):
            settings = CronusSettings(counts_decoding=counts)
            setting = f"{workload.name}, decode length {'counted' if counts else 'not counted'}"
            yield Variant("lengths", setting, cluster, all_at_once(workload), partial(CronusPolicy, settings))


def fraction_variants(cluster: Cluster, workload: Workload) -> Iterator[Variant]:
    """The same share of every prompt, on a grid of a tenth, and the balance beside it."""
    yield Variant("fraction", "balanced", cluster, workload)
    for fraction in FRACTIONS:
        yield Variant("fraction", f"{fraction:.1f}", cluster, workload, partial(FixedPolicy, fraction))


def burst_variants(pair: Pair, lengths: Workload, peak_rps: float) -> Iterator[Variant]:
    """Arrivals in bursts at a rate that the pair can serve: equal stages, the earliest first token, or either."""
    cluster = pair.cluster(pair.fast(Role.DECODE), pair.slow(Role.PREFILL))
    for cv in BURSTS:
        workload = gamma(lengths, BURST_RATE * peak_rps, cv, SEED)
        for balance in Balance:
            settings = CronusSettings(balance=balance)
            setting = f"cv {cv:g}, {balance}"
            yield Variant("bursts", setting, cluster, workload, partial(CronusPolicy, settings))


def fleet_variants(catalogue: Catalogue, pair: Pair, lengths: Workload) -> Iterator[Variant]:
    """Four devices of three classes: two A100, an A30 and an A10; four times the requests of a pair's load."""
    requests = all_at_once(lengths)
    names = ("A100 80GB SXM", "A100 80GB SXM", "A30", "A10")

    def fleet(*roles: Role) -> Cluster:
        return Cluster(
            tuple(_device(catalogue, pair, index, names[index], role) for index, role in enumerate(roles)),
            pair.model.layers,
            pair.model.kv_bytes_per_token(DTYPE),
            LINK,
        )

    prefill, decode = Role.PREFILL, Role.DECODE
    yield Variant("four devices", "cronus: 2 D, 2 P", fleet(decode, decode, prefill, prefill), requests)
    yield Variant("four devices", "cronus: 3 D (with the A30), 1 P", fleet(decode, decode, decode, prefill), requests)
    dealt = 1_000_000
    yield Variant(
        "four devices",
        "dp by measured rates",
        fleet(decode, decode, decode, decode),
        requests,
        WeightedPolicy,
        decode_batches=dealt,
    )
    yield Variant(
        "four devices",
        "disagg low-high",
        fleet(decode, decode, prefill, prefill),
        requests,
        DisaggregatedPolicy,
    )


def ablation_row(pair: Pair, variant: Variant, report: Report) -> Row:
    """One row."""
    return {
        "kind": "ablation",
        "where": Where.SIMULATED,
        "repeats": 1,
        "pair": "2 A100 80GB SXM + A30 + A10" if variant.ablation == "four devices" else pair.name,
        "model": pair.model.name,
        "ablation": variant.ablation,
        "setting": variant.setting,
        "load": "rate" if variant.ablation == "bursts" else "all_at_once",
        "throughput_rps": report.throughput_rps,
        "ttft_p99_s": report.ttft.p99,
        "tbt_p99_s": report.tbt.p99,
        "ttft_mean_s": report.ttft.mean,
        "tbt_mean_s": report.tbt.mean,
        "split_share": report.split_share,
    }


def balance_over_best_fraction(rows: list[Row]) -> dict[str, float]:
    """By pair and model: the balanced throughput over that of the best fixed fraction, chosen with hindsight."""
    mine = [row for row in rows if row["kind"] == "ablation" and row["ablation"] == "fraction"]
    summary: dict[str, float] = {}
    for pair, model in dict.fromkeys((row["pair"], row["model"]) for row in mine):
        found = {
            row["setting"]: float(row["throughput_rps"] or 0)
            for row in mine
            if (row["pair"], row["model"]) == (pair, model)
        }
        balanced = found.pop("balanced")
        key = f"{str(pair).split()[-1].lower()}_{str(model).split('-')[0].lower()}"
        summary[f"{key}_balance_over_best_fraction"] = balanced / max(found.values())
    return summary


def _believed(instance: SimulatedInstance, factor: float) -> SimulatedInstance:
    """The same device, of which the policy believes that it takes `factor` times as long."""
    assert instance.costs is not None
    return msgspec.structs.replace(instance, costs=instance.costs.scaled(factor))


def _device(catalogue: Catalogue, pair: Pair, index: int, name: str, role: Role) -> SimulatedInstance:
    device = catalogue.device(name)
    profile = spec_profile(device, pair.model, DTYPE, 512, max_batch=256)
    return instance(f"{index}", role, device, pair.model, profile)
