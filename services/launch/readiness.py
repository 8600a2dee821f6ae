"""Asks a gateway whether it is ready, with nothing but a socket: importing an HTTP client would delay the start."""

import asyncio
import json
from collections.abc import Collection
from contextlib import suppress

from common.config.addresses import format_host_port

_TIMEOUT_S = 2.0
_MOST_BYTES = 1 << 20


async def not_ready_reason(host: str, port: int) -> str | None:
    """None when GET /ready answers 200; else why not, in words."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            status, body = await _get(host, port, "/ready")
    except TimeoutError:
        return "the gateway does not answer"
    except OSError:
        return "the gateway does not listen yet"
    except ValueError:
        return "what listens there does not speak HTTP"
    return None if status == 200 else _words(body) or f"the gateway answers {status}"


async def missing_reason(host: str, port: int, names: Collection[str]) -> str | None:
    """None when all of `names` are members of the mesh; else who is not, in words.

    A mesh can serve before all its instances have joined, so this is no part of /ready. A gateway that does not say who
    is there is not asked twice.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            status, body = await _get(host, port, "/instances")
    except (TimeoutError, OSError):
        return "the gateway does not answer"
    try:
        here = {entry["member"]["instance"] for entry in json.loads(body)["instances"]} if status == 200 else {*names}
    except (ValueError, KeyError, TypeError):
        return None
    missing = [name for name in names if name not in here]
    return f"{' and '.join(missing)} did not join yet" if missing else None


async def _get(host: str, port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        request = f"GET {path} HTTP/1.0\r\nHost: {format_host_port(host, port)}\r\nAccept: */*\r\n\r\n"
        writer.write(request.encode())
        await writer.drain()
        answer = b""
        while len(answer) < _MOST_BYTES and (chunk := await reader.read(_MOST_BYTES)):
            answer += chunk
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
    _, status, *_ = [*head.split(" ", 2), ""]
    return int(status), body


def _words(body: str) -> str:
    """The reason that /ready gives in its body."""
    try:
        data = json.loads(body)
    except ValueError:
        return " ".join(body.split())
    return str(data.get("reason", "")) if isinstance(data, dict) else ""
