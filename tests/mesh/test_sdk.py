"""The openai SDK against a real mesh of processes: what its users do, and the errors that they catch."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI

from services.text.tokenizer import Tokenizer
from tests.mesh.inprocess import mesh_config
from tests.mesh.processes import Processes, processes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

MODEL = "smollm2"
PROMPT = "Tell me about 日本 and about the sea."
MESSAGES: Any = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": PROMPT}]
LONG: Any = {"ignore_eos": True}

T = TypeVar("T")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(deterministic_folder: Path) -> AsyncIterator[Processes]:
    # Room for 2 requests at P, 32 at D and 4 in the queue: a flood is more than that.
    async with processes(deterministic_folder, mesh_config(), heartbeat_s=0.1, lease_s=2.0, queue=4) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(mesh: Processes) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
    await mesh.until_nothing_is_held()


async def blocking(mesh: Processes, ask: Callable[[OpenAI], T]) -> T:
    """What `ask` gets with the SDK's blocking client."""

    def run() -> T:
        with OpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            return ask(client)

    return await asyncio.to_thread(run)


async def test_both_clients_get_the_same_chat_answer_streamed_or_not(mesh: Processes, client: AsyncOpenAI) -> None:
    # The library's overloads do not know that `stream` is absent from a mapping.
    asked: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 60, "temperature": 0, "extra_body": LONG}
    whole = await client.chat.completions.create(**asked)
    assert whole.usage is not None
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 60)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 60
    assert whole.choices[0].message.role == "assistant"
    expected = whole.choices[0].message.content
    assert expected

    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert {chunk.usage for chunk in chunks} == {None}
    assert chunks[-1].choices[0].finish_reason == "length"

    def by_the_blocking_one(client: OpenAI) -> tuple[str | None, str]:
        streamed = client.chat.completions.create(**asked, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        return client.chat.completions.create(**asked).choices[0].message.content, text

    assert await blocking(mesh, by_the_blocking_one) == (expected, expected)


async def test_both_clients_get_the_same_completion_streamed_or_not(mesh: Processes, client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "extra_body": LONG}
    whole = await client.completions.create(**asked)
    expected = whole.choices[0].text
    assert expected
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(PROMPT.encode())
    chunks = [chunk async for chunk in await client.completions.create(**asked, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected

    def by_the_blocking_one(client: OpenAI) -> tuple[str, list[str]]:
        pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
        return client.completions.create(**asked).choices[0].text, pieces

    text, pieces = await blocking(mesh, by_the_blocking_one)
    assert text == "".join(pieces) == expected
    assert len(pieces) > 1


async def test_prompts_as_tokens_and_several_at_once(client: AsyncOpenAI, deterministic_folder: Path) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 20, "temperature": 0, "extra_body": LONG}
    tokenizer = Tokenizer.load(deterministic_folder)
    prompts = [PROMPT, "And now the mountains."]
    ids = [list(tokenizer.encode(prompt, add_special_tokens=False)) for prompt in prompts]
    alone = [(await client.completions.create(**asked, prompt=prompt)).choices[0].text for prompt in prompts]
    by_ids = [(await client.completions.create(**asked, prompt=tokens)).choices[0].text for tokens in ids]
    assert by_ids == alone
    batches: list[Any] = [prompts, ids]
    for batch in batches:
        both = await client.completions.create(**asked, prompt=batch)
        assert [(choice.index, choice.text) for choice in both.choices] == list(enumerate(alone))
        assert both.usage is not None
        assert both.usage.prompt_tokens == sum(map(len, ids))
        streamed = ["", ""]
        async for chunk in await client.completions.create(**asked, prompt=batch, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        assert streamed == alone


async def test_a_prompt_is_said_again_with_its_logprobs(client: AsyncOpenAI, deterministic_folder: Path) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 5, "temperature": 0, "logprobs": 2, "extra_body": LONG}
    ids = list(Tokenizer.load(deterministic_folder).encode(PROMPT, add_special_tokens=False))
    plain = await client.completions.create(**asked, prompt=PROMPT)
    forms: list[Any] = [PROMPT, ids]
    for prompt in forms:
        echoed = (await client.completions.create(**asked, prompt=prompt, echo=True)).choices[0]
        assert echoed.text == PROMPT + plain.choices[0].text
        assert echoed.logprobs is not None
        logprobs = echoed.logprobs.token_logprobs or []
        assert len(logprobs) == len(ids) + 5
        assert [place for place, logprob in enumerate(logprobs) if logprob is None] == [0]


async def test_usage_comes_in_a_chunk_of_its_own_at_the_end(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=5,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=LONG,
    )
    *others, last = [chunk async for chunk in stream]
    assert {chunk.usage for chunk in others} == {None}
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 10


async def test_max_tokens_1_is_one_token(client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 1, "temperature": 0, "logprobs": True}
    whole = await client.chat.completions.create(**asked, extra_body=LONG)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 1
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.content or ()) == 1


async def test_three_seeded_answers_differ_and_are_repeatable_streamed_too(client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 24, "n": 3, "temperature": 1, "extra_body": LONG}
    first, second, other = await asyncio.gather(
        *(client.chat.completions.create(**asked, seed=seed) for seed in (7, 7, 8))
    )
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in second.choices] == texts
    assert [choice.message.content for choice in other.choices] != texts
    streamed = ["", "", ""]
    async for chunk in await client.chat.completions.create(**asked, seed=7, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


async def test_a_stop_string_ends_the_answer_before_itself(client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "extra_body": LONG}
    whole = (await client.completions.create(**asked)).choices[0].text
    stop = next(sign for sign in whole[5:] if sign.isascii())
    stopped = await client.completions.create(**asked, stop=[stop, "never said"])
    assert stopped.choices[0].text == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    chunks = [chunk async for chunk in await client.completions.create(**asked, stop=stop, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole[: whole.index(stop)]


async def test_logprobs_of_both_kinds(client: AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, logprobs=True, top_logprobs=2, extra_body=LONG
    )
    assert chat.choices[0].logprobs is not None
    entries = chat.choices[0].logprobs.content or []
    assert len(entries) == 8
    assert all(len(entry.top_logprobs) == 2 and entry.logprob < 0 for entry in entries)
    plain = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, logprobs=2, extra_body=LONG)
    logprobs = plain.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or ()) == len(logprobs.token_logprobs or ()) == len(logprobs.text_offset or ()) == 8


async def test_the_models(mesh: Processes, client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    assert await blocking(mesh, lambda client: [model.id for model in client.models.list()]) == [MODEL]
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.models.retrieve("other")


async def test_a_mistake_and_an_unknown_model_have_their_errors(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as mistaken:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=0)
    assert mistaken.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as too_long:
        await client.completions.create(model=MODEL, prompt="x" * 9000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="other", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=0, stream=True)


async def test_in_a_flood_each_is_answered_or_told_to_come_again(client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": PROMPT, "max_tokens": 100, "temperature": 0, "extra_body": LONG}
    expected = (await client.completions.create(**asked)).choices[0].text
    outcomes = await asyncio.gather(*(client.completions.create(**asked) for _ in range(100)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, openai.RateLimitError)]
    answers = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert refused
    assert len(refused) + len(answers) == 100
    assert {answer.choices[0].text for answer in answers} == {expected}
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    patient = client.with_options(max_retries=5)
    assert (await patient.completions.create(**asked)).choices[0].text == expected


async def test_the_blocking_client_leaving_a_stream_frees_everything(mesh: Processes, client: AsyncOpenAI) -> None:
    def leave_early(client: OpenAI) -> None:
        with client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=6000, n=4, stream=True, extra_body=LONG
        ) as stream:
            next(iter(stream))

    await until_cancelled_by(mesh, lambda: blocking(mesh, leave_early))


async def test_a_client_leaving_a_stream_frees_everything(mesh: Processes, client: AsyncOpenAI) -> None:
    async def leave_early() -> None:
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=6000, stream=True, extra_body=LONG
        )
        await anext(aiter(stream))
        await stream.close()

    await until_cancelled_by(mesh, leave_early)


async def test_a_client_that_gives_up_before_its_answer_frees_everything(mesh: Processes, client: AsyncOpenAI) -> None:
    async def give_up() -> None:
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=1.0).completions.create(
                model=MODEL, prompt=PROMPT, max_tokens=8000, extra_body=LONG
            )

    await until_cancelled_by(mesh, give_up)


async def test_a_worker_killed_in_mid_answer_is_an_error_to_try_again(mesh: Processes, client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": PROMPT, "max_tokens": 6000, "extra_body": LONG}
    doomed = asyncio.ensure_future(client.completions.create(**asked))
    stream = await client.completions.create(**asked, stream=True)
    await anext(aiter(stream))
    mesh.local.kill("d0", signal.SIGKILL)
    with pytest.raises(openai.InternalServerError) as caught:
        await doomed
    assert (caught.value.status_code, caught.value.code) == (503, "decode_lost")
    assert "retry-after" in caught.value.response.headers
    with pytest.raises(openai.APIError, match="d0"):
        _ = [chunk async for chunk in stream]
    await mesh.local.wait_ready(30)
    await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2)


async def until_cancelled_by(mesh: Processes, act: Callable[[], Any]) -> None:
    """`act` leaves a request that had far to go; it ends as cancelled, and nothing of it is held any more."""
    before = await cancelled(mesh)
    await act()
    async with asyncio.timeout(10):
        while await cancelled(mesh) == before:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    await mesh.until_nothing_is_held()


async def cancelled(mesh: Processes) -> float:
    return (await mesh.metrics()).get('pdmesh_requests_total{outcome="cancelled"}', 0.0)
