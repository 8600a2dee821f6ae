"""The gateway's end of the control plane: many peers, one socket."""

from collections import deque
from typing import Generic, TypeVar

import zmq

from common.bus.drops import Drops
from common.bus.sockets import BusError, BusOptions, Readiness, drain, open_socket, send_now, shut
from common.errors import MalformedMessage
from common.messages.codec import Codec

In = TypeVar("In")
Out = TypeVar("Out")


class BusServer(Generic[In, Out]):
    """A ROUTER that speaks typed messages.

    A peer is named by opaque bytes that stand for *one connection*: a worker that reconnects is another peer, so a
    message lost with a connection cannot go unnoticed.  Stop whatever awaits `receive` before `close`.
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
        self._context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        self._socket: zmq.SyncSocket | None = None
        self._readiness: Readiness | None = None
        self._inbox: deque[tuple[bytes, In]] = deque()
        self.drops = drops

    async def start(self) -> str:
        """Bind; returns the endpoint with its real port (`*` or 0 takes a free one). Raises BusError."""
        socket = open_socket(self._context, zmq.ROUTER, self._endpoint, self._options)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        try:
            socket.bind(self._endpoint)
        except zmq.ZMQError as error:
            await shut(self._context, socket)
            raise BusError(
                f"cannot listen at {self._endpoint!r}: {error}; choose another endpoint or a free port"
            ) from error
        self._socket = socket
        self._readiness = Readiness(socket)
        return socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def receive(self) -> tuple[bytes, In]:
        """The next message and the peer it came from. Cancelling loses nothing."""
        while not self._inbox:
            await self._opened()[1].wait()
            self._take()
        return self._inbox.popleft()

    async def receive_many(self) -> list[tuple[bytes, In]]:
        """At least one message, and whatever else is there. Cancelling loses nothing."""
        messages = [await self.receive(), *self._inbox]
        self._inbox.clear()
        return messages

    def send(self, peer: bytes, message: Out) -> bool:
        """Queue `message` for `peer` without waiting; False (counted and logged) where it cannot be delivered."""
        socket, readiness = self._opened()
        delivered = send_now(socket, peer, self._outgoing.encode(message))
        readiness.after_send()
        if not delivered:
            self.drops.count_undeliverable(f"peer {peer.hex()}", message)
        return delivered

    async def close(self) -> None:
        """Close the socket; what is queued has the linger time to leave. Idempotent."""
        if self._socket is not None and self._readiness is not None:
            self._readiness.stop()
            socket, self._socket = self._socket, None
            await shut(self._context, socket)

    def _take(self) -> None:
        for peer, *frames in drain(self._opened()[0], self._options.batch):
            try:
                if len(frames) != 1:
                    raise MalformedMessage(f"{len(frames)} frames; a message is one")
                self._inbox.append((peer, self._incoming.decode(frames[0])))
            except MalformedMessage as error:
                self.drops.count_malformed(f"peer {peer.hex()}", error)

    def _opened(self) -> tuple[zmq.SyncSocket, Readiness]:
        if self._socket is None or self._readiness is None:
            raise BusError(f"the bus at {self._endpoint!r} is not open; await start() first")
        return self._socket, self._readiness
