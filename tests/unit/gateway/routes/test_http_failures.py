"""What goes wrong, and what the client sees of it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from common.errors import Failure, FailureKind
from common.ids import InstanceId
from services.gateway.http.server import ConnectionLimits, build_runner
from services.gateway.stream import Failed, GenerationRequest, StreamEvent
from services.gateway.testing import Script, emitted, placed, token_by_token

Ids = Callable[[str], tuple[int, ...]]
Serve = Callable[..., Awaitable[Any]]

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"
HELLO = {"model": "tiny/model", "messages": [{"role": "user", "content": "hello"}]}
PROMPT = {"model": "tiny/model", "prompt": "hello"}

STATUS = {
    "invalid_request": 400,
    "overloaded": 429,
    "no_instance": 503,
    "prefill_lost": 503,
    "decode_lost": 503,
    "handoff_failed": 503,
    "deadline_exceeded": 504,
    "engine_failed": 500,
    "shutting_down": 503,
    "cancelled": 500,
}


def failing(kind: FailureKind, *tokens: int) -> Script:
    """A script that gives `tokens`, then fails."""

    def script(request: GenerationRequest) -> list[StreamEvent]:
        begin: list[StreamEvent] = [placed(), emitted(request, tokens)] if tokens else []
        return [*begin, Failed(Failure(kind, "it broke", InstanceId("d0")))]

    return script


def silent_after(*tokens: int) -> Script:
    """A script that gives `tokens`, then nothing for ever."""

    def script(request: GenerationRequest) -> list[StreamEvent]:
        return [placed(), emitted(request, tokens)] if tokens else [placed()]

    return script


@pytest.mark.parametrize("kind", list(FailureKind))
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_is_a_status(serve: Serve, kind: FailureKind, stream: bool) -> None:
    served = await serve(failing(kind), retry_after_s=7)
    response = await served.client.post(CHAT, json={**HELLO, "stream": stream})
    error = (await response.json())["error"]
    assert response.status == STATUS[kind]
    assert error["code"] == kind.value
    assert error["type"] == ("invalid_request_error" if kind is FailureKind.INVALID_REQUEST else kind.value)
    assert error["message"] == "it broke (instance 'd0')"
    retryable = Failure(kind, "").is_retryable
    assert response.headers.get("Retry-After") == ("7" if retryable else None)
    assert response.headers["x-should-retry"] == ("true" if retryable else "false")
    assert response.headers["x-request-id"] == "r1"
    assert served.mesh.streams[0].is_closed
    assert served.observer.notes[-1][:3] == ("failed", "r1", kind.value)


async def test_overload_says_when_to_come_again(serve: Serve) -> None:
    served = await serve(failing(FailureKind.OVERLOADED))
    response = await served.client.post(CHAT, json=HELLO)
    assert (response.status, response.headers["Retry-After"]) == (429, "1")


async def test_a_failure_after_the_first_token_is_the_last_event(serve: Serve, ids: Ids) -> None:
    served = await serve(failing(FailureKind.DECODE_LOST, *ids("ab")))
    response = await served.client.post(CHAT, json={**HELLO, "stream": True})
    text = await response.text()
    *_, last, end = text.split("\n\n")
    assert response.status == 200
    assert end == ""
    assert "[DONE]" not in text
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "decode_lost"
    assert served.mesh.streams[0].is_closed
    assert [note[0] for note in served.observer.notes] == ["started", "first_token", "token", "failed"]


async def test_the_connection_closes_after_a_broken_stream(serve: Serve, ids: Ids) -> None:
    served = await serve(failing(FailureKind.DECODE_LOST, *ids("ab")))
    body = json.dumps({**HELLO, "stream": True}).encode()
    reader, writer = await asyncio.open_connection(served.client.host, served.client.port)
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert b"decode_lost" in received
    assert received.endswith(b"0\r\n\r\n")


async def test_a_failure_of_a_whole_answer_is_a_status_even_after_tokens(serve: Serve, ids: Ids) -> None:
    served = await serve(failing(FailureKind.DECODE_LOST, *ids("ab")))
    response = await served.client.post(CHAT, json=HELLO)
    assert response.status == 503
    assert (await response.json())["error"]["type"] == "decode_lost"


async def test_a_silent_mesh_ends_at_the_deadline(serve: Serve) -> None:
    served = await serve(silent_after(), deadline_s=0.05)
    for stream in (False, True):
        response = await served.client.post(CHAT, json={**HELLO, "stream": stream})
        assert response.status == 504
        assert (await response.json())["error"]["code"] == "deadline_exceeded"
    assert all(stream.is_closed for stream in served.mesh.streams)


async def test_the_deadline_holds_within_a_stream(serve: Serve, ids: Ids) -> None:
    served = await serve(silent_after(*ids("ab")), deadline_s=0.05)
    response = await served.client.post(CHAT, json={**HELLO, "stream": True})
    *_, last, _ = (await response.text()).split("\n\n")
    assert (response.status, json.loads(last[6:])["error"]["type"]) == (200, "deadline_exceeded")
    assert served.observer.notes[-1][2] == "deadline_exceeded"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_closes_its_stream(serve: Serve, stream: bool) -> None:
    served = await serve(silent_after(5, 6))
    body = json.dumps({**HELLO, "stream": stream}).encode()
    _, writer = await asyncio.open_connection(served.client.host, served.client.port)
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    async with asyncio.timeout(20):
        mesh_stream = await served.mesh.first_stream()
        await mesh_stream.wait_read()
        assert not mesh_stream.is_closed
        writer.close()
        await writer.wait_closed()
        await mesh_stream.wait_closed()
        await served.observer.has_failed.wait()
    assert served.observer.notes[-1][:3] == ("failed", "r1", "cancelled")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {**HELLO, "temperature": 3}, "temperature"),
        (CHAT, {**HELLO, "tools": []}, "tools"),
        (PLAIN, {**PROMPT, "prompt": ["a", ""]}, "prompt[1]"),
        (PLAIN, {**PROMPT, "prompt": ""}, "prompt"),
        (PLAIN, {**PROMPT, "prompt": []}, "prompt"),
        (PLAIN, {**PROMPT, "prompt": "x" * 100}, "prompt"),
        (PLAIN, {**PROMPT, "max_tokens": 96}, "max_tokens"),
        (PLAIN, {**PROMPT, "min_tokens": 96}, "max_tokens"),
    ],
)
async def test_what_is_refused_never_reaches_the_mesh(
    serve: Serve, path: str, body: dict[str, Any], param: str
) -> None:
    served = await serve(token_by_token([[5]]))
    response = await served.client.post(path, json=body)
    error = (await response.json())["error"]
    assert (response.status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"] == "r1"
    assert served.mesh.requests == []
    assert [note[0] for note in served.observer.notes] == ["refused"]


async def test_too_long_a_text_is_a_400_that_tells_the_context(serve: Serve) -> None:
    served = await serve(silent_after())
    for path, body in ((PLAIN, {**PROMPT, "prompt": "x" * 9_000}), (CHAT, {**HELLO, "messages": long_talk()})):
        response = await served.client.post(path, json=body)
        error = (await response.json())["error"]
        assert (response.status, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
        assert "context length is 100 tokens; the prompt has at least " in error["message"]
    assert served.mesh.streams == []


def long_talk() -> list[dict[str, str]]:
    return [{"role": "user", "content": "x" * 9_000}]


@pytest.mark.parametrize("head", [b"", b"POST /v1/completions HTTP/1.1\r\nX-Slow: ", b"GET /health HTTP/1.1\r\n\r\n"])
async def test_a_connection_that_does_not_ask_is_closed(serve: Serve, head: bytes) -> None:
    served = await serve(silent_after())
    runner = build_runner(served.client.app, ConnectionLimits(idle_s=0.05))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(head)
        async with asyncio.timeout(10):
            await reader.read()  # to its end
        writer.close()
        await writer.wait_closed()
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (b"Content-Length: -5\r\n\r\n", "Invalid character in Content-Length"),
        (b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde", "Can not decode content-encoding"),
    ],
)
async def test_what_is_not_http_is_answered_and_does_not_fill_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture, wrong: bytes, told: str
) -> None:
    served = await serve(silent_after())
    for _ in range(20):
        reader, writer = await asyncio.open_connection(served.client.host, served.client.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + wrong)
        assert b" 400 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert line.message.startswith("a request was not HTTP: ")
    assert told in line.message


async def test_too_large_a_body_is_a_413(serve: Serve) -> None:
    served = await serve(token_by_token([[5]]))
    response = await served.client.post(PLAIN, json={**PROMPT, "prompt": "x" * 10_000})
    error = (await response.json())["error"]
    assert (response.status, error["code"]) == (413, "body_too_large")
    assert "10000 bytes" in error["message"]


async def test_an_unknown_path_and_method_have_the_envelope(serve: Serve) -> None:
    served = await serve(token_by_token([[5]]))
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", CHAT, 405)):
        response = await served.client.request(method, path)
        assert response.status == status
        assert path in (await response.json())["error"]["message"]


async def test_a_refusing_template_is_a_400_with_its_words(serve: Serve) -> None:
    served = await serve(token_by_token([[5]]), template="{{ raise_exception('no system role') }}")
    response = await served.client.post(CHAT, json=HELLO)
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "messages")
    assert "no system role" in error["message"]


async def test_a_bug_is_a_500_without_its_details(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def script(request: GenerationRequest) -> list[StreamEvent]:
        raise ZeroDivisionError("secret")

    served = await serve(script)
    response = await served.client.post(CHAT, json=HELLO)
    text = await response.text()
    assert response.status == 500
    assert json.loads(text)["error"]["type"] == "server_error"
    assert "secret" not in text
    assert "secret" in caplog.text
