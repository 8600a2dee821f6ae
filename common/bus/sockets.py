"""How the bus uses ZeroMQ: one place for socket options, non-blocking sends and batched receives."""

import asyncio
from typing import cast

import msgspec
import zmq
import zmq.asyncio

from common.errors import PdmeshError


class BusError(PdmeshError):
    """A bus socket cannot be opened at its endpoint."""


class BusOptions(msgspec.Struct, frozen=True):
    """Limits of one bus socket."""

    heartbeat_s: float = 0.5
    """Seconds between ZMTP pings, by which a dead peer is told from a silent one."""
    heartbeat_timeout_s: float = 1.5
    """A peer that answers no ping for so long is disconnected."""
    reconnect_s: float = 0.05
    reconnect_max_s: float = 1.0
    linger_s: float = 0.5
    """How long `close` may wait for what is queued to leave."""
    queue: int = 4096
    """Messages queued per peer and direction; a full queue refuses, it never blocks."""
    max_frame_bytes: int = 64 << 20
    """A peer that sends a larger frame is disconnected."""
    batch: int = 256
    """Most messages taken from the socket at once, so that a flood cannot starve the loop."""


def open_socket(context: zmq.asyncio.Context, kind: int, endpoint: str, options: BusOptions) -> zmq.asyncio.Socket:
    """A socket of `kind` for `endpoint`, not yet bound or connected; the caller owns and closes it."""
    socket = context.socket(kind)
    socket.set(zmq.LINGER, _milliseconds(options.linger_s))
    socket.set(zmq.SNDHWM, options.queue)
    socket.set(zmq.RCVHWM, options.queue)
    socket.set(zmq.MAXMSGSIZE, options.max_frame_bytes)
    socket.set(zmq.HEARTBEAT_IVL, _milliseconds(options.heartbeat_s))
    socket.set(zmq.HEARTBEAT_TIMEOUT, _milliseconds(options.heartbeat_timeout_s))
    socket.set(zmq.RECONNECT_IVL, _milliseconds(options.reconnect_s))
    socket.set(zmq.RECONNECT_IVL_MAX, _milliseconds(options.reconnect_max_s))
    socket.set(zmq.IPV6, int("[" in endpoint))
    return socket


def send_now(socket: zmq.asyncio.Socket, frames: list[bytes]) -> bool:
    """Queue one message without waiting; False where there is no connected peer or its queue is full."""
    try:
        # With DONTWAIT pyzmq returns a future that is already done; the loop's bookkeeping is done by it as well.
        cast("asyncio.Future[object]", socket.send_multipart(frames, flags=zmq.DONTWAIT)).result()
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


def drain(socket: zmq.asyncio.Socket, limit: int) -> list[list[bytes]]:
    """What has arrived, at most `limit` messages, without waiting."""
    messages: list[list[bytes]] = []
    while len(messages) < limit:
        try:
            future = cast("asyncio.Future[list[bytes]]", socket.recv_multipart(flags=zmq.DONTWAIT))
            messages.append(future.result())
        except zmq.Again:
            break
    return messages


async def shut(context: zmq.asyncio.Context, socket: zmq.asyncio.Socket) -> None:
    """Close the socket and end its context; takes at most the socket's linger time, off the loop."""
    socket.close()
    await asyncio.to_thread(context.term)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
