"""The load generator, against a server that writes what a mesh would, at known times."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from common.clock import SystemClock
from services.bench.load.run import figures_of, run_load
from services.bench.load.stream import LoadError, LoadRequest, StreamTimes


def chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text, "index": 0}]}).encode() + b"\n\n"


def usage(tokens: int) -> bytes:
    return b"data: " + json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def server(pieces: Sequence[bytes], status: int = 200) -> AsyncIterator[tuple[str, list[dict[str, object]]]]:
    asked: list[dict[str, object]] = []

    async def answer(http: web.Request) -> web.StreamResponse:
        asked.append(await http.json())
        if status != 200:
            return web.Response(status=status, text="no room")
        response = web.StreamResponse(headers={"x-pdmesh-placement": "prefill=-; decode=d0; split=0; kv-bytes=0"})
        await response.prepare(http)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.01)
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}", asked
    finally:
        await runner.cleanup()


async def load(url: str, *requests: LoadRequest) -> list[StreamTimes]:
    return await run_load(url, "m", requests, SystemClock(), timeout_s=20)


async def test_every_event_with_text_is_timed_and_tokens_come_from_the_usage() -> None:
    async with server([chunk("a"), chunk(""), chunk("b"), chunk("c"), usage(4), DONE]) as (url, asked):
        one, two = await load(url, LoadRequest(0.0, (1, 2, 3), 4), LoadRequest(0.05, (4, 5), 4))
    assert one.text == two.text == "abc"
    assert one.tokens == 4
    assert len(one.events_at) == 3
    assert len(one.gaps()) == 2
    assert min(one.gaps()) > 0
    assert one.ttft_s > 0
    assert two.asked_at - one.asked_at >= 0.05
    assert one.placement.startswith("prefill=-")
    assert asked[0]["prompt"] == [1, 2, 3]
    assert asked[0]["ignore_eos"] is True
    figures = figures_of([one, two])
    assert figures.requests == 2
    assert figures.output_tokens_per_s == pytest.approx(4 * figures.throughput_rps)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([chunk("a"), usage(4)], "ended properly: False"),
        ([chunk("a"), usage(3), DONE], "3 of 4 tokens"),
        ([chunk("a"), b'data: {"error": {"message": "decode_lost"}}\n\n'], "decode_lost"),
    ],
)
async def test_an_answer_that_is_not_whole_is_an_error(pieces: list[bytes], said: str) -> None:
    async with server(pieces) as (url, _):
        with pytest.raises(ExceptionGroup) as caught:
            await load(url, LoadRequest(0.0, (1,), 4))
    assert said in str(caught.value.exceptions[0])
    assert isinstance(caught.value.exceptions[0], LoadError)


async def test_a_refusal_is_told_in_the_meshs_words() -> None:
    async with server([], status=429) as (url, _):
        with pytest.raises(ExceptionGroup) as caught:
            await load(url, LoadRequest(0.0, (1,), 4))
    assert "HTTP 429: no room" in str(caught.value.exceptions[0])
