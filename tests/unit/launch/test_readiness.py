import asyncio
from contextlib import asynccontextmanager

import pytest

from services.launch.readiness import not_ready_reason


@asynccontextmanager
async def server(answer: bytes):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b'HTTP/1.1 200 OK\r\n\r\n{"status":"ready"}', None),
        (b'HTTP/1.1 503 X\r\n\r\n{"status":"not ready","reason":"no decode instance"}', "no decode instance"),
        (b"HTTP/1.1 503 X\r\n\r\nwait\n", "wait"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "the gateway answers 404"),
        (b"garbage\r\n\r\n", "what listens there does not speak HTTP"),
        (b"", "what listens there does not speak HTTP"),
    ],
)
async def test_reasons(answer, reason):
    async with server(answer) as port:
        assert await not_ready_reason("127.0.0.1", port) == reason


async def test_nobody_listens():
    async with server(b"") as port:
        pass
    assert await not_ready_reason("127.0.0.1", port) == "the gateway does not listen yet"
