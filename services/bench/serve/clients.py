"""A closed loop over HTTP: so many clients, of whom each asks again as soon as its last answer has ended."""

import asyncio
from collections.abc import Iterator, Sequence

import aiohttp

from common.clock import Clock
from common.tasks import TaskScope
from services.bench.load.stream import LoadRequest, StreamTimes, stream

_TIMEOUT_S = 3600.0


async def ask_in_turn(
    url: str, model: str, requests: Sequence[LoadRequest], clients: int, clock: Clock
) -> list[StreamTimes]:
    """The answers to `requests`, taken in order; in the order in which they ended. Raises LoadError."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    answers: list[StreamTimes] = []
    scope = TaskScope("clients")
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout, read_bufsize=1 << 20) as session:

        async def client(waiting: Iterator[LoadRequest]) -> None:
            for request in waiting:
                answers.append(await stream(session, model, request, clock))

        waiting = iter(requests)
        try:
            await asyncio.gather(*(scope.start(client(waiting), str(number)) for number in range(clients)))
        finally:
            await scope.close()
    return answers
