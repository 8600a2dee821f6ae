"""The whole benchmark of the gateway: every system up, every case in turn, one report."""

import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec

from common.clock import Clock
from common.loop_lag import LoopLagFigures
from services.bench.gateway.cases import MIDDLE, Case, cases
from services.bench.gateway.fixed_answers import FixedAnswer, record
from services.bench.gateway.instant_mesh import instant_mesh, mesh_system, write_model
from services.bench.gateway.questions import STREAM, WHOLE, WHOLE_IN_STEPS
from services.bench.gateway.routers import ROUTERS, Router, find_router, router_system
from services.bench.gateway.rows import case_rows, loop_lag_rows, skipped_row, summary
from services.bench.gateway.server_process import raw_server
from services.bench.gateway.system import RAW, Skipped, System
from services.bench.gateway.trials import Trials
from services.bench.gateway.wrk import find_wrk
from services.bench.loop_lag import GATEWAY, read_loop_lag
from services.bench.occasion import this_occasion
from services.bench.repeats import OnStep, interleave
from services.bench.report import Report, Row
from services.bench.transfer.errors import BenchError

_LAG_CASE = Case(STREAM, MIDDLE)


class GatewayBench(msgspec.Struct, frozen=True):
    """What to measure, and for how long."""

    command: str
    rounds: int
    seconds: float
    """Of one run."""
    lag_seconds: float
    """Of a run after which the lag of event loops is read: as many as the figures look back (common.loop_lag)."""
    cases: tuple[Case, ...] = msgspec.field(default_factory=cases)


async def run_gateway_bench(
    bench: GatewayBench, environ: Mapping[str, str], clock: Clock, on_step: OnStep, on_note: OnStep
) -> Report:
    """Raises BenchError, or what LocalMesh raises; a peer that cannot be measured is left out, with a row."""
    occasion = this_occasion()
    with tempfile.TemporaryDirectory(prefix="pdmesh-bench-") as temporary:
        scratch = Path(temporary)
        async with _served(scratch, environ, clock, on_step, on_note) as (systems, skipped, answers):
            stream = next(answer for answer in answers if answer.events)
            trials = Trials(find_wrk(environ), scratch, bench.seconds, len(stream.events), clock)
            rows = await _measure(bench, trials, systems, on_step)
    rows += map(skipped_row, skipped)
    return occasion.report(bench.command, rows, summary(rows))


@asynccontextmanager
async def _served(
    scratch: Path, environ: Mapping[str, str], clock: Clock, on_step: OnStep, on_note: OnStep
) -> AsyncIterator[tuple[list[System], list[Skipped], list[FixedAnswer]]]:
    """The mesh, the raw handler and the routers that there are, all up from begin to end: who is not asked idles."""
    async with AsyncExitStack() as stack:
        on_step("starting pdmesh")
        folder = await write_model(scratch / "model")
        mesh = await stack.enter_async_context(instant_mesh(folder, environ, clock))
        answers = [await record(mesh.url, question) for question in (WHOLE, STREAM, WHOLE_IN_STEPS)]
        raw = await stack.enter_async_context(raw_server(answers, scratch / "raw.json"))
        systems = [mesh_system(mesh), System(RAW, version("aiohttp"), "uvloop, fixed bytes", raw.url, raw.pid)]
        skipped: list[Skipped] = []
        for router in ROUTERS:
            on_step(f"starting {router.name}")
            found = await _router(router, answers, scratch, environ, stack)
            if isinstance(found, System):
                systems.append(found)
            else:
                skipped.append(found)
                on_note(f"without {found.name}: {found.reason}")
        yield systems, skipped, answers


async def _router(
    router: Router, answers: Sequence[FixedAnswer], scratch: Path, environ: Mapping[str, str], stack: AsyncExitStack
) -> System | Skipped:
    if (program := find_router(router, environ)) is None:
        return Skipped(router.name, f"no program {router.name!r} on the path; pip install {router.name}")
    try:
        return await stack.enter_async_context(router_system(router, program, answers, scratch))
    except BenchError as error:
        return Skipped(router.name, str(error))


async def _measure(bench: GatewayBench, trials: Trials, systems: Sequence[System], on_step: OnStep) -> list[Row]:
    rows: list[Row] = []
    for case in bench.cases:
        variants = {system.name: partial(trials.run, system, case) for system in systems}
        samples = await interleave(variants, bench.rounds, partial(_say, on_step, case))
        rows += case_rows(case, trials.client_for(case.question), systems, samples)
    lags: list[dict[str, LoopLagFigures]] = []
    for _ in range(bench.rounds):
        _say(on_step, _LAG_CASE, "lag of event loops")
        await trials.run(systems[0], _LAG_CASE, bench.lag_seconds)
        # The instances compute nothing and watch nothing: only the gateway is a real one.
        lags.append({GATEWAY: (await read_loop_lag(systems[0].url))[GATEWAY]})
    return rows + loop_lag_rows(_LAG_CASE, trials.client_for(_LAG_CASE.question), lags)


def _say(on_step: OnStep, case: Case, name: str) -> None:
    on_step(f"{case.name}: {name}")
