"""A served application over a scripted mesh, with a tokenizer of which every token is one byte."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

import pytest
import tokenizers
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from tokenizers import decoders, models, pre_tokenizers

from common.clock import ManualClock
from common.errors import Failure
from common.ids import RequestId
from services.gateway.http.admission import KeyRing
from services.gateway.http.server import ConnectionLimits, build_runner
from services.gateway.lane.text_lane import TextLane
from services.gateway.openai.types import Usage
from services.gateway.routes.app import build_app
from services.gateway.routes.completions import ApiSettings, Minted, ModelCard
from services.gateway.testing import Script, ScriptedMesh
from services.text.chat_template import ChatTemplate
from services.text.detokenizer import Detokenizer
from services.text.tokenizer import Tokenizer, TokenizerSettings

MODEL = ModelCard("tiny/model", created=1_700_000_000, context=100)
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"


class SpyDetokenizer:
    def __init__(self, inner: Detokenizer, threads: set[int]) -> None:
        self._inner = inner
        self._threads = threads

    def push(self, token_id: int) -> str:
        self._threads.add(threading.get_ident())
        return self._inner.push(token_id)

    def flush(self) -> str:
        self._threads.add(threading.get_ident())
        return self._inner.flush()


class SpyTokenizer(Tokenizer):
    """Notes the threads that encode, decode and look at pieces."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
        super().__init__(backend, settings)
        self.threads: set[int] = set()

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        self.threads.add(threading.get_ident())
        return super().encode(text, add_special_tokens=add_special_tokens)

    def piece(self, token_id: int) -> bytes:
        self.threads.add(threading.get_ident())
        return super().piece(token_id)

    def detokenizer(self) -> Detokenizer:
        return SpyDetokenizer(super().detokenizer(), self.threads)


class NotingObserver:
    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []
        self.has_failed = asyncio.Event()

    def refused(self, endpoint: str, status: int) -> None:
        self.notes.append(("refused", endpoint, status))

    def request_started(self, request: RequestId, endpoint: str, prompt_tokens: int) -> None:
        self.notes.append(("started", request, endpoint, prompt_tokens))

    def first_token(self, request: RequestId, seconds: float) -> None:
        self.notes.append(("first_token", request, seconds))

    def token(self, request: RequestId, count: int, gap_s: float | None) -> None:
        self.notes.append(("token", request, count, gap_s))

    def finished(self, request: RequestId, usage: Usage, seconds: float) -> None:
        self.notes.append(("finished", request, usage.completion_tokens, seconds))

    def failed(self, request: RequestId, failure: Failure, seconds: float) -> None:
        self.notes.append(("failed", request, failure.kind.value, seconds))
        self.has_failed.set()


class Served:
    """A running application and what surrounds it."""

    def __init__(
        self, client: TestClient[Any, Any], mesh: ScriptedMesh, observer: NotingObserver, spy: SpyTokenizer
    ) -> None:
        self.client = client
        self.mesh = mesh
        self.observer = observer
        self.spy = spy

    @property
    def url(self) -> str:
        return str(self.client.make_url("/v1"))


class OurServer(TestServer):
    """Runs the application as the gateway does."""

    def __init__(self, app: web.Application, limits: ConnectionLimits) -> None:
        super().__init__(app)
        self._limits = limits

    async def _make_runner(self, **_: Any) -> web.AppRunner:
        return build_runner(self.app, self._limits)


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
def spy_tokenizer() -> SpyTokenizer:
    return SpyTokenizer(byte_tokens(), TokenizerSettings(special_tokens={"eos_token": "<|end|>"}))


def byte_tokens() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


@pytest.fixture
def ids(spy_tokenizer: SpyTokenizer) -> Callable[[str], tuple[int, ...]]:
    """The tokens of a text, one per byte."""
    plain = Tokenizer(byte_tokens())
    return lambda text: plain.encode(text, add_special_tokens=False)


@pytest.fixture
def eos(spy_tokenizer: SpyTokenizer) -> int:
    (token,) = spy_tokenizer.eos_ids
    return token


@pytest.fixture
async def serve(spy_tokenizer: SpyTokenizer) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(
            script: Script,
            *,
            context: int | None = None,
            reason: str | None = None,
            template: str | None = TEMPLATE,
            together: int = 1,
            keys: KeyRing | None = None,
            limits: ConnectionLimits = ConnectionLimits(),
            **settings: Any,
        ) -> Served:
            made = None if template is None else ChatTemplate(template, {}, lambda: datetime(2026, 1, 1))
            lane = await stack.enter_async_context(TextLane(spy_tokenizer, made))
            mesh, observer = ScriptedMesh(script, context=context, reason=reason, together=together), NotingObserver()
            defaults = {"max_body": 10_000, "deadline_s": 60.0}
            rules = ApiSettings(**{**defaults, **settings})
            app = build_app(mesh, lane, MODEL, rules, ManualClock(), mint(), observer, keys)
            client = await stack.enter_async_context(TestClient(OurServer(app, limits)))
            return Served(client, mesh, observer, spy_tokenizer)

        yield start


def mint() -> Callable[[], Minted]:
    numbers: Iterator[int] = itertools.count(1)
    return lambda: (lambda n: Minted(RequestId(f"r{n}"), seed=1000 + n, created=1_800_000_000))(next(numbers))
