"""What holds of every simulation, whatever the cluster, the workload and the policy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.types import Split
from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.messages.control import Role
from services.scheduling.policies.registry import load_policy
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.engine.timing import DecodeLine, StepTimer
from services.simulator.gaps import GapHistogram
from services.simulator.links import LinkSpec, SimulatedLink
from services.simulator.runs.report import Report, make_report
from services.simulator.simulation import Simulation
from services.simulator.workers import SimulatedPrefill
from services.simulator.workload.requests import TracedRequest, Workload

LAYERS, TOKEN_BYTES = 2, 8
SPLITS: tuple[Split, ...] = ("full", 0, 1, 7, 0.3, 1.0)

# ---------------------------------------------------------------- what is simulated


@dataclass(frozen=True)
class Watch(StepTimer):
    """A linear time model that looks at every step it is asked about."""

    base: float
    per_token: float
    per_context: float
    role: Role
    budget: int | None
    max_batch: int
    kv_tokens: int
    tokens: list[int] = field(default_factory=list)
    """Of each step."""

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        counts = [count for count, _ in chunks]
        tokens = sum(counts) + decodes
        self.tokens.append(tokens)
        assert tokens > 0
        assert all(count > 0 for count in counts)
        assert len(chunks) + decodes <= self.max_batch
        assert tokens + decode_context + sum(before for _, before in chunks) <= self.kv_tokens
        if self.role is Role.PREFILL:
            assert len(chunks) <= 1
            assert self.budget is None or sum(counts) <= self.budget
        else:
            assert self.budget is not None
            assert tokens <= self.budget
        return self.base + self.per_token * tokens + self.per_context * decode_context

    def decode_line(self, decodes: int) -> DecodeLine:
        assert self.role is Role.DECODE
        assert self.budget is not None
        assert 0 < decodes <= min(self.budget, self.max_batch)
        return DecodeLine(self.base + self.per_token * decodes, self.per_context)


class Setting(msgspec.Struct, frozen=True):
    """A run to be made."""

    cluster: Cluster
    policy: str
    split: Split
    workload: Workload
    prefill_slots: int
    decode_batches: int

    def run(self) -> tuple[Simulation, Report]:
        for instance in self.cluster.instances:
            assert isinstance(instance.timer, Watch)
            instance.timer.tokens.clear()
        made = Simulation(
            self.cluster,
            load_policy(self.policy, self.split),
            self.workload,
            prefill_slots=self.prefill_slots,
            decode_batches=self.decode_batches,
            checked=True,
        )
        made.run()
        return made, make_report(self.policy, "", None, made.records, made.gaps, list(made.workers.values()))


seconds = st.floats(1e-6, 1.0)


@st.composite
def instances(draw: st.DrawFn, name: str, role: Role, longest: int) -> SimulatedInstance:
    """One that holds the longest request, and perhaps little more."""
    block_size = draw(st.sampled_from([1, 4, 16]))
    blocks = -(-longest // block_size) + draw(st.sampled_from([0, 1, 3, 30]))
    max_batch = draw(st.integers(1, 5))
    if role is Role.PREFILL:
        budget = draw(st.sampled_from([None, 1, 3, 16]))
    else:
        budget = draw(st.sampled_from([max_batch, max_batch + 1, max_batch + 6, 64]))
    base, per_token, per_context = draw(seconds), draw(seconds), draw(st.sampled_from([0.0, 1e-3, 0.7]))
    timer = Watch(base, per_token, per_context, role, budget, max_batch, blocks * block_size)
    costs = InstanceCosts(
        PrefillCost(base, per_token),
        MixedStepCost(base, per_token, 0.0, per_context),
        DecodeStepCost(base, per_token, per_context),
    )
    # Not a whole number of blocks: the rest is of no use.
    spare = draw(st.integers(0, block_size - 1))
    return SimulatedInstance(
        name, role, timer, blocks * block_size + spare, costs, budget, max_batch, block_size, draw(st.none() | seconds)
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    gaps = st.sampled_from([0.0, 0.0, 0.1, 1.0, 20.0])
    lengths = st.tuples(st.integers(1, 40), st.integers(1, 12))
    at = 0.0
    requests = []
    for _ in range(draw(st.integers(1, 12))):
        at += draw(gaps)
        requests.append(TracedRequest(at, *draw(lengths)))
    return Workload("drawn", "a test", tuple(requests))


@st.composite
def settings(draw: st.DrawFn) -> Setting:
    work = draw(workloads())
    longest = max(request.prompt_tokens + request.output_tokens for request in work.requests)
    names = [(f"p{i}", Role.PREFILL) for i in range(draw(st.integers(1, 3)))]
    names += [(f"d{i}", Role.DECODE) for i in range(draw(st.integers(1, 3)))]
    specs = tuple(draw(instances(name, role, longest)) for name, role in names)
    link = LinkSpec(draw(st.sampled_from([1.0, 100.0, 1e9])), draw(st.sampled_from([0.0, 1e-5, 2.0])))
    return Setting(
        cluster=Cluster(specs, LAYERS, TOKEN_BYTES, link, is_link_known=draw(st.booleans())),
        policy=draw(st.sampled_from(["fixed", "disagg", "dp", "cronus", "cronus"])),
        split=draw(st.sampled_from(SPLITS)),
        workload=work,
        prefill_slots=draw(st.integers(1, 3)),
        decode_batches=draw(st.integers(1, 2)),
    )


# ---------------------------------------------------------------- the properties


@given(settings())
def test_every_run_keeps_the_books(setting: Setting) -> None:
    run, report = setting.run()
    check_times(run)
    check_tokens(run)
    check_use(run, report)
    check_gaps(run)
    for worker in run.workers.values():
        load = worker.engine.load(run.now)
        assert (load.waiting, load.running, load.queued_tokens, load.context_tokens, load.blocks_used) == (0,) * 5


def check_times(run: Simulation) -> None:
    """Each request arrives, is placed, handed over, has a first token and ends, in this order."""
    for record in run.records:
        assert (record.handed_over_at is None) == (record.prefill is None) == (record.split == 0)
        times = [record.arrived_at, record.placed_at, record.handed_over_at, record.first_token_at, record.finished_at]
        reached = [at for at in times if at is not None]
        assert len(reached) == 5 - (record.split == 0)
        assert reached == sorted(reached)
        # To compute the last token of a prompt takes time, and so does every token after the first.
        assert reached[-2] > reached[-3]
        assert (reached[-1] > reached[-2]) == (record.output_tokens > 1)


def check_tokens(run: Simulation) -> None:
    """Every token is computed once, but for those of preempted sequences, and every token asked for is emitted."""
    for name, worker in run.workers.items():
        counters = worker.engine.counters
        at_p = [record for record in run.records if record.prefill == name]
        at_d = [record for record in run.records if record.decode == name]
        assert counters.output_tokens == sum(record.output_tokens for record in at_d)
        asked = sum(record.split for record in at_p) + sum(record.prompt_tokens - record.split for record in at_d)
        timer = worker.spec.timer
        assert isinstance(timer, Watch)
        if isinstance(worker, SimulatedPrefill):
            assert (counters.preemptions, sum(timer.tokens)) == (0, asked)
        elif not counters.preemptions:
            # The last token of a prompt, when nothing else of it is left, is computed as a decode is.
            assert asked - len(at_d) <= counters.prompt_tokens <= asked


def check_use(run: Simulation, report: Report) -> None:
    """Nobody works more than the whole time; the links carried exactly what was handed over."""
    assert sum(use.requests for use in report.instances if use.role is Role.DECODE) == len(run.records)
    for use in report.instances:
        assert 0.0 <= use.busy <= 1.0 + 1e-9
        assert 0.0 <= use.link_busy <= 1.0 + 1e-9
        worker = run.workers[use.name]
        if isinstance(worker, SimulatedPrefill):
            tokens = sum(record.split for record in run.records if record.prefill == use.name)
            assert worker.link.busy_s == pytest.approx(tokens * TOKEN_BYTES / run.cluster.link.bytes_per_s)


def check_gaps(run: Simulation) -> None:
    assert run.gaps.count == sum(record.output_tokens - 1 for record in run.records)
    answering = [
        record.finished_at - record.first_token_at
        for record in run.records
        if record.finished_at is not None and record.first_token_at is not None
    ]
    assert run.gaps.total_s == pytest.approx(sum(answering))
    if run.gaps.count:
        assert run.gaps.max_s <= max(answering) + 1e-9


@given(settings())
def test_the_same_arguments_give_the_same_report(setting: Setting) -> None:
    assert setting.run()[1] == setting.run()[1]


# ---------------------------------------------------------------- links


@dataclass(frozen=True)
class Sent:
    """A prompt computed in chunks of (tokens, seconds per token), which D takes from `wanted_from` on."""

    began: float
    wanted_from: float
    chunks: tuple[tuple[int, float], ...]

    def pieces(self) -> list[tuple[float, float]]:
        """(when it is ready, its bytes) of every layer of every chunk."""
        made, at = [], self.began
        for tokens, per_token in self.chunks:
            layer_s = tokens * per_token / LAYERS
            made += [(at + layer_s * (layer + 1), tokens * TOKEN_BYTES / LAYERS) for layer in range(LAYERS)]
            at += layer_s * LAYERS
        return made


@st.composite
def sent(draw: st.DrawFn) -> Sent:
    """Equal chunks and a shorter last one, each token dearer than those before."""
    chunk = draw(st.integers(1, 30))
    sizes = [chunk] * draw(st.integers(0, 4)) + [draw(st.integers(1, chunk))]
    costs = sorted(draw(st.lists(st.floats(1e-3, 1.0), min_size=len(sizes), max_size=len(sizes))))
    times = st.floats(0.0, 100.0)
    return Sent(draw(times), draw(times), tuple(zip(sizes, costs, strict=True)))


@given(st.lists(sent(), min_size=1, max_size=6), st.floats(1.0, 1e4), st.floats(0.0, 2.0))
def test_a_link_carries_piece_after_piece(transfers: list[Sent], bytes_per_s: float, latency_s: float) -> None:
    link = SimulatedLink(LinkSpec(bytes_per_s, latency_s))
    free_at = 0.0
    for transfer in transfers:
        pieces = transfer.pieces()
        total = int(sum(size for _, size in pieces))
        at = free_at
        for ready_at, size in pieces:
            at = max(at, ready_at, transfer.wanted_from) + size / bytes_per_s
        first_at = max(pieces[0][0], transfer.wanted_from)
        landed = link.transfer(total, first_at, pieces[-1][0], int(pieces[-1][1]))
        # The layers of one step are met exactly; a shorter last chunk may come too early, by less than one piece.
        slack = 0.0 if len(transfer.chunks) == 1 else max(size for _, size in pieces) / bytes_per_s
        assert landed - 1e-6 <= at + latency_s <= landed + slack + 1e-6
        free_at = landed - latency_s


# ---------------------------------------------------------------- gaps


@dataclass(frozen=True)
class Run:
    """`count` sequences with the gaps first, first + increment, ..."""

    first: float
    increment: float
    steps: int
    count: int


runs = st.builds(
    Run,
    first=st.floats(1e-5, 10.0),
    increment=st.sampled_from([0.0, 1e-9, 1e-6, 1e-4, 0.5]),
    steps=st.integers(1, 300),
    count=st.integers(1, 4),
)


@given(st.lists(runs, min_size=1, max_size=8), st.lists(st.floats(0.0, 1.0), max_size=5))
def test_the_histogram_of_gaps_has_the_quantiles_of_all_gaps(work: list[Run], shares: list[float]) -> None:
    histogram = GapHistogram()
    gaps = np.concatenate([np.repeat(run.first + run.increment * np.arange(run.steps), run.count) for run in work])
    for run in work:
        if run.steps == 1:
            histogram.record_gap(run.first, run.count)
        else:
            histogram.record_run(run.first, run.increment, run.steps, run.count)
    assert histogram.count == len(gaps)
    assert histogram.total_s == pytest.approx(gaps.sum())
    assert histogram.mean() == pytest.approx(gaps.mean())
    assert histogram.max_s == pytest.approx(gaps.max())
    for share in (0.0, 0.5, 0.9, 0.99, 1.0, *shares):
        # Which of two neighbours is meant where the share falls between them is a matter of rounding.
        around = (max(0.0, share - 1e-9), min(1.0, share + 1e-9))
        low, high = np.quantile(gaps, around, method="inverted_cdf")
        assert low * (1 - 3.01e-4) <= histogram.quantile(share) <= high * (1 + 3.01e-4)
    curve = histogram.cumulative()
    assert curve == sorted(curve)
    assert math.isclose(curve[-1][1], 1.0)
