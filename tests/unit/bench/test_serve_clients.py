"""Clients in a closed loop, against a server that counts them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from common.clock import SystemClock
from services.bench.load.stream import LoadError, LoadRequest, StreamTimes
from services.bench.serve.clients import ask_in_turn

ANSWER = [{"choices": [{"text": "a", "index": 0}]}, {"choices": [], "usage": {"completion_tokens": 1}}]


@dataclass
class Server:
    url: str = ""
    fails_at: int = -1
    asked: list[dict[str, Any]] = field(default_factory=list)
    present: int = 0
    most_present: int = 0

    async def answer(self, http: web.Request) -> web.StreamResponse:
        self.present += 1
        self.most_present = max(self.present, self.most_present)
        self.asked.append(await http.json())
        is_failure = len(self.asked) - 1 == self.fails_at
        await asyncio.sleep(0.002)
        self.present -= 1
        if is_failure:
            return web.Response(status=500, text="out of order")
        lines = "".join(f"data: {json.dumps(part)}\n\n" for part in ANSWER) + "data: [DONE]\n\n"
        return web.Response(text=lines)


@asynccontextmanager
async def server(fails_at: int = -1) -> AsyncIterator[Server]:
    served = Server(fails_at=fails_at)
    app = web.Application()
    app.router.add_post("/v1/completions", served.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    served.url = f"http://{host}:{port}"
    try:
        yield served
    finally:
        await runner.cleanup()


async def ask(served: Server, requests: list[LoadRequest], clients: int) -> list[StreamTimes]:
    async with asyncio.timeout(20):
        return await ask_in_turn(served.url, "m", requests, clients, SystemClock())


async def test_every_request_is_asked_once_by_so_many_clients() -> None:
    requests = [LoadRequest(0.0, (number,), 1, split=0.5) for number in range(20)]
    async with server() as served:
        answers = await ask(served, requests, clients=3)
    assert served.most_present == 3
    assert len(answers) == 20
    assert sorted(body["prompt"][0] for body in served.asked) == list(range(20))
    assert all(body["pdmesh"] == {"split": 0.5} for body in served.asked)
    assert [answer.last_at for answer in answers] == sorted(answer.last_at for answer in answers)


async def test_requests_that_leave_the_split_to_the_mesh_say_nothing_of_it() -> None:
    async with server() as served:
        await ask(served, [LoadRequest(0.0, (1,), 1)], clients=4)
    assert "pdmesh" not in served.asked[0]


async def test_a_failure_ends_all_clients() -> None:
    requests = [LoadRequest(0.0, (number,), 1) for number in range(50)]
    async with server(fails_at=4) as served:
        with pytest.raises(LoadError, match="HTTP 500: out of order"):
            await ask(served, requests, clients=2)
    assert len(served.asked) < 10
