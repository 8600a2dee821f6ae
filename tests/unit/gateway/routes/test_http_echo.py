"""The prompt before its answers: its text, its logprobs, and answers of nothing."""

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from common.messages.control import EmittedTokens, FinishReason
from common.messages.sampling import TokenLogprobs
from services.gateway.stream import GenerationRequest, StreamEvent
from services.gateway.testing import placed

Ids = Callable[[str], tuple[int, ...]]
Serve = Callable[..., Awaitable[Any]]
BODY = {"model": "tiny/model", "prompt": "né", "max_tokens": 2}


def score(token: int) -> TokenLogprobs:
    return TokenLogprobs(-token / 100, ((token, -token / 100), (ord("z"), -9.0)))


def scoring(answer: Iterable[int]) -> Callable[[GenerationRequest], list[StreamEvent]]:
    """What a D says: the scores of the prompt with the first token of choice 0, where they are asked for."""

    def script(request: GenerationRequest) -> list[StreamEvent]:
        params, events = request.sampling, [placed(split=0)]
        scored = tuple(map(score, request.prompt[1:])) if params.prompt_logprobs is not None else ()
        made = tuple(answer)[: request.max_tokens]
        for first, token in enumerate(made):
            for choice in range(request.choices):
                finish = FinishReason.LENGTH if first == len(made) - 1 else None
                known = () if params.logprobs is None else (score(token),)
                prompt = scored if (choice, first) == (0, 0) else ()
                events.append(EmittedTokens(request.request, choice, first, (token,), finish, known, prompt))
        return events

    return script


async def ask(served: Any, **body: Any) -> dict[str, Any]:
    response = await served.client.post("/v1/completions", json={**BODY, **body})
    answer: dict[str, Any] = await response.json()
    assert response.status == 200, answer
    return answer


async def streamed(served: Any, **body: Any) -> list[dict[str, Any]]:
    response = await served.client.post("/v1/completions", json={**BODY, **body, "stream": True})
    *chunks, done, _ = (await response.text()).split("\n\n")
    assert done == "data: [DONE]"
    return [choice for chunk in chunks for choice in json.loads(chunk.removeprefix("data: "))["choices"]]


async def test_the_prompt_comes_first(serve: Serve, ids: Ids) -> None:
    served = await serve(scoring(ids("xy")))
    for prompt in ("né", list(ids("né"))):
        (choice,) = (await ask(served, prompt=prompt, echo=True))["choices"]
        assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == ("néxy", None, "length")
    assert served.mesh.requests[0].sampling.prompt_logprobs is None, "its text needs no scores"


async def test_in_a_stream_it_comes_with_the_first_token_of_each_choice(serve: Serve, ids: Ids) -> None:
    served = await serve(scoring(ids("xy")))
    choices = await streamed(served, prompt=["né", "b"], echo=True, n=2)
    for index, expected in enumerate(["néx", "néx", "bx", "bx"]):
        assert [c["text"] for c in choices if c["index"] == index] == [expected, "y", ""]


async def test_stop_strings_are_not_looked_for_in_it(serve: Serve, ids: Ids) -> None:
    served = await serve(scoring(ids("xyz")))
    (choice,) = (await ask(served, prompt="stay", echo=True, stop="y", max_tokens=3))["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("stayx", "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_of_prompt_and_answer_run_in_parallel(serve: Serve, ids: Ids, stream: bool) -> None:
    served = await serve(scoring(ids("xy")))
    body = {"prompt": ["abc", "ne"], "echo": True, "logprobs": 2, "n": 2}
    if stream:
        parts = [c for c in await streamed(served, **body) if c["index"] == 1 and c["logprobs"]]
        logprobs = {name: [v for part in parts for v in part["logprobs"][name]] for name in parts[0]["logprobs"]}
        assert "".join(part["text"] for part in parts) == "abcxy"
    else:
        choices = (await ask(served, **body))["choices"]
        assert [choice["text"] for choice in choices] == ["abcxy", "abcxy", "nexy", "nexy"]
        assert choices[0]["logprobs"] == choices[1]["logprobs"], "choices of one prompt say the same of it"
        logprobs = choices[1]["logprobs"]
    tokens = [ids(letter)[0] for letter in "abcxy"]
    assert logprobs["tokens"] == list("abcxy")
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
    assert logprobs["token_logprobs"] == [None, *(-token / 100 for token in tokens[1:])]
    assert logprobs["top_logprobs"][0] is None
    assert all(letter in top for letter, top in zip("bcxy", logprobs["top_logprobs"][1:], strict=True))
    assert [request.sampling.prompt_logprobs for request in served.mesh.requests] == [2, 2]


async def test_a_prompt_scored_and_nothing_added(serve: Serve, ids: Ids, eos: int) -> None:
    """What lm-evaluation-harness asks, as its older and as its newer versions do."""
    served = await serve(scoring([eos]))
    answer = await ask(served, prompt=["abc", "de"], echo=True, logprobs=1, max_tokens=0)
    first, second = answer["choices"]
    assert (first["text"], first["finish_reason"]) == ("abc", "length")
    assert first["logprobs"]["tokens"] == list("abc")
    assert second["logprobs"]["token_logprobs"][0] is None
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] == 5
    (again, _) = (await ask(served, prompt=["abc", "de"], echo=True, logprobs=1, max_tokens=1))["choices"]
    assert again["logprobs"]["token_logprobs"][:-1] == first["logprobs"]["token_logprobs"]
    choices = await streamed(served, prompt="abc", echo=True, max_tokens=0)
    assert [(c["text"], c["finish_reason"]) for c in choices] == [("abc", None), ("", "length")]


async def test_what_does_not_go_together(serve: Serve, ids: Ids) -> None:
    served = await serve(scoring(ids("x")), allow_placement_override=True)
    for body, param in (
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens"),
        ({"echo": True, "logprobs": 1, "pdmesh": {"split": "full"}}, "pdmesh.split"),
        ({"echo": "yes"}, "echo"),
    ):
        response = await served.client.post("/v1/completions", json={**BODY, **body})
        assert (response.status, (await response.json())["error"]["param"]) == (400, param)
    await ask(served, echo=True, logprobs=1, pdmesh={"split": 0})
    await ask(served, echo=True, pdmesh={"split": "full"})
