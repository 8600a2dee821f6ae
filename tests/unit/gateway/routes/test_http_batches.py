"""Several prompts in one request: numbered as OpenAI numbers them, summed, bounded, and all or nothing."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from common.errors import Failure, FailureKind
from common.messages.control import FinishReason
from services.gateway.openai.requests import MOST_ANSWERS, MOST_PROMPTS
from services.gateway.stream import Failed, GenerationRequest, PromptCached, StreamEvent
from services.gateway.testing import emitted, placed

Ids = Callable[[str], tuple[int, ...]]
Serve = Callable[..., Awaitable[Any]]
BODY = {"model": "tiny/model"}


def shouted(request: GenerationRequest) -> list[StreamEvent]:
    """Choice c answers with its prompt's bytes in reverse, c + 1 of them at least twice as long."""
    events: list[StreamEvent] = [placed(split=len(request.prompt)), PromptCached(len(request.prompt) - 1)]
    for choice in range(request.choices):
        answer = request.prompt[::-1] * (choice + 1)
        for first, token in enumerate(answer):
            finish = FinishReason.LENGTH if first == len(answer) - 1 else None
            events.append(emitted(request, [token], choice=choice, first=first, finish=finish))
    return events


async def ask(served: Any, **body: Any) -> tuple[int, dict[str, Any], Any]:
    response = await served.client.post("/v1/completions", json={**BODY, **body})
    return response.status, await response.json(), response.headers


def texts(events: str) -> dict[int, str]:
    """By index, of a stream that has ended as it should."""
    *chunks, done, end = events.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    found: dict[int, str] = {}
    for chunk in chunks:
        for choice in json.loads(chunk.removeprefix("data: "))["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return found


EXPECTED = {0: "cba", 1: "cbacba", 2: "zyxw", 3: "zyxwzyxw", 4: "!", 5: "!!"}


@pytest.mark.parametrize("as_tokens", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_choice_c_of_prompt_i_is_i_times_n_plus_c(serve: Serve, ids: Ids, stream: bool, as_tokens: bool) -> None:
    served = await serve(shouted)
    prompts = ["abc", "wxyz", "!"]
    body = {"prompt": [list(ids(p)) for p in prompts] if as_tokens else prompts, "n": 2, "max_tokens": 9}
    if stream:
        response = await served.client.post("/v1/completions", json={**BODY, **body, "stream": True})
        assert texts(await response.text()) == EXPECTED
        headers = response.headers
    else:
        status, answer, headers = await ask(served, **body)
        assert status == 200, answer
        assert [choice["index"] for choice in answer["choices"]] == list(range(6))
        assert {choice["index"]: choice["text"] for choice in answer["choices"]} == EXPECTED
        usage = {"prompt_tokens": 8, "completion_tokens": 24, "total_tokens": 32}
        assert answer["usage"] == {**usage, "prompt_tokens_details": {"cached_tokens": 5}}
    assert headers["x-pdmesh-placement"].endswith("split=3; kv-bytes=4096"), "that of the first prompt"
    assert [request.request for request in served.mesh.requests] == ["r1", "r1-1", "r1-2"]
    assert [request.call for request in served.mesh.requests] == [None, "r1", "r1"]
    assert all(stream.is_closed for stream in served.mesh.streams)
    assert ("finished", "r1", 24, 0.0) in served.observer.notes


async def test_a_list_of_one_is_one_prompt(serve: Serve, ids: Ids) -> None:
    served = await serve(shouted)
    assert (await ask(served, prompt=["abc"]))[1]["choices"] == (await ask(served, prompt="abc"))[1]["choices"]


async def test_equal_prompts_get_noise_of_their_own_unless_the_client_says_the_seed(serve: Serve) -> None:
    served = await serve(shouted)
    await ask(served, prompt=["a", "a", "a"])
    await ask(served, prompt=["a", "a", "a"], seed=5)
    seeds = [request.sampling.seed for request in served.mesh.requests]
    assert len(set(seeds[:3])) == 3
    assert seeds[0] == 1001, "the first is what it would be alone"
    assert seeds[3:] == [5, 5, 5]


async def test_a_prompt_whose_choices_have_all_ended_is_dropped_while_others_go_on(serve: Serve, ids: Ids) -> None:
    def script(request: GenerationRequest) -> list[StreamEvent]:
        events: list[StreamEvent] = [placed()]
        return [*events, *(emitted(request, [token], first=i) for i, token in enumerate(request.prompt))]

    served = await serve(script)
    asking = asyncio.ensure_future(ask(served, prompt=["a STOP b", "never ends"], stop="STOP"))
    await served.mesh.first_stream()
    first, second = served.mesh.streams
    await first.wait_closed()
    await second.wait_read()
    assert not second.is_closed
    asking.cancel()
    await second.wait_closed()


@pytest.mark.parametrize("stream", [False, True])
async def test_one_that_fails_fails_all_and_the_others_are_dropped(serve: Serve, stream: bool) -> None:
    def script(request: GenerationRequest) -> list[StreamEvent]:
        if request.call is None:
            return [placed(), emitted(request, [request.prompt[0]])]
        return [placed(), Failed(Failure(FailureKind.DECODE_LOST, "it broke"))]

    served = await serve(script)
    response = await served.client.post("/v1/completions", json={**BODY, "prompt": ["a", "b"], "stream": stream})
    text = await response.text()
    assert "prompt[1]: it broke" in text
    if stream and response.status == 200:
        assert "[DONE]" not in text
    else:
        assert response.status == 503
    for one in served.mesh.streams:
        await one.wait_closed()
    assert [note[0] for note in served.observer.notes].count("failed") == 1


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": ["ok", ""]}, "prompt[1]", "prompt[1]: the prompt has no tokens"),
        ({"prompt": [[1], []]}, "prompt[1]", "prompt[1]: the prompt has no tokens"),
        ({"prompt": ["ok", "x" * 101]}, "prompt[1]", "prompt[1]: this model's maximum context length is 100 tokens"),
        ({"prompt": ["ok", "x" * 90], "max_tokens": 11}, "max_tokens", "prompt[1]: this model's maximum context"),
        ({"prompt": [[1], [2, 999]]}, "prompt[1]", "prompt[1][1]=999 is not a token id"),
        ({"prompt": ["ok", [1]]}, "prompt[1]", "prompt[1] is a list"),
        ({"prompt": ["ok", 5]}, "prompt[1]", "prompt[1] is a int"),
        ({"prompt": ["x"] * (MOST_PROMPTS + 1)}, "prompt", f"at most {MOST_PROMPTS}"),
        ({"prompt": ["x"] * 100, "n": 3}, "n", f"at most {MOST_ANSWERS}"),
    ],
)
async def test_what_is_wrong_with_one_is_a_400_that_names_it(
    serve: Serve, body: dict[str, Any], param: str, words: str
) -> None:
    served = await serve(shouted)
    status, answer, _ = await ask(served, **body)
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert words in answer["error"]["message"]
    assert served.mesh.requests == [], "none of them was begun"


async def test_as_many_as_may_be(serve: Serve) -> None:
    served = await serve(shouted)
    status, answer, _ = await ask(served, prompt=["ab"] * MOST_PROMPTS, n=MOST_ANSWERS // MOST_PROMPTS)
    assert status == 200
    assert len(answer["choices"]) == MOST_ANSWERS
