"""Requests made from /openapi.json itself, right ones and wrong ones: no 500, no hang, and what is said is in it."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from typing import Any, TypeVar

import jsonschema
import msgspec
import pytest
import schemathesis
from aiohttp import web
from aiohttp.test_utils import unused_port
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance, response_schema_conformance

from common.clock import SystemClock
from common.messages.control import EmittedTokens, FinishReason
from common.messages.sampling import TokenLogprobs
from services.gateway.http.server import build_runner
from services.gateway.lane.text_lane import TextLane
from services.gateway.openai.types import ChatFields, CompletionFields
from services.gateway.records.observer import SilentObserver
from services.gateway.routes.app import build_app
from services.gateway.routes.completions import ApiSettings, ModelCard
from services.gateway.routes.openapi import document
from services.gateway.stream import GenerationRequest, StreamEvent
from services.gateway.testing import ScriptedMesh, placed
from services.text.chat_template import ChatTemplate
from services.text.tokenizer import Tokenizer, TokenizerSettings
from tests.unit.gateway.conftest import TEMPLATE, byte_tokens, mint

T = TypeVar("T")
MODEL = ModelCard("tiny/model", created=1_700_000_000, context=4096)
DOCUMENT = json.loads(msgspec.json.encode(document(MODEL.id)))
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [(path, method) for path, item in DOCUMENT["paths"].items() for method in item if path != "/metrics"]
"""But /metrics, a route that the service adds."""
ATTACKS = [(path, method, GenerationMode.POSITIVE) for path, method in OPERATIONS]
ATTACKS += [(path, method, GenerationMode.NEGATIVE) for path, method in OPERATIONS if method == "post"]
"""Only a body can be wrong."""
PLAIN = {
    "/v1/completions": {"model": MODEL.id, "prompt": ["a", "bc"]},
    "/v1/chat/completions": {"model": MODEL.id, "messages": [{"role": "user", "content": "a"}]},
}
PARAMETERS = sorted({*ChatFields.__struct_fields__, *CompletionFields.__struct_fields__} - {"model"})


def obedient(request: GenerationRequest) -> list[StreamEvent]:
    """As many tokens as are asked for, of every choice, with what is to be known of them; some say a stop token."""
    params = request.sampling
    score = TokenLogprobs(-1.0, tuple((65 + rank, -1.0 - rank) for rank in range(params.logprobs or 0)))
    scored = (score,) * (len(request.prompt) - 1) if params.prompt_logprobs is not None else ()
    events: list[StreamEvent] = [placed()]
    last = min(request.max_tokens, 5) - 1
    for first in range(last + 1):
        for choice in range(request.choices):
            finish = (FinishReason.LENGTH if choice % 2 else FinishReason.STOP) if first == last else None
            known = () if params.logprobs is None else (score,)
            prompt = scored if (choice, first) == (0, 0) else ()
            events.append(EmittedTokens(request.request, choice, first, (65 + first,), finish, known, prompt))
    return events


class Background:
    """An application served from a thread of its own, for clients that block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return self._run(self._start)

    def __exit__(self, *_: object) -> None:
        self._run(self._stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def wait() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(30)

    async def _start(self) -> str:
        tokenizer = Tokenizer(byte_tokens(), TokenizerSettings(special_tokens={"eos_token": "<|end|>"}))
        self._lane = await TextLane(tokenizer, ChatTemplate(TEMPLATE, {}, lambda: datetime(2026, 1, 1))).__aenter__()
        rules = ApiSettings(max_body=100_000, deadline_s=20.0)
        app = build_app(ScriptedMesh(obedient), self._lane, MODEL, rules, SystemClock(), mint(), SilentObserver())
        self._runner = build_runner(app)
        await self._runner.setup()
        port = unused_port()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        return f"http://127.0.0.1:{port}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._lane.__aexit__(None, None, None)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Background() as url:
        yield url


def attack(url: str, path: str, method: str, mode: GenerationMode, examples: int) -> set[int]:
    """Send what the document leads to; returns the statuses seen. Fails on what the document does not say.

    A schema cannot say which parameters go together, so that what it takes may still be refused; of every other right
    body only one parameter is left, so that some are served.
    """
    seen: set[int] = set()
    how: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}

    # Not shrunk: with such bodies that takes minutes, and the failure says how to repeat it.
    @settings(max_examples=examples, derandomize=True, database=None, phases=[Phase.generate], **how)
    @given(case=SCHEMA[path][method].as_strategy(generation_mode=mode), rest=st.none() | st.sampled_from(PARAMETERS))
    def send(case: schemathesis.Case, rest: str | None) -> None:
        if rest is not None and mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body = PLAIN[path] | {rest: case.body[rest]} if rest in case.body else PLAIN[path]
        response = case.call(base_url=url, timeout=15)
        seen.add(response.status_code)
        excluded = [positive_data_acceptance]
        if any(kind.startswith("text/event-stream") for kind in response.headers["content-type"]):
            # It takes the schema of the whole for that of each event.
            excluded.append(response_schema_conformance)
            check_events(path, response.text)
        case.validate_response(response, excluded_checks=excluded)

    send()
    return seen


def check_events(path: str, text: str) -> None:
    """Each is what the document says, and the last says that it was all."""
    answer = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    validator = jsonschema.Draft202012Validator({**answer["x-event-data"], "components": DOCUMENT["components"]})
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    for event in events:
        validator.validate(json.loads(event.removeprefix("data: ")))


@pytest.mark.parametrize(("path", "method", "mode"), ATTACKS)
def test_a_few_requests_of_each_kind(url: str, path: str, method: str, mode: GenerationMode) -> None:
    seen = attack(url, path, method, mode, 15)
    if method == "post":
        assert (200 in seen) == (mode is GenerationMode.POSITIVE), seen


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method", "mode"), ATTACKS)
def test_many_requests_of_each_kind(url: str, path: str, method: str, mode: GenerationMode) -> None:
    attack(url, path, method, mode, 200)
