"""What commands ask of a running gateway over HTTP."""

import http.client
import urllib.error
import urllib.request
from typing import Final, TypeVar

import msgspec

from common.errors import PdmeshError

_TIMEOUT_S: Final = 10.0

T = TypeVar("T")


class NoMesh(PdmeshError):
    """Nothing that can be asked answers at the address given."""


class GatewayRefused(PdmeshError):
    """The gateway was asked and said no, in its own words. `code` is the error's in its envelope."""

    def __init__(self, message: str, code: str | None) -> None:
        super().__init__(message)
        self.code = code


class _Told(msgspec.Struct, frozen=True):
    message: str
    code: str | None = None


class _Envelope(msgspec.Struct, frozen=True):
    error: _Told


def ask(url: str, path: str, kind: type[T], *, method: str = "GET", also: int | None = None) -> tuple[bytes, T]:
    """The body of the answer, and what it says; with the status `also` too it is an answer.

    Raises NoMesh, and GatewayRefused for an error in an envelope.
    """
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}{path}", method=method)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            body = answer.read()
            return body, msgspec.json.decode(body, type=kind)
    except urllib.error.HTTPError as error:
        body = _body(error)
        if error.code == also:
            return body, _decoded(url, body, kind)
        raise _refusal(error, body, url) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Malformed addresses and answers are ValueErrors.
        raise no_mesh(url, error) from error


def no_mesh(url: str, reason: object) -> NoMesh:
    """For an address where nothing answers as a gateway does."""
    return NoMesh(f"no pdmesh gateway answers at {url!r} ({reason}); name one with --url")


def error_of(error: urllib.error.HTTPError, url: str) -> NoMesh | GatewayRefused:
    """What the gateway says with an error's status."""
    return _refusal(error, _body(error), url)


def _body(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read()
    except (OSError, http.client.HTTPException):
        return b""


def _decoded(url: str, body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except ValueError as error:
        raise no_mesh(url, error) from error


def _refusal(error: urllib.error.HTTPError, body: bytes, url: str) -> NoMesh | GatewayRefused:
    try:
        told = msgspec.json.decode(body, type=_Envelope).error
    except ValueError:
        return no_mesh(url, error)
    return GatewayRefused(told.message, told.code)
