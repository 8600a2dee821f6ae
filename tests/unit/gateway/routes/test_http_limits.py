"""Every limit is broken by a client on a real socket, and what that client, and the others, see of it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
import uvloop
from aiohttp import web
from openai import AsyncOpenAI

from common.errors import Failure, FailureKind
from common.ids import RequestId
from common.messages.sampling import TokenLogprobs
from services.gateway.http.open_files import RESERVED_FILES, connections_within
from services.gateway.http.server import ConnectionLimits, build_runner, patience_s
from services.gateway.mesh.unread_events import UnreadEvents
from services.gateway.stream import MOST_UNREAD, Failed, GenerationRequest, StreamEvent
from services.gateway.testing import emitted, placed, token_by_token

Serve = Callable[..., Awaitable[Any]]

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"
HELLO = {"model": "tiny/model", "messages": [{"role": "user", "content": "hello"}]}
PROMPT = {"model": "tiny/model", "prompt": "hello"}


class Wire:
    """A raw connection, and the one answer that is read from it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers, and the error in the body."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        assert headers["content-type"].startswith("application/json")
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return int(first.split()[1]), headers, error

    async def is_closed(self) -> None:
        async with asyncio.timeout(10):
            assert await self.reader.read() == b""


@asynccontextmanager
async def wired(host: str, port: int, sent: bytes = b"") -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(sent)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass


def post(path: str, body: bytes, length: int | None = None, *headers: bytes) -> bytes:
    size = len(body) if length is None else length
    lines = [b"POST %b HTTP/1.1" % path.encode(), b"Host: x", b"Content-Length: %d" % size, *headers]
    return b"\r\n".join([*lines, b"", b""]) + body


def silent_after(*tokens: int) -> Callable[[GenerationRequest], list[StreamEvent]]:
    return lambda request: [placed(), emitted(request, tokens)]


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GARBAGE\r\n\r\n", 400, "bad_http"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n", 400, "bad_http"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 500 + b"\r\n", 431, "headers_too_large"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 3000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "headers_too_large"),
        (
            b"GET /health HTTP/1.1\r\nHost: x\r\n"
            + b"X-Many: "
            + b"x" * 900
            + b"\r\n"
            + b"Y: "
            + b"x" * 1500
            + b"\r\n\r\n",
            431,
            "headers_too_large",
        ),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nExpect: a-miracle\r\n\r\n", 417, "expectation_failed"),
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
        (b"DELETE /health HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
        (post(PLAIN, b"{"), 400, "invalid_json"),
        (post(PLAIN, b"abcde", None, b"Content-Encoding: gzip"), 400, None),
    ],
)
async def test_whoever_refuses_it_the_answer_is_an_envelope(
    serve: Serve, sent: bytes, status: int, code: str | None
) -> None:
    served = await serve(silent_after(5), max_header=2048, limits=ConnectionLimits(head_bytes=2048))
    async with wired(served.client.host, served.client.port, sent) as wire:
        told, headers, error = await wire.answer()
        assert (told, error["code"], error["type"]) == (status, code, "invalid_request_error")
        assert headers["x-should-retry"] == "false"
        assert ("allow" in headers) == (status == 405)
    assert (await served.client.get("/health")).status == 200


@pytest.mark.parametrize(("sent", "kept"), [(b"00-\x80", ""), ("00-é".encode(), ""), (b"00-4bf9", "00-4bf9")])
async def test_a_trace_context_with_bytes_that_none_has_is_left_out(serve: Serve, sent: bytes, kept: str) -> None:
    served = await serve(token_by_token([[5]]))
    asked = post(PLAIN, json.dumps(PROMPT).encode(), None, b"traceparent: " + sent)
    async with wired(served.client.host, served.client.port, asked) as wire:
        assert b" 200 " in await wire.reader.readline()
    assert [request.traceparent for request in served.mesh.requests] == [kept]


async def test_a_head_within_the_limit_is_served(serve: Serve) -> None:
    served = await serve(silent_after(5), max_header=2048, limits=ConnectionLimits(head_bytes=2048))
    assert (await served.client.get("/health", headers={"X-Long": "x" * 1500})).status == 200


async def test_a_body_that_is_said_to_be_too_large_is_refused_before_it_comes(serve: Serve) -> None:
    served = await serve(silent_after(5))
    async with wired(served.client.host, served.client.port, post(PLAIN, b"", 1 << 40)) as wire:
        status, headers, error = await wire.answer()
        assert (status, error["code"], headers["connection"]) == (413, "body_too_large", "close")
        assert "10000 bytes" in error["message"]


async def test_a_body_of_unsaid_length_is_cut_at_the_limit(serve: Serve) -> None:
    served = await serve(silent_after(5))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with wired(served.client.host, served.client.port, head) as wire:
        for _ in range(3):
            wire.writer.write(b"%x\r\n%b\r\n" % (5000, b"x" * 5000))
        status, _, error = await wire.answer()
        assert (status, error["code"]) == (413, "body_too_large")


async def test_a_body_that_comes_slowly_is_a_408_and_costs_the_mesh_nothing(serve: Serve) -> None:
    served = await serve(silent_after(5), slow_client_s=0.1)
    async with wired(served.client.host, served.client.port, post(PLAIN, b'{"model"', 100)) as wire:
        status, headers, error = await wire.answer()
        assert (status, error["code"], headers["connection"]) == (408, "body_too_slow", "close")
        assert (headers["x-should-retry"], headers["retry-after"]) == ("true", "1")
    assert served.mesh.requests == []
    assert served.observer.notes == [("refused", "completions", 408)]


async def test_a_prompt_longer_than_the_operator_allows_is_a_400_with_both_numbers(serve: Serve) -> None:
    served = await serve(token_by_token([[5]]), max_prompt=20)
    for body, status in (({**PROMPT, "prompt": "x" * 20}, 200), ({**PROMPT, "prompt": "x" * 21}, 400)):
        response = await served.client.post(PLAIN, json=body)
        assert response.status == status
    error = (await response.json())["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert "has 21 tokens" in error["message"]
    assert "maximum input length is 20 tokens" in error["message"]
    tokens = await served.client.post(PLAIN, json={**PROMPT, "prompt": [5] * 21})
    assert (await tokens.json())["error"]["code"] == "context_length_exceeded"


async def test_one_stream_too_many_is_a_429_until_another_has_ended(serve: Serve) -> None:
    served = await serve(silent_after(5, 6), max_streams=2)
    stream = json.dumps({**HELLO, "stream": True}).encode()
    address = served.client.host, served.client.port
    async with wired(*address, post(CHAT, stream)) as first:
        async with wired(*address, post(CHAT, stream)) as second:
            for wire in (first, second):
                assert b" 200 " in await wire.reader.readline()
            refused = await served.client.post(CHAT, json={**HELLO, "stream": True})
            error = (await refused.json())["error"]
            assert (refused.status, error["type"], error["code"]) == (429, "overloaded", "too_many_streams")
            assert (refused.headers["Retry-After"], refused.headers["x-should-retry"]) == ("1", "true")
            assert len(served.mesh.requests) == 2
        async with asyncio.timeout(10):
            await served.mesh.streams[1].wait_closed()
            while (await served.client.post(CHAT, json={**HELLO, "stream": True})).status != 200:  # noqa: ASYNC110 - nobody says
                await asyncio.sleep(0.01)


async def test_one_connection_too_many_is_told_so_and_closed(serve: Serve) -> None:
    served = await serve(silent_after(5), limits=ConnectionLimits(connections=2, retry_after_s=7))
    address = served.client.host, served.client.port
    ask = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    async with wired(*address) as first, wired(*address) as second:
        for wire in (first, second):
            wire.writer.write(ask)
            assert b" 200 " in await wire.reader.readline()
        async with wired(*address, ask) as third:
            status, headers, error = await third.answer()
            assert (status, error["code"], error["type"]) == (503, "too_many_connections", "overloaded")
            assert (headers["retry-after"], headers["connection"]) == ("7", "close")
            await third.is_closed()
    async with asyncio.timeout(10):
        while True:
            async with wired(*address, ask) as again:
                if b" 200 " in await again.reader.readline():
                    return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_does_not_read_its_answer_is_cut_off(serve: Serve, stream: bool) -> None:
    choices = 8 if stream else 2
    scores = TokenLogprobs(-1.0, tuple((token, -1.0) for token in range(20)))
    served = await serve(token_by_token([[5] * 80] * choices, logprobs=lambda _: scores), together=80)
    runner = build_runner(served.client.app, ConnectionLimits(unread_s=0.05))
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    # Room for little on the way, so that what is not read is soon felt.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    try:
        await web.SockSite(runner, listener).start()
        client.connect(listener.getsockname())
        body = {**HELLO, "stream": stream, "logprobs": True, "n": choices, "max_tokens": 80, "top_logprobs": 20}
        client.sendall(post(CHAT, json.dumps(body).encode()))
        async with asyncio.timeout(20):
            mesh_stream = await served.mesh.first_stream()
            await mesh_stream.wait_closed()
            while runner.server is None or runner.server.connections:  # noqa: ASYNC110 - nobody says
                await asyncio.sleep(0.01)
        outcome = served.observer.notes[-1]
        assert outcome[:3] == ("failed", "r1", "cancelled") if stream else outcome[0] == "finished"
    finally:
        client.close()
        await runner.cleanup()


@pytest.mark.parametrize(("kind", "attempts"), [(FailureKind.DEADLINE_EXCEEDED, 1), (FailureKind.NO_INSTANCE, 2)])
async def test_the_sdk_sends_again_only_what_another_attempt_may_cure(
    serve: Serve, kind: FailureKind, attempts: int
) -> None:
    served = await serve(lambda request: [Failed(Failure(kind, "it broke"))], retry_after_s=0)
    asked: Any = {"model": "tiny/model", "messages": HELLO["messages"]}
    async with AsyncOpenAI(base_url=served.url, api_key="none", max_retries=1) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(**asked)
    assert len(served.mesh.requests) == attempts


def test_the_limits_hold_on_the_loop_that_gateways_run_on() -> None:
    uvloop.run(break_limits())


async def break_limits() -> None:
    ended = asyncio.Event()

    async def flood(http: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(http)
        try:
            while True:
                await response.write(b"x" * 65536)
        finally:
            ended.set()

    app = web.Application()
    app.router.add_get("/flood", flood)
    runner = build_runner(app, ConnectionLimits(connections=1, unread_s=0.05))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with socket.create_connection(runner.addresses[0][:2]) as idler:
            idler.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
            async with wired(*runner.addresses[0][:2]) as other:
                assert (await other.answer())[0] == 503
                await other.is_closed()
            await asyncio.wait_for(ended.wait(), 10)
    finally:
        await runner.cleanup()


async def test_a_stop_does_not_wait_for_clients_that_do_not_read() -> None:
    began = asyncio.Event()

    async def flood(http: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(http)
        began.set()
        while True:
            await response.write(b"x" * 65536)

    app = web.Application()
    app.router.add_get("/flood", flood)
    runner = build_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with socket.create_connection(runner.addresses[0][:2]) as idler:
        idler.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        await began.wait()
        # A third of what the client might take otherwise, and less than a launcher waits.
        await asyncio.wait_for(runner.cleanup(), 20)


def test_patience_is_for_what_lies_there() -> None:
    assert patience_s(0, 60.0) == 60.0
    assert patience_s(16 << 20, 60.0) == 124.0


def test_what_a_client_leaves_unread_is_bounded_and_then_its_request_ends() -> None:
    closed: list[RequestId] = []
    stream = UnreadEvents(RequestId("r1"), lambda request, _: closed.append(request))
    for _ in range(MOST_UNREAD):
        stream.put(placed())
    assert closed == []
    stream.put(placed())
    assert closed == ["r1"]
    last = stream._events[-1]
    assert isinstance(last, Failed)
    assert last.failure.kind is FailureKind.CANCELLED


def test_connections_leave_files_for_the_rest() -> None:
    assert connections_within(8192, 1024) == 1024 - RESERVED_FILES
    assert connections_within(100, 1024) == 100
    assert connections_within(100, 16) == 1
