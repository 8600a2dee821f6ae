"""`python -m services.bench.gateway.raw_server FILE`: aiohttp and uvloop, and nothing else, answering fixed bytes.

FILE holds a JSON list of FixedAnswer; a request that none fits gets the first. The first line out is {"port": N}, on
127.0.0.1. It ends when its stdin closes. Whatever is asked by GET is answered with what routers ask of a worker.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop
from aiohttp import web

from services.bench.gateway.fixed_answers import FixedAnswer
from services.bench.gateway.questions import MODEL

_FACTS = {
    "status": "ok",
    "object": "list",
    "data": [{"id": MODEL, "object": "model", "owned_by": "sglang"}],
    "model_path": MODEL,
    "served_model_name": MODEL,
    "tp_size": 1,
    "dp_size": 1,
}
"""Health, models and server information in one, as a worker of SGLang's has them."""


class RawHandler:
    """Reads a request's bytes, and writes an answer's."""

    def __init__(self, answers: Sequence[FixedAnswer]) -> None:
        self._answers = answers

    async def answer(self, http: web.Request) -> web.StreamResponse:
        """POST, whatever the path."""
        request = await http.read()
        fixed = next((answer for answer in self._answers if answer.fits(request)), self._answers[0])
        if not fixed.events:
            return web.Response(body=fixed.body, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(http)
        for event in fixed.events:
            await response.write(event)
        await response.write_eof()
        return response


async def _facts(_: web.Request) -> web.Response:
    return web.json_response(_FACTS)


async def _serve(answers: Sequence[FixedAnswer]) -> None:
    app = web.Application()
    app.router.add_post("/{path:.*}", RawHandler(answers).answer)
    app.router.add_get("/{path:.*}", _facts)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.to_thread(sys.stdin.buffer.read)
    await runner.cleanup()


def main(file: Path) -> None:
    """Serve the answers in `file` until stdin closes."""
    uvloop.run(_serve(msgspec.json.decode(file.read_bytes(), type=list[FixedAnswer])))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
