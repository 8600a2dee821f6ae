"""One run of a client against a system: by wrk where it can, and what the system's process spent on it."""

from pathlib import Path

import msgspec
import psutil

from common.clock import Clock
from services.bench.gateway import plain_client
from services.bench.gateway.cases import Case
from services.bench.gateway.plain_client import Course, run_client
from services.bench.gateway.questions import Question, http_request
from services.bench.gateway.sample import Sample
from services.bench.gateway.system import System
from services.bench.gateway.wrk import run_wrk, wrk_script

WRK = "wrk"


class Trials:
    """Makes runs of `seconds`. `stream_events` is what a right stream counts, its last words included.

    Streams are always read by our own client: wrk would count answers, not the events in them.
    """

    def __init__(self, wrk: Path | None, scratch: Path, seconds: float, stream_events: int, clock: Clock) -> None:
        self._wrk = wrk
        self._scratch = scratch
        self._seconds = seconds
        self._stream_events = stream_events
        self._clock = clock

    def client_for(self, question: Question) -> str:
        """The name of the client that asks it."""
        return plain_client.NAME if self._wrk is None or question.streaming else WRK

    async def run(self, system: System, case: Case, seconds: float | None = None) -> Sample:
        """Load `system` for so long (None: as long as every run). Raises BenchError for a wrong answer."""
        process = psutil.Process(system.pid)
        before = process.cpu_times()
        sample = await self._ask(system, case, self._seconds if seconds is None else seconds)
        after = process.cpu_times()
        spent_s = after.user + after.system - before.user - before.system
        return msgspec.structs.replace(sample, cpu_us_per_answer=1e6 * spent_s / sample.answers)

    async def _ask(self, system: System, case: Case, seconds: float) -> Sample:
        question = case.question
        if self._wrk is not None and not question.streaming:
            script = self._scratch / f"whole-{question.output_tokens}.lua"
            script.write_text(wrk_script(question.body()))
            return await run_wrk(self._wrk, system.url, script, case.connections, max(1, round(seconds)))
        course = Course(http_request(system.url, question.body()), self._stream_events if question.streaming else None)
        return await run_client(system.url, course, case.connections, seconds, self._clock)
