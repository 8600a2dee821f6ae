"""What commands ask of a running gateway over HTTP."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from common.errors import PdmeshError

_TIMEOUT_S: Final = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class Gateway:
    """Where a gateway serves, and the API key with which to ask."""

    url: str
    key: str | None = field(default=None, repr=False)

    def request(
        self, path: str, *, method: str = "GET", data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> urllib.request.Request:
        """A request, not sent yet. Raises ValueError for a malformed address."""
        known = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        return urllib.request.Request(
            f"{self.url.rstrip('/')}{path}", data=data, headers={**(headers or {}), **known}, method=method
        )


GatewayAt = Gateway | str
"""An address alone is that of a gateway without API keys."""


def gateway_at(at: GatewayAt) -> Gateway:
    """`at` in full."""
    return Gateway(at) if isinstance(at, str) else at


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


def ask(at: GatewayAt, path: str, kind: type[T], *, method: str = "GET", also: int | None = None) -> tuple[bytes, T]:
    """The body of the answer, and what it says; with the status `also` too it is an answer.

    Raises NoMesh, and GatewayRefused for an error in an envelope.
    """
    try:
        request = gateway_at(at).request(path, method=method)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            body = answer.read()
            return body, msgspec.json.decode(body, type=kind)
    except urllib.error.HTTPError as error:
        body = _body(error)
        if error.code == also:
            return body, _decoded(at, body, kind)
        raise _refusal(error, body, at) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Malformed addresses and answers are ValueErrors.
        raise no_mesh(at, error) from error


def no_mesh(at: GatewayAt, reason: object) -> NoMesh:
    """For an address where nothing answers as a gateway does."""
    return NoMesh(f"no pdmesh gateway answers at {gateway_at(at).url!r} ({reason}); name one with --url")


def error_of(error: urllib.error.HTTPError, at: GatewayAt) -> NoMesh | GatewayRefused:
    """What the gateway says with an error's status."""
    return _refusal(error, _body(error), at)


def _body(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read()
    except (OSError, http.client.HTTPException):
        return b""


def _decoded(at: GatewayAt, body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except ValueError as error:
        raise no_mesh(at, error) from error


def _refusal(error: urllib.error.HTTPError, body: bytes, at: GatewayAt) -> NoMesh | GatewayRefused:
    try:
        told = msgspec.json.decode(body, type=_Envelope).error
    except ValueError:
        return no_mesh(at, error)
    if told.code == "invalid_api_key":
        return GatewayRefused(f"{told.message}; give it with --api-key, or better in PDMESH_API_KEY", told.code)
    return GatewayRefused(told.message, told.code)
