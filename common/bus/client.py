"""A worker's end of the control plane: one connection to the gateway, which comes back by itself."""

from math import ceil
from typing import Generic, TypeVar

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from common.bus.drops import Drops
from common.bus.sockets import BusError, BusOptions, drain, open_socket, send_now, shut
from common.errors import MalformedMessage
from common.messages.codec import Codec

In = TypeVar("In")
Out = TypeVar("Out")


class Disconnected(msgspec.Struct, frozen=True):
    """The connection broke; what was under way in either direction may be lost. It is being opened again."""


class BusClient(Generic[In, Out]):
    """A DEALER that speaks typed messages with one server, which may start later or restart.

    Nothing is queued while there is no connection: `send` then says False, so nothing stale is sent later.
    Stop whatever awaits `receive_many` before `close`.
    """

    def __init__(
        self,
        endpoint: str,
        incoming: Codec[In],
        outgoing: Codec[Out],
        *,
        drops: Drops,
        options: BusOptions | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._incoming = incoming
        self._outgoing = outgoing
        self._options = options or BusOptions()
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None
        self._poller = zmq.asyncio.Poller()
        self.drops = drops

    async def start(self) -> None:
        """Begin to connect, in the background. Raises BusError for an endpoint that can never work."""
        socket = open_socket(self._context, zmq.DEALER, self._endpoint, self._options)
        socket.set(zmq.IMMEDIATE, 1)
        try:
            socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            await shut(self._context, socket)
            raise BusError(
                f"cannot connect to {self._endpoint!r}: {error}; write it like 'tcp://127.0.0.1:5700'"
            ) from error
        self._socket = socket
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    async def receive_many(self, timeout_s: float | None = None) -> list[In | Disconnected]:
        """What has arrived within `timeout_s` (None: no limit), oldest first; empty when nothing has.

        A `Disconnected` comes after the messages of the connection that broke. Cancelling loses nothing.
        """
        socket, monitor = self._opened()
        await self._poller.poll(None if timeout_s is None else max(0, ceil(timeout_s * 1000)))
        broken = [parse_monitor_message(event) for event in drain(monitor, self._options.batch)]
        received: list[In | Disconnected] = []
        for frames in drain(socket, self._options.batch):
            try:
                if len(frames) != 1:
                    raise MalformedMessage(f"{len(frames)} frames; a message is one")
                received.append(self._incoming.decode(frames[0]))
            except MalformedMessage as error:
                self.drops.count_malformed(self._endpoint, error)
        if any(event["event"] == zmq.EVENT_DISCONNECTED for event in broken):
            received.append(Disconnected())
        return received

    def send(self, message: Out) -> bool:
        """Queue `message` without waiting; False (counted and logged) where it cannot be sent now."""
        sent = self.offer(message)
        if not sent:
            self.drops.count_undeliverable(self._endpoint, message)
        return sent

    def offer(self, message: Out) -> bool:
        """As `send`, for a message that will be tried again: False is nothing to count."""
        return send_now(self._opened()[0], [self._outgoing.encode(message)])

    async def close(self) -> None:
        """Close the socket; what is queued has the linger time to leave. Idempotent."""
        if self._socket is None or self._monitor is None:
            return
        socket, self._socket = self._socket, None
        monitor, self._monitor = self._monitor, None
        socket.disable_monitor()
        monitor.close()
        await shut(self._context, socket)

    def _opened(self) -> tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]:
        if self._socket is None or self._monitor is None:
            raise BusError(f"the bus to {self._endpoint!r} is not open; await start() first")
        return self._socket, self._monitor
