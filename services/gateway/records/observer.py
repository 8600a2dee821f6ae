"""What the HTTP side tells whoever keeps the metrics."""

from typing import Protocol

from common.clock import Clock
from common.errors import Failure
from common.ids import RequestId
from services.gateway.openai.types import Usage


class Observer(Protocol):
    """Hooks on the event loop; they must be quick and must not raise. Seconds are from the request's arrival."""

    def refused(self, endpoint: str, status: int) -> None:
        """A request was answered with an error before it reached the mesh."""
        ...

    def request_started(self, request: RequestId, endpoint: str, prompt_tokens: int) -> None:
        """The mesh has the request. Exactly one of finished and failed follows."""
        ...

    def first_token(self, request: RequestId, seconds: float) -> None:
        """The first tokens of any choice have come."""
        ...

    def token(self, request: RequestId, count: int, gap_s: float | None) -> None:
        """`count` tokens of one choice have come, `gap_s` after the choice's previous ones (None: its first)."""
        ...

    def finished(self, request: RequestId, usage: Usage, seconds: float) -> None:
        """The client has its whole answer."""
        ...

    def failed(self, request: RequestId, failure: Failure, seconds: float) -> None:
        """The request ended otherwise; `cancelled` when the client went away."""
        ...


class SilentObserver:
    """Keeps nothing."""

    def refused(self, endpoint: str, status: int) -> None:
        """See Observer."""

    def request_started(self, request: RequestId, endpoint: str, prompt_tokens: int) -> None:
        """See Observer."""

    def first_token(self, request: RequestId, seconds: float) -> None:
        """See Observer."""

    def token(self, request: RequestId, count: int, gap_s: float | None) -> None:
        """See Observer."""

    def finished(self, request: RequestId, usage: Usage, seconds: float) -> None:
        """See Observer."""

    def failed(self, request: RequestId, failure: Failure, seconds: float) -> None:
        """See Observer."""


class Observers:
    """Tells each of several, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def refused(self, endpoint: str, status: int) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.refused(endpoint, status)

    def request_started(self, request: RequestId, endpoint: str, prompt_tokens: int) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.request_started(request, endpoint, prompt_tokens)

    def first_token(self, request: RequestId, seconds: float) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.first_token(request, seconds)

    def token(self, request: RequestId, count: int, gap_s: float | None) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.token(request, count, gap_s)

    def finished(self, request: RequestId, usage: Usage, seconds: float) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.finished(request, usage, seconds)

    def failed(self, request: RequestId, failure: Failure, seconds: float) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.failed(request, failure, seconds)


class RequestWatch:
    """Times one request and tells the observer, each thing once."""

    def __init__(self, observer: Observer, clock: Clock, request: RequestId, endpoint: str) -> None:
        self._observer = observer
        self._clock = clock
        self._request = request
        self._endpoint = endpoint
        self._arrived_s = clock.now()
        self._last_s: dict[int, float] = {}
        self._is_running = False

    def started(self, prompt_tokens: int) -> None:
        """The mesh has the request."""
        self._is_running = True
        self._observer.request_started(self._request, self._endpoint, prompt_tokens)

    def tokens(self, choice: int, count: int) -> None:
        """`count` tokens of `choice` have come."""
        now_s = self._clock.now()
        if not self._last_s:
            self._observer.first_token(self._request, now_s - self._arrived_s)
        gap_s = now_s - self._last_s[choice] if choice in self._last_s else None
        self._observer.token(self._request, count, gap_s)
        self._last_s[choice] = now_s

    def finished(self, usage: Usage) -> None:
        """The client has its answer."""
        self._is_running = False
        self._observer.finished(self._request, usage, self._clock.now() - self._arrived_s)

    def failed(self, failure: Failure, status: int) -> None:
        """The request ended without its answer, before or after the mesh had it."""
        if self._is_running:
            self._is_running = False
            self._observer.failed(self._request, failure, self._clock.now() - self._arrived_s)
        else:
            self._observer.refused(self._endpoint, status)
