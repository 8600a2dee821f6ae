"""The gateway's end of the control plane: many peers, one socket."""

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import zmq

from common.bus.drops import Drops
from common.bus.gate import Gate
from common.bus.keys import KeyPair
from common.bus.sockets import (
    BusError,
    BusOptions,
    Readiness,
    drain,
    drain_known,
    open_socket,
    require_keys,
    send_now,
    shut,
)
from common.errors import ConfigError, MalformedMessage
from common.ids import InstanceId
from common.messages.codec import Codec


class FromInstance(Protocol):
    """A message that says whose it is."""

    @property
    def instance(self) -> InstanceId:
        """Who says so."""
        ...


In = TypeVar("In", bound=FromInstance)
Out = TypeVar("Out")


class BusServer(Generic[In, Out]):
    """A ROUTER that speaks typed messages.

    A peer is named by opaque bytes that stand for *one connection*: a worker that reconnects is another peer, so a
    message lost with a connection cannot go unnoticed.  Stop whatever awaits `receive` before `close`.

    With a `gate` connections are encrypted, only allowed keys get one, and a message is dropped unread once its key is
    not allowed any more.  One that says to be of another instance than its key is answered with what `refuse` makes of
    the reason.
    """

    def __init__(
        self,
        endpoint: str,
        incoming: Codec[In],
        outgoing: Codec[Out],
        *,
        drops: Drops,
        options: BusOptions | None = None,
        gate: Gate | None = None,
        refuse: Callable[[str], Out] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._incoming = incoming
        self._outgoing = outgoing
        self._options = options or BusOptions()
        self._context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        self._socket: zmq.SyncSocket | None = None
        self._readiness: Readiness | None = None
        self._gate = gate
        self._refuse = refuse
        self._inbox: deque[tuple[bytes, In]] = deque()
        self.drops = drops

    async def start(self) -> str:
        """Bind; returns the endpoint with its real port (`*` or 0 takes a free one).

        Raises BusError, and ConfigError for keys that cannot be used.
        """
        own = await self._open_gate()
        socket = open_socket(self._context, zmq.ROUTER, self._endpoint, self._options)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        if own is not None:
            require_keys(socket, own, self._options)
        try:
            socket.bind(self._endpoint)
        except zmq.ZMQError as error:
            await self._shut(socket)
            raise BusError(
                f"cannot listen at {self._endpoint!r}: {error}; choose another endpoint or a free port"
            ) from error
        self._socket = socket
        self._readiness = Readiness(socket)
        return socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def _open_gate(self) -> KeyPair | None:
        """Before anybody can connect: without a handler nobody would be asked for a key."""
        try:
            return None if self._gate is None else await self._gate.open(self._context, self.drops)
        except ConfigError:
            self._context.term()
            raise

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
            await self._shut(socket)

    async def _shut(self, socket: zmq.SyncSocket) -> None:
        if self._gate is not None:
            await self._gate.close()
        await shut(self._context, socket)

    def _take(self) -> None:
        socket = self._opened()[0]
        if self._gate is None:
            for peer, *frames in drain(socket, self._options.batch):
                if (message := self._decode(peer, frames)) is not None:
                    self._inbox.append((peer, message))
            return
        for user, (peer, *frames) in drain_known(socket, self._options.batch):
            holder = self._gate.holder(user)
            if holder is None:
                self.drops.count_refused(
                    f"a message from {user}", "this key was allowed when it connected, and is not now"
                )
            elif (message := self._decode(peer, frames)) is not None:
                self._admit(peer, message, holder)

    def _admit(self, peer: bytes, message: In, holder: InstanceId) -> None:
        if message.instance == holder:
            self._inbox.append((peer, message))
            return
        reason = f"it says that it is {message.instance!r}, and its key is that of {holder!r}; give each its own key"
        self.drops.count_refused(f"a {type(message).__name__}", reason)
        if self._refuse is not None:
            self.send(peer, self._refuse(reason))

    def _decode(self, peer: bytes, frames: list[bytes]) -> In | None:
        try:
            if len(frames) != 1:
                raise MalformedMessage(f"{len(frames)} frames; a message is one")
            return self._incoming.decode(frames[0])
        except MalformedMessage as error:
            self.drops.count_malformed(f"peer {peer.hex()}", error)
            return None

    def _opened(self) -> tuple[zmq.SyncSocket, Readiness]:
        if self._socket is None or self._readiness is None:
            raise BusError(f"the bus at {self._endpoint!r} is not open; await start() first")
        return self._socket, self._readiness
