"""The whole benchmark, from an empty machine to a report."""

import msgspec

from common.clock import SystemClock
from services.bench.occasion import this_occasion
from services.bench.repeats import OnStep
from services.bench.report import Report
from services.bench.transfer.cases import MEMCPY, Effort, take_cases
from services.bench.transfer.kernels import measure_kernels
from services.bench.transfer.layerwise import measure_layerwise
from services.bench.transfer.pipeline import Pipeline
from services.bench.transfer.planning import measure_planning
from services.bench.transfer.rates import Rates, measure_rates, rate_rows
from services.bench.transfer.stage import Heard, Stage, open_stage
from services.bench.transfer.summary import kernel_ratios, other_ratios, rate_ratios


class TransferBench(msgspec.Struct, frozen=True):
    """What to measure."""

    command: str
    effort: Effort
    segment_bytes: int
    with_peers: bool
    """Other people's libraries, too."""


async def run_transfer_bench(bench: TransferBench, heard: Heard) -> Report:
    """Minutes, on a machine with nothing else to do. Raises BenchError, OSError or a TransferError."""
    clock, occasion, effort = SystemClock(), this_occasion(), bench.effort
    kernels = await measure_kernels(effort.kernel_bytes, effort.kernel_rounds, clock, heard.on_step)
    plan = await measure_planning(effort.plan_blocks, bench.segment_bytes, effort.plan_rounds, clock, heard.on_step)
    largest, segment_bytes = effort.largest_bytes, bench.segment_bytes
    async with open_stage(largest, segment_bytes, clock, heard, with_peers=bench.with_peers) as stage:
        rates = await _rates(stage, effort, heard.on_step)
        pipelines = Pipeline(stage, largest, segment_bytes, occasion.machine.cores, clock)
        pipeline = await pipelines.measure(effort.pipeline_rounds, heard.on_step)
        layerwise = await measure_layerwise(
            stage.taker, tuple(stage.remote), effort.prompt_tokens, effort.layerwise_rounds, heard.on_step
        )
    rate_table = [row for found in rates for row in rate_rows(found, stage.peers, stage.versions)]
    return occasion.report(
        bench.command,
        (*rate_table, *kernels, plan, *pipeline, *layerwise),
        rate_ratios(rates[-1]) | kernel_ratios(kernels) | other_ratios(plan, pipeline, layerwise),
    )


async def _rates(stage: Stage, effort: Effort, on_step: OnStep) -> list[Rates]:
    """Smallest size first."""
    movers, schemes = [MEMCPY, *stage.versions], tuple(stage.backends)
    return [
        await measure_rates(stage.taker, stage.raw, take_cases(schemes, size), movers, effort.rounds[size], on_step)
        for size in sorted(effort.rounds)
    ]
