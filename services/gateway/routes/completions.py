"""The handlers of the two completion endpoints: read, ask the mesh, write; what they decide is elsewhere."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import msgspec
from aiohttp import web

from common.clock import Clock
from common.errors import Failure, FailureKind
from common.ids import RequestId
from services.gateway.http.admission import KEY_NAME, StreamGate, read_body
from services.gateway.http.responses import error_response, json_response
from services.gateway.http.sse import EventStream
from services.gateway.lane.text_lane import LaneChoice, TextLane
from services.gateway.openai.dialects import CHAT_ID, AnswerShape, ChatDialect, CompletionDialect, Dialect
from services.gateway.openai.errors import ApiError, ErrorBody, from_failure, invalid
from services.gateway.openai.planning import Context, check_prompt, echo_of, plan_request, rules_of
from services.gateway.openai.requests import Call, CallRules, parse_chat, parse_completion
from services.gateway.records.observer import Observer, RequestWatch
from services.gateway.routes.answers import AnswerReader, RequestFailed
from services.gateway.routes.prompt_tokens import encode_prompts, naming
from services.gateway.routes.submission import Submission
from services.gateway.stream import GenerationRequest, Mesh
from services.text.chat_template import TemplateRefused

_log = logging.getLogger(__name__)

_BACKSTOP_S: Final = 1.0
"""What the mesh may take longer than the deadline to say that it has passed, and where the request was then."""

_LAST_WORDS_S: Final = 1.0
"""How long a client that does not read may keep the error event of its broken stream from being written."""

_TRACEPARENT: Final = 128
"""Characters of a trace context that are kept; https://www.w3.org/TR/trace-context/ has 55 of them in version 00."""

_GONE: Final = Failure(FailureKind.CANCELLED, "the client went away")
_GONE_STATUS: Final = 499
"""What nginx logs for it; nobody reads the response."""


class ModelCard(msgspec.Struct, frozen=True):
    """The served model as the API shows it."""

    id: str
    created: int
    """Unix time in seconds."""
    context: int
    """Most tokens of prompt and output together that the model was made for."""


class ApiSettings(msgspec.Struct, frozen=True):
    """What the operator decides about the API."""

    max_body: int
    """Bytes of the largest body."""
    deadline_s: float
    """Longest life of a request, from its arrival to its last byte."""
    allow_placement_override: bool = False
    retry_after_s: int = 1
    """What a client is told to wait before it sends a refused request again."""
    max_header: int = 16 << 10
    """Bytes of the first line and the headers of a request, together."""
    max_prompt: int | None = None
    """Tokens of the longest prompt; None: as the context allows."""
    max_streams: int = 4096
    """Answers streamed at a time."""
    slow_client_s: float = 60.0
    """How long a client may take to send its body."""


class Minted(msgspec.Struct, frozen=True):
    """What a new request is given."""

    request: RequestId
    seed: int
    """For sampling, where the client gives none."""
    created: int
    """Unix time in seconds."""


Mint = Callable[[], Minted]

_Parse = Callable[[bytes, CallRules, int], Call]


class _Endpoint(msgspec.Struct, frozen=True):
    """What tells one completion endpoint from the other."""

    name: str
    id_prefix: str
    parse: _Parse
    dialect: Callable[[AnswerShape], Dialect]


_CHAT: Final = _Endpoint("chat_completions", CHAT_ID, parse_chat, ChatDialect)
_PLAIN: Final = _Endpoint("completions", "cmpl-", parse_completion, CompletionDialect)


class _Exchange:
    """One request and the response it is getting."""

    def __init__(self, http: web.Request, minted: Minted, watch: RequestWatch) -> None:
        self.http = http
        self.minted = minted
        self.watch = watch
        self.events = EventStream(http)
        self.headers: dict[str, str] = {"x-request-id": minted.request}
        self.held = ExitStack()
        """What is given back when the exchange ends."""

    def note_placement(self, reader: AnswerReader) -> None:
        if reader.placement is not None:
            self.headers["x-pdmesh-placement"] = reader.placement.header()


class Completions:
    """Serves both endpoints. Whatever happens to a handler, the mesh's stream of its request is closed."""

    def __init__(
        self,
        mesh: Mesh,
        text: TextLane,
        model: ModelCard,
        settings: ApiSettings,
        clock: Clock,
        mint: Mint,
        observer: Observer,
    ) -> None:
        self._mesh = mesh
        self._text = text
        self._model = model
        self._settings = settings
        self._clock = clock
        self._mint = mint
        self._observer = observer
        self._streams = StreamGate(settings.max_streams)
        self._rules = CallRules(model.id, settings.allow_placement_override, text.vocab_size)

    async def chat(self, http: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        return await self._serve(http, _CHAT)

    async def plain(self, http: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        return await self._serve(http, _PLAIN)

    async def _serve(self, http: web.Request, endpoint: _Endpoint) -> web.StreamResponse:
        minted = self._mint()
        watch = RequestWatch(self._observer, self._clock, minted.request, endpoint.name)
        exchange = _Exchange(http, minted, watch)
        try:
            async with asyncio.timeout(self._settings.deadline_s + _BACKSTOP_S):
                return await self._answer(exchange, endpoint)
        except asyncio.CancelledError:
            watch.failed(_GONE, _GONE_STATUS)
            raise
        except ConnectionResetError:
            watch.failed(_GONE, _GONE_STATUS)
            return exchange.events.response or web.Response(status=_GONE_STATUS)
        except Exception as error:
            return await self._fail(exchange, error)
        finally:
            exchange.held.close()

    async def _answer(self, exchange: _Exchange, endpoint: _Endpoint) -> web.StreamResponse:
        minted = exchange.minted
        body = await read_body(exchange.http, self._settings.max_body, self._settings.slow_client_s)
        call = endpoint.parse(body, self._rules, minted.seed)
        exchange.held.enter_context(self._streams.entered(is_stream=call.stream))
        requests = _traced(await self._plan(call, minted), exchange.http)
        choices = [choice for index, request in enumerate(requests) for choice in self._open(call, index, request)]
        dialect = endpoint.dialect(self._shape(call, minted, endpoint))
        prompt_tokens = sum(len(request.prompt) for request in requests)
        stream = Submission(self._mesh, requests)
        try:
            exchange.watch.started(prompt_tokens)
            reader = AnswerReader(
                stream, self._text, choices, prompt_tokens, exchange.watch, tells_usage=call.usage_so_far
            )
            write = self._write_stream if call.stream else self._write_whole
            response = await write(exchange, reader, dialect)
        finally:
            stream.close()
        exchange.watch.finished(reader.usage())
        return response

    async def _plan(self, call: Call, minted: Minted) -> list[GenerationRequest]:
        """A request for each prompt."""
        await self._check_form(call)
        context = self._context()
        requests: list[GenerationRequest] = []
        for index, tokens in enumerate(await encode_prompts(self._text, call.prompts, context)):
            with naming(index, len(call.prompts)):
                check_prompt(len(tokens), context, self._settings.max_prompt)
                room = Context(context, min(context, self._mesh.open_context(len(tokens)) or context))
                requests.append(plan_request(call, minted.request, index, tokens, room, self._text.eos_ids))
        return requests

    async def _check_form(self, call: Call) -> None:
        """Refuse a grammar before anything is placed for it."""
        for part in call.structure.parts:
            if (reason := await self._text.grammar_refusal(part.grammar)) is not None:
                raise invalid(f"{part.param}: {reason}", part.param)

    def _open(self, call: Call, index: int, request: GenerationRequest) -> tuple[LaneChoice, ...]:
        """The texts of the choices of one prompt."""
        return self._text.open_choices(rules_of(call, request), call.choices, echo_of(call, index, request.prompt))

    async def _write_whole(self, exchange: _Exchange, reader: AnswerReader, dialect: Dialect) -> web.StreamResponse:
        answers = await reader.rest()
        exchange.note_placement(reader)
        return json_response(dialect.whole(answers, reader.usage()), headers=exchange.headers)

    async def _write_stream(self, exchange: _Exchange, reader: AnswerReader, dialect: Dialect) -> web.StreamResponse:
        events = exchange.events
        while items := await reader.next_many():
            bodies = [body for item in items for body in dialect.events(item)]
            if events.response is None:
                exchange.note_placement(reader)
                await events.open(exchange.headers)
                bodies = [*dialect.opening(), *bodies]
            await events.send(bodies)
        return await events.end(dialect.closing(reader.usage()))

    async def _fail(self, exchange: _Exchange, error: Exception) -> web.StreamResponse:
        failure, shown = self._explained(error)
        exchange.watch.failed(failure, shown.status)
        opened = exchange.events.response
        if opened is None:
            return error_response(shown, exchange.headers, self._settings.retry_after_s)
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await exchange.events.break_off(shown.encode())
        except (TimeoutError, ConnectionResetError):
            if exchange.http.transport is not None:
                exchange.http.transport.abort()
        return opened

    def _explained(self, error: Exception) -> tuple[Failure, ApiError]:
        """The failure for the metrics and the error for the client."""
        match error:
            case ApiError():
                return Failure(FailureKind.INVALID_REQUEST, error.body.message), error
            case RequestFailed(failure=failure):
                return failure, from_failure(failure)
            case TimeoutError():
                message = f"the request took longer than {self._settings.deadline_s} s"
                failure = Failure(FailureKind.DEADLINE_EXCEEDED, message)
                return failure, from_failure(failure)
            case TemplateRefused():
                return self._explained(invalid(str(error), "messages"))
            case web.HTTPRequestEntityTooLarge():
                message = f"the body is larger than {self._settings.max_body} bytes"
                return self._explained(invalid(message, code="body_too_large", status=413))
            case _:
                _log.error("a completion failed", exc_info=error)
                body = ErrorBody("the server failed on this request; its log says why", "server_error", code="internal")
                return Failure(FailureKind.ENGINE_FAILED, repr(error)), ApiError(500, body)

    def _context(self) -> int:
        """What the model and every joined instance can hold; instances that have not joined say so later."""
        served = self._mesh.context_length()
        return self._model.context if served is None else min(self._model.context, served)

    def _shape(self, call: Call, minted: Minted, endpoint: _Endpoint) -> AnswerShape:
        return AnswerShape(
            id=f"{endpoint.id_prefix}{minted.request}",
            created=minted.created,
            model=self._model.id,
            choices=call.choices * len(call.prompts),
            with_logprobs=call.sampling.logprobs is not None,
            with_usage=call.include_usage,
            may_call=call.structure.may_call,
        )


def _traced(requests: list[GenerationRequest], http: web.Request) -> list[GenerationRequest]:
    """With the client's trace context, and the name of its API key. A context that is too long to be one is read as
    such, and refused, later.
    """
    traceparent, key = http.headers.get("traceparent", "")[:_TRACEPARENT], http.get(KEY_NAME, "")
    if not traceparent.isascii():
        # Bytes that are no UTF-8 stand in it as lone surrogates, of which no encoder makes JSON.
        traceparent = ""
    if not traceparent and not key:
        return requests
    return [msgspec.structs.replace(request, traceparent=traceparent, key=key) for request in requests]
