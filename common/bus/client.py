"""A worker's end of the control plane: one connection to the gateway, which comes back by itself."""

from typing import Final, Generic, TypeVar

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from common.bus.drops import Drops
from common.bus.keys import InstanceKeys
from common.bus.sockets import BusError, BusOptions, Readiness, drain, open_socket, send_now, show_keys, shut
from common.errors import MalformedMessage
from common.messages.codec import Codec

In = TypeVar("In")
Out = TypeVar("Out")


class Disconnected(msgspec.Struct, frozen=True):
    """The connection broke; what was under way in either direction may be lost. It is being opened again."""


class Refused(msgspec.Struct, frozen=True):
    """The server will not speak with this client as it is: it asks for keys, for other ones, or has none. No other
    attempt is made; close this client and make another, later.
    """

    reason: str


_EVENTS: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class BusClient(Generic[In, Out]):
    """A DEALER that speaks typed messages with one server, which may start later or restart.

    Nothing is queued while there is no connection: `send` then says False, so nothing stale is sent later.  With `keys`
    the connection is encrypted, and to nobody but whom they name.  Stop whatever awaits `receive_many` before `close`.
    """

    def __init__(
        self,
        endpoint: str,
        incoming: Codec[In],
        outgoing: Codec[Out],
        *,
        drops: Drops,
        options: BusOptions | None = None,
        keys: InstanceKeys | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._incoming = incoming
        self._outgoing = outgoing
        self._options = options or BusOptions()
        self._keys = keys
        self._context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        self._socket: zmq.SyncSocket | None = None
        self._monitor: zmq.SyncSocket | None = None
        self._readiness: Readiness | None = None
        self.drops = drops

    async def start(self) -> None:
        """Begin to connect, in the background. Raises BusError for an endpoint that can never work."""
        socket = open_socket(self._context, zmq.DEALER, self._endpoint, self._options)
        socket.set(zmq.IMMEDIATE, 1)
        if self._keys is not None:
            show_keys(socket, self._keys, self._options)
        # Before `connect`: a handshake may fail at once, and nobody tries again after the last word on it.
        monitor = socket.get_monitor_socket(_EVENTS)
        try:
            socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            await self._shut(socket, monitor)
            raise BusError(
                f"cannot connect to {self._endpoint!r}: {error}; write it like 'tcp://127.0.0.1:5700'"
            ) from error
        self._socket, self._monitor = socket, monitor
        self._readiness = Readiness(socket, monitor)

    async def receive_many(self, timeout_s: float | None = None) -> list[In | Disconnected | Refused]:
        """What has arrived within `timeout_s` (None: no limit), oldest first; empty when nothing has.

        A `Disconnected` comes after the messages of the connection that broke. Cancelling loses nothing.
        """
        socket, monitor, readiness = self._opened()
        await readiness.wait(timeout_s)
        events = [parse_monitor_message(event) for event in drain(monitor, self._options.batch)]
        received: list[In | Disconnected | Refused] = []
        for frames in drain(socket, self._options.batch):
            try:
                if len(frames) != 1:
                    raise MalformedMessage(f"{len(frames)} frames; a message is one")
                received.append(self._incoming.decode(frames[0]))
            except MalformedMessage as error:
                self.drops.count_malformed(self._endpoint, error)
        if any(event["event"] == zmq.EVENT_DISCONNECTED for event in events):
            received.append(Disconnected())
        reasons = (_refusal(event["event"], with_keys=self._keys is not None) for event in events)
        return received + [Refused(reason) for reason in reasons if reason is not None][:1]

    def send(self, message: Out) -> bool:
        """Queue `message` without waiting; False (counted and logged) where it cannot be sent now."""
        sent = self.offer(message)
        if not sent:
            self.drops.count_undeliverable(self._endpoint, message)
        return sent

    def offer(self, message: Out) -> bool:
        """As `send`, for a message that will be tried again: False is nothing to count."""
        socket, _, readiness = self._opened()
        sent = send_now(socket, self._outgoing.encode(message))
        readiness.after_send()
        return sent

    async def close(self) -> None:
        """Close the socket; what is queued has the linger time to leave. Idempotent."""
        if self._socket is None or self._monitor is None or self._readiness is None:
            return
        self._readiness.stop()
        socket, self._socket = self._socket, None
        monitor, self._monitor = self._monitor, None
        await self._shut(socket, monitor)

    async def _shut(self, socket: zmq.SyncSocket, monitor: zmq.SyncSocket) -> None:
        socket.disable_monitor()
        monitor.close()
        await shut(self._context, socket)

    def _opened(self) -> tuple[zmq.SyncSocket, zmq.SyncSocket, Readiness]:
        if self._socket is None or self._monitor is None or self._readiness is None:
            raise BusError(f"the bus to {self._endpoint!r} is not open; await start() first")
        return self._socket, self._monitor, self._readiness


def _refusal(event: int, *, with_keys: bool) -> str | None:
    """Why a handshake can never succeed; None where another attempt may, or the event is not about one."""
    match event:
        case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "the gateway does not know this instance's key, or it was revoked"
        case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return "either the gateway or this instance has keys (gateway.control_keys), and the other has none"
        case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL if with_keys:
            return "the gateway broke off: it has another key than this instance was given, or none, or it is stopping"
        case _:
            return None
