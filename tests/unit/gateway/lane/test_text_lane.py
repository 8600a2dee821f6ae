"""Text work off the event loop, many pieces in one hop."""

import asyncio
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

import pytest

from common.ids import RequestId
from common.messages.control import EmittedTokens, FinishReason
from services.gateway.lane.text_lane import TextLane, TextTooLong
from services.gateway.lane.text_thread import LaneClosed, TextThread, WorkPanicked
from services.text.chat_template import ChatTemplate, TemplateRefused
from services.text.choice import ChoiceRules
from services.text.tokenizer import Tokenizer

Ids = Callable[[str], tuple[int, ...]]


def event(tokens: tuple[int, ...], finish: FinishReason | None = None) -> EmittedTokens:
    return EmittedTokens(RequestId("r"), 0, 0, tokens, finish)


async def test_many_streams_keep_their_texts_apart(spy_tokenizer: Tokenizer, ids: Ids) -> None:
    async with TextLane(spy_tokenizer, None) as lane:
        choices = lane.open_choices(ChoiceRules(), 50)
        words = [f"stream {i} 🦊" for i in range(50)]
        texts = [""] * 50
        for position in range(len(ids(words[0]))):
            events = [event(ids(word)[position : position + 1]) for word in words]
            pushed = [lane.push_many([pair]) for pair in zip(choices, events, strict=True)]
            for i, (delta,) in enumerate(await asyncio.gather(*pushed)):
                assert delta is not None
                texts[i] += delta.text
    assert [text[:9] for text in texts] == [word[:9] for word in words]


async def test_what_queues_up_comes_back_in_one_wake_up() -> None:
    loop, gate = CountingLoop(), threading.Event()
    thread = TextThread("test")
    thread.start(cast(asyncio.AbstractEventLoop, loop))
    calls = [asyncio.ensure_future(thread.run(gate.wait))]
    calls += [asyncio.ensure_future(thread.run(lambda: True)) for _ in range(20)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*calls) == [True] * 21
    assert loop.wake_ups <= 2
    await thread.close()


class CountingLoop:
    """The running loop as far as a text thread uses it, counting its wake-ups."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.create_future = self._loop.create_future
        self.wake_ups = 0

    def call_soon_threadsafe(self, callback: Callable[..., None], *args: object) -> None:
        self.wake_ups += 1
        self._loop.call_soon_threadsafe(callback, *args)


async def test_a_cancelled_call_harms_no_other(spy_tokenizer: Tokenizer, ids: Ids) -> None:
    async with TextLane(spy_tokenizer, None) as lane:
        calls = [asyncio.ensure_future(lane.encode_text("abc", 100)) for _ in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        assert [await calls[0], await calls[2]] == [ids("abc"), ids("abc")]


async def test_a_text_that_cannot_fit_is_refused_without_being_encoded(spy_tokenizer: Any) -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, datetime.now)
    least = spy_tokenizer.least_tokens("x" * 10_000)
    assert least > 1
    async with TextLane(spy_tokenizer, template) as lane:
        for refused in (
            lane.encode_text("x" * 10_000, least - 1),
            lane.encode_chat([{"role": "user", "content": "x" * 10_000}], least - 1),
        ):
            with pytest.raises(TextTooLong) as caught:
                await refused
            assert caught.value.least_tokens == least
        assert spy_tokenizer.threads == set()
        assert len(await lane.encode_text("x" * 10_000, least)) >= least


async def test_errors_come_back_to_the_caller(spy_tokenizer: Tokenizer) -> None:
    async with TextLane(spy_tokenizer, None) as lane:
        with pytest.raises(TemplateRefused, match="no chat template"):
            await lane.encode_chat([{"role": "user", "content": "hi"}], 100)


async def test_leaving_ends_the_threads_after_what_was_asked(spy_tokenizer: Tokenizer, ids: Ids) -> None:
    before = threading.active_count()
    async with TextLane(spy_tokenizer, None) as lane:
        assert threading.active_count() == before + 2
        last = asyncio.ensure_future(lane.encode_text("abc", 100))
        await asyncio.sleep(0)
    assert await last == ids("abc")
    assert threading.active_count() == before
    with pytest.raises(LaneClosed, match="not running"):
        await lane.encode_text("abc", 100)


class Panic(BaseException):
    """As pyo3_runtime.PanicException, which is no Exception either."""


def panic() -> None:
    raise Panic("index out of bounds")


async def test_a_panic_fails_one_call_and_the_thread_goes_on() -> None:
    thread = TextThread("test")
    thread.start(asyncio.get_running_loop())
    async with asyncio.timeout(10):
        with pytest.raises(WorkPanicked, match="index out of bounds") as caught:
            await thread.run(panic)
        assert isinstance(caught.value.__cause__, Panic)
        assert await thread.run(lambda: 7) == 7
        await thread.close()
