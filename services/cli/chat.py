"""`pdmesh chat`: talk to a running mesh in a terminal."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from rich.console import Console

from common.errors import PdmeshError
from services.cli.gateway_client import Gateway, GatewayAt, NoMesh, ask, error_of, no_mesh

_TIMEOUT_S: Final = 600.0
"""Between two pieces of an answer: the queue of a busy mesh may be long."""

_HELP: Final = "/reset forgets the conversation, /quit (or Ctrl-D) ends it"


class ChatFailed(PdmeshError):
    """The mesh did not answer; its own words."""


class ChatSettings(msgspec.Struct, frozen=True):
    """How answers are asked for."""

    url: str
    model: str
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    key: str | None = None

    def __repr__(self) -> str:
        return f"ChatSettings({self.url!r}, {self.model!r})"


class _Entry(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Entry]


class _Told(msgspec.Struct):
    message: str


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Event(msgspec.Struct):
    """One event of a streamed answer, or why there are no more."""

    choices: list[_Choice] = []
    error: _Told | None = None


class Conversation:
    """The turns so far; every request says all of them."""

    def __init__(self, settings: ChatSettings) -> None:
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget all but the system's words."""
        system = self._settings.system
        self._messages: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]

    def say(self, text: str) -> Iterator[str]:
        """The pieces of the answer as they come. Raises NoMesh and ChatFailed; then the turn has not taken place."""
        messages = [*self._messages, {"role": "user", "content": text}]
        pieces: list[str] = []
        for piece in _stream(self._settings, messages):
            pieces.append(piece)
            yield piece
        self._messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]


def served_model(at: GatewayAt) -> str:
    """What the mesh serves. Raises NoMesh."""
    return ask(at, "/v1/models", _Models)[1].data[0].id


def run_chat(settings: ChatSettings, first: str | None, read: Callable[[], str], console: Console) -> None:
    """Answer `first` and end; without it answer what `read` gives until it raises EOFError.

    Raises NoMesh, and ChatFailed where `first` has no answer.
    """
    conversation = Conversation(settings)
    if first is not None:
        _answer(conversation, first, console)
        return
    console.print(f"{settings.model} at {settings.url}; {_HELP}", markup=False, highlight=False)
    while True:
        try:
            text = read().strip()
        except EOFError:
            return
        match text:
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/reset":
                conversation.reset()
                continue
        try:
            _answer(conversation, text, console)
        except ChatFailed as error:
            # A conversation outlives an answer that did not come.
            console.print(f"error: {error}", markup=False, highlight=False)
        except KeyboardInterrupt:
            console.print()


def _answer(conversation: Conversation, text: str, console: Console) -> None:
    for piece in conversation.say(text):
        console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    console.print()


def _stream(settings: ChatSettings, messages: list[dict[str, str]]) -> Iterator[str]:
    body: dict[str, Any] = {"model": settings.model, "messages": messages, "stream": True}
    if settings.max_tokens is not None:
        body["max_completion_tokens"] = settings.max_tokens
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    try:
        request = Gateway(settings.url, settings.key).request(
            "/v1/chat/completions",
            method="POST",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            yield from _pieces(answer)
    except urllib.error.HTTPError as error:
        raise _failure(error, settings.url) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Malformed addresses are ValueErrors.
        raise no_mesh(settings.url, error) from error


def _pieces(lines: Iterator[bytes]) -> Iterator[str]:
    """The text in the events of a stream. Raises ChatFailed where they tell of an error, or end without their end."""
    for line in lines:
        payload = line.removeprefix(b"data: ").strip()
        if not payload:
            continue
        if payload == b"[DONE]":
            return
        event = _event(payload)
        if event.error is not None:
            raise ChatFailed(event.error.message)
        for choice in event.choices:
            yield choice.delta.content or ""
    raise ChatFailed("the answer broke off")


def _event(payload: bytes) -> _Event:
    try:
        return msgspec.json.decode(payload, type=_Event)
    except ValueError as error:
        raise ChatFailed(f"the answer is none of a pdmesh gateway: {error}") from error


def _failure(error: urllib.error.HTTPError, url: str) -> ChatFailed | NoMesh:
    told = error_of(error, url)
    return told if isinstance(told, NoMesh) else ChatFailed(str(told))
