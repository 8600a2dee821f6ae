"""How the bus uses ZeroMQ: one place for socket options, non-blocking sends and batched receives."""

import asyncio
from typing import Final

import msgspec
import zmq

from common.bus.keys import InstanceKeys, KeyPair
from common.errors import PdmeshError

# As plain numbers: combining flags of zmq's enums costs more than to send.
_NOW: Final = int(zmq.DONTWAIT)
_MORE: Final = int(zmq.DONTWAIT) | int(zmq.SNDMORE)
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)


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
    handshake_s: float = 10.0
    """With keys: a peer that has not proved itself for so long is disconnected."""
    batch: int = 32
    """Most messages taken from the socket at once, so that a flood cannot starve the loop."""


def open_socket(context: zmq.Context[zmq.SyncSocket], kind: int, endpoint: str, options: BusOptions) -> zmq.SyncSocket:
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


def require_keys(socket: zmq.SyncSocket, own: KeyPair, options: BusOptions) -> None:
    """Encrypt every connection to `socket`, and let in only whom the handler of ZAP requests in its context lets in.

    Call it before `bind`, and have that handler listen by then: without one nobody is let in.
    """
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, own.secret.reveal())
    socket.set(zmq.ZAP_DOMAIN, b"control")
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.set(zmq.HANDSHAKE_IVL, _milliseconds(options.handshake_s))


def show_keys(socket: zmq.SyncSocket, keys: InstanceKeys, options: BusOptions) -> None:
    """Connect `socket` encrypted, to nobody but the holder of the gateway's key. Call it before `connect`."""
    socket.set(zmq.CURVE_SERVERKEY, keys.gateway)
    socket.set(zmq.CURVE_PUBLICKEY, keys.own.public)
    socket.set(zmq.CURVE_SECRETKEY, keys.own.secret.reveal())
    socket.set(zmq.HANDSHAKE_IVL, _milliseconds(options.handshake_s))


class Readiness:
    """Waits on the running event loop until one of `sockets` has something to read. Made on the loop; `stop` it.

    pyzmq's own asyncio sockets make a poller, several futures and a timer for each wait, which costs more than what
    most messages ask for.  The descriptor of a ZeroMQ socket tells once that something has changed, and any use of the
    socket may take that word away: so a waiter looks before it waits, and whoever has sent calls `after_send`.
    """

    def __init__(self, *sockets: zmq.SyncSocket) -> None:
        self._sockets = sockets
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._descriptors = [int(socket.getsockopt(zmq.FD)) for socket in sockets]
        for descriptor in self._descriptors:
            self._loop.add_reader(descriptor, self._look)

    async def wait(self, timeout_s: float | None = None) -> None:
        """Return when there is something to read, or after `timeout_s`; one at a time. Cancelling loses nothing.

        Lets the loop go round once even where there is something: who reads in batches must not starve the others.
        """
        if self._is_ready():
            await asyncio.sleep(0)
            return
        waiter = self._waiter = self._loop.create_future()
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._wake)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def after_send(self) -> None:
        """One of the sockets was used."""
        if self._waiter is not None:
            self._look()

    def stop(self) -> None:
        """Look no more; before the sockets are closed."""
        for descriptor in self._descriptors:
            self._loop.remove_reader(descriptor)

    def _look(self) -> None:
        # Always asks the sockets: only that takes the word away, without which the loop would call this for ever.
        if self._is_ready():
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _is_ready(self) -> bool:
        ready = [int(socket.getsockopt(_EVENTS)) & _READABLE for socket in self._sockets]
        return any(ready)


def send_now(socket: zmq.SyncSocket, *frames: bytes) -> bool:
    """Queue one message without waiting; False where there is no connected peer or its queue is full."""
    *firsts, last = frames
    try:
        for frame in firsts:
            socket.send(frame, _MORE)
        socket.send(last, _NOW)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


def drain(socket: zmq.SyncSocket, limit: int) -> list[list[bytes]]:
    """What has arrived, at most `limit` messages, without waiting."""
    messages: list[list[bytes]] = []
    while len(messages) < limit and int(socket.getsockopt(_EVENTS)) & _READABLE:
        messages.append(socket.recv_multipart(_NOW))
    return messages


def drain_known(socket: zmq.SyncSocket, limit: int) -> list[tuple[str, list[bytes]]]:
    """As `drain`, for a socket that requires keys: with whom the handler of ZAP requests said each message is from."""
    messages: list[tuple[str, list[bytes]]] = []
    while len(messages) < limit and int(socket.getsockopt(_EVENTS)) & _READABLE:
        frames = socket.recv_multipart(_NOW, copy=False)
        messages.append((str(frames[-1].get("User-Id")), [frame.bytes for frame in frames]))
    return messages


async def shut(context: zmq.Context[zmq.SyncSocket], socket: zmq.SyncSocket) -> None:
    """Close the socket and end its context; takes at most the socket's linger time, off the loop."""
    socket.close()
    await asyncio.to_thread(context.term)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
