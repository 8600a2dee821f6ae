"""Events of the mesh that come together: the client sees each, in order, as if they had come one by one."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from common.errors import Failure, FailureKind
from common.messages.control import FinishReason
from services.gateway.stream import Failed, GenerationRequest, StreamEvent
from services.gateway.testing import emitted, placed, token_by_token

Ids = Callable[[str], tuple[int, ...]]
Serve = Callable[..., Awaitable[Any]]

TOGETHER = pytest.mark.parametrize("together", [1, 2, 5, 100])
PROMPT = {"model": "tiny/model", "prompt": "hello"}


async def text_of(served: Any, body: dict[str, Any]) -> str:
    response = await served.client.post("/v1/completions", json=body)
    text: str = await response.text()
    assert response.status == 200, text
    return text


@TOGETHER
async def test_every_token_stays_an_event_of_its_own(serve: Serve, ids: Ids, together: int) -> None:
    served = await serve(token_by_token([ids("abcdefgh"), ids("1234")], FinishReason.LENGTH), together=together)
    usage = {"stream_options": {"include_usage": True}}
    text = await text_of(served, {**PROMPT, "stream": True, "n": 2, **usage})
    *chunks, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    *events, last = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    said = [(c["index"], c["text"]) for event in events for c in event["choices"] if c["text"]]
    assert said == [(i, t) for pair in zip("abcd", "1234", strict=True) for i, t in enumerate(pair)] + [
        (0, letter) for letter in "efgh"
    ]
    assert last["usage"]["completion_tokens"] == 12


@TOGETHER
@pytest.mark.parametrize("stream", [True, False])
async def test_what_comes_after_a_stop_string_is_not_said_and_not_counted(
    serve: Serve, ids: Ids, together: int, stream: bool
) -> None:
    served = await serve(token_by_token([ids("one END two"), ids("abcdefghijk")]), together=together)
    body = {**PROMPT, "stop": " END", "n": 2, "stream": stream}
    text = await text_of(served, body)
    if stream:
        chunks = [json.loads(chunk.removeprefix("data: ")) for chunk in text.split("\n\n")[:-2]]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        said = ["".join(c["text"] for c in choices if c["index"] == i) for i in (0, 1)]
        assert [c["finish_reason"] for c in choices if c["index"] == 0][-1] == "stop"
    else:
        answer = json.loads(text)
        said = [choice["text"] for choice in answer["choices"]]
        assert answer["usage"]["completion_tokens"] == len("one END") + 11
    assert said == ["one", "abcdefghijk"]
    await served.mesh.streams[0].wait_closed()


@TOGETHER
async def test_a_failure_comes_after_the_tokens_before_it(serve: Serve, ids: Ids, together: int) -> None:
    def script(request: GenerationRequest) -> list[StreamEvent]:
        tokens = [emitted(request, [token], first=i) for i, token in enumerate(ids("abc"))]
        return [placed(), *tokens, Failed(Failure(FailureKind.DECODE_LOST, "it broke"))]

    served = await serve(script, together=together)
    *events, error, end = (await text_of(served, {**PROMPT, "stream": True})).split("\n\n")
    assert end == ""
    assert [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events] == ["a", "b", "c"]
    assert "it broke" in json.loads(error.removeprefix("data: "))["error"]["message"]
