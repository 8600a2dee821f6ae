"""A whole load: many clients, each at its time."""

import asyncio
from collections.abc import Callable, Sequence

import aiohttp
import msgspec
import numpy as np

from common.clock import Clock
from services.bench.load.stream import LoadRequest, StreamTimes, stream


class LoadFigures(msgspec.Struct, frozen=True):
    """What the clients saw. Times in seconds; TTFT from asking, TBT over all gaps of all answers."""

    requests: int
    throughput_rps: float
    """Requests over the time from the first asking to the last event."""
    output_tokens_per_s: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tbt_mean_s: float
    tbt_p50_s: float
    tbt_p99_s: float


async def run_load(
    url: str,
    model: str,
    requests: Sequence[LoadRequest],
    clock: Clock,
    on_done: Callable[[], None] = lambda: None,
    timeout_s: float = 600.0,
) -> list[StreamTimes]:
    """Send every request at its time and read all answers; in the order of `requests`. Raises LoadError."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout, read_bufsize=1 << 20) as client:
        started = clock.now()

        async def one(request: LoadRequest) -> StreamTimes:
            await asyncio.sleep(max(0.0, started + request.at_s - clock.now()))
            times = await stream(client, model, request, clock)
            on_done()
            return times

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request)) for request in requests]
        return [task.result() for task in tasks]


def figures_of(answers: Sequence[StreamTimes]) -> LoadFigures:
    """At least one answer."""
    ttft = np.array([answer.ttft_s for answer in answers])
    gaps = np.array([gap for answer in answers for gap in answer.gaps()] or [0.0])
    span = max(answer.last_at for answer in answers) - min(answer.asked_at for answer in answers)
    return LoadFigures(
        requests=len(answers),
        throughput_rps=len(answers) / span,
        output_tokens_per_s=sum(answer.tokens for answer in answers) / span,
        ttft_mean_s=float(ttft.mean()),
        ttft_p50_s=float(np.quantile(ttft, 0.5)),
        ttft_p99_s=float(np.quantile(ttft, 0.99)),
        tbt_mean_s=float(gaps.mean()),
        tbt_p50_s=float(np.quantile(gaps, 0.5)),
        tbt_p99_s=float(np.quantile(gaps, 0.99)),
    )
