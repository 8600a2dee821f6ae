"""Server-sent events on one HTTP response."""

from collections.abc import Iterable, Mapping

from aiohttp import web

_HEADERS = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache"),
    # Proxies of the nginx kind would hold events back to fill a buffer.
    ("X-Accel-Buffering", "no"),
)


class EventStream:
    """Opens with the first event, so that what fails before has a proper HTTP status. Owned by one handler."""

    def __init__(self, http: web.Request) -> None:
        self._http = http
        self._response: web.StreamResponse | None = None

    @property
    def response(self) -> web.StreamResponse | None:
        """The response once its headers have gone out."""
        return self._response

    async def open(self, headers: Mapping[str, str]) -> None:
        """Send status 200 and the headers; once."""
        response = web.StreamResponse(headers={**dict(_HEADERS), **headers})
        self._response = response
        await response.prepare(self._http)

    async def send(self, events: Iterable[bytes]) -> None:
        """Send each as one event, together in one write; waits while the client reads slowly."""
        data = _framed(events)
        if data and self._response is not None:
            await self._response.write(data)

    async def end(self, events: Iterable[bytes]) -> web.StreamResponse:
        """Send the last `events`, and say that the answer is whole."""
        return await self._close(_framed([*events, b"[DONE]"]))

    async def break_off(self, error: bytes) -> web.StreamResponse:
        """Say why no more will come, then close the connection; without [DONE]."""
        if self._response is not None:
            self._response.force_close()
        return await self._close(_framed([error]))

    async def _close(self, last: bytes) -> web.StreamResponse:
        if self._response is None:
            raise RuntimeError("an event stream ends after it was opened")
        await self._response.write_eof(last)
        return self._response


def _framed(events: Iterable[bytes]) -> bytes:
    return b"".join(b"data: %b\n\n" % event for event in events)
