"""The cheap client against the raw handler, in a process of its own as in the benchmark."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from common.clock import SystemClock
from services.bench.gateway.fixed_answers import FixedAnswer, record
from services.bench.gateway.plain_client import Course, run_client
from services.bench.gateway.questions import STREAM, WHOLE, http_request
from services.bench.gateway.routers import ROUTERS, find_router, router_system
from services.bench.gateway.server_process import raw_server
from services.bench.transfer.errors import BenchError

TEXT = [b'data: {"choices":[{"text":"%d"}]}\n\n' % number for number in range(32)]
EVENTS = (*TEXT, b"data: [DONE]\n\n")
ANSWERS = [FixedAnswer(WHOLE.markers(), body=b'{"a": 1}'), FixedAnswer(STREAM.markers(), events=EVENTS)]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_answers_are_counted_and_events_held_against_what_is_right(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    run(_counted_and_held(tmp_path))


async def _counted_and_held(tmp_path: Path) -> None:
    clock = SystemClock()
    async with raw_server(ANSWERS, tmp_path / "answers.json") as server:
        assert await record(server.url, STREAM) == ANSWERS[1]
        assert await record(server.url, WHOLE) == ANSWERS[0]
        whole = Course(http_request(server.url, WHOLE.body()), None)
        stream = Course(http_request(server.url, STREAM.body()), len(EVENTS))
        for course in (whole, stream):
            sample = await run_client(server.url, course, 2, 0.2, clock)
            assert sample.answers > 0
            assert 0 < sample.p50_ms <= sample.p99_ms
        with pytest.raises(BenchError, match="a stream of 33 events, not 30"):
            await run_client(server.url, Course(stream.request, 30), 1, 0.2, clock)
        refused = Course(whole.request.replace(b"POST", b"PUT "), None)
        with pytest.raises(BenchError, match="the server refused"):
            await run_client(server.url, refused, 1, 0.2, clock)


async def test_a_stream_whose_tokens_come_together_is_not_recorded(tmp_path: Path) -> None:
    fewer = FixedAnswer(STREAM.markers(), events=EVENTS[1:])
    async with raw_server([fewer], tmp_path / "answers.json") as server:
        with pytest.raises(BenchError, match="32 tokens came in 31 events"):
            await record(server.url, STREAM)


async def test_a_router_that_does_not_start_says_its_last_words(tmp_path: Path) -> None:
    router = ROUTERS[0]
    program = tmp_path / router.name
    program.write_text("#!/bin/sh\necho no such mode >&2\nexit 3\n")
    program.chmod(0o755)
    assert find_router(router, {"PATH": str(tmp_path)}) == program
    with pytest.raises(BenchError, match="no such mode"):
        async with router_system(router, program, ANSWERS, tmp_path):
            pass
