"""A client that costs little: asyncio protocols, bytes made before, events counted and not parsed."""

import asyncio
from typing import cast
from urllib.parse import urlsplit

import msgspec

from common.clock import Clock
from services.bench.gateway.http_answers import AnswerBytes
from services.bench.gateway.sample import Sample, sample_of
from services.bench.transfer.errors import BenchError

NAME = "asyncio protocol"
_LAST_ANSWERS_S = 30.0


class Course(msgspec.Struct, frozen=True):
    """What every connection does: send `request`, read the whole answer, send it again."""

    request: bytes
    events: int | None
    """Server-sent events of a right answer; None: it is no stream."""


class _Connection(asyncio.Protocol):
    """One connection, which asks until `stop`."""

    def __init__(self, course: Course, clock: Clock) -> None:
        self._course = course
        self._clock = clock
        self._is_stopped = False
        self._transport: asyncio.Transport | None = None
        self.latencies_s: list[float] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has all of it, but not the type
        self._ask()

    def data_received(self, data: bytes) -> None:
        try:
            if not self._answer.add(data):
                return
            self._check()
        except (BenchError, ValueError) as error:
            self._end(error)
            return
        if self._is_stopped:
            self._end(None)
            return
        self.latencies_s.append(self._clock.now() - self._asked_at)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(BenchError(f"the server closed a connection within an answer: {exc}"))

    def stop(self) -> None:
        """The answer under way is the last, and does not count."""
        self._is_stopped = True

    def _ask(self) -> None:
        assert self._transport is not None
        self._answer = AnswerBytes()
        self._asked_at = self._clock.now()
        self._transport.write(self._course.request)

    def _check(self) -> None:
        answer, expected = self._answer, self._course.events
        if not answer.is_good:
            raise BenchError(f"the server refused: {bytes(answer.data[:500])!r}")
        if expected is not None and (found := answer.events(expected)) != expected:
            raise BenchError(f"a stream of {found} events, not {expected}: {answer.body()[:500]!r}")

    def _end(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._transport.close()
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


async def run_client(url: str, course: Course, connections: int, seconds: float, clock: Clock) -> Sample:
    """Ask for `seconds`, as fast as the answers come. Raises BenchError for any answer that is not right."""
    loop, place = asyncio.get_running_loop(), urlsplit(url)
    started = clock.now()
    made = [
        (await loop.create_connection(lambda: _Connection(course, clock), str(place.hostname), place.port or 80))[1]
        for _ in range(connections)
    ]
    ended = asyncio.gather(*(connection.ended for connection in made))
    # Only a failure ends them before they are told to.
    await asyncio.wait([ended], timeout=seconds)
    elapsed = clock.now() - started
    latencies = [latency for connection in made for latency in connection.latencies_s]
    for connection in made:
        connection.stop()
    try:
        async with asyncio.timeout(_LAST_ANSWERS_S):
            await ended
    except TimeoutError:
        raise BenchError(f"{url}: an answer took longer than {_LAST_ANSWERS_S} s") from None
    if not latencies:
        raise BenchError(f"{url}: no answer within {seconds} s; measure for longer")
    return sample_of(latencies, elapsed)
