"""The two ends of one hand-off's connection.

Messages and small segments go over the control connection.  Once P has written some megabytes, it invites D to open
data connections; when all have joined, each large segment is cut into one stripe for each of them.  Every data
connection carries its stripes in order, so the number of striped segments, put on each message, says what must have
landed before that message is handed out.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack

import msgspec

from common.tasks import TaskScope
from transfer.backends.base import Buffer, Link
from transfer.backends.tcp.invitations import Invitations
from transfer.backends.tcp.lanes import ReceivingLane, SendingLane, end_all, post, send_striped, start_all
from transfer.backends.tcp.stream import Stream, into_pipes
from transfer.backends.tcp.zones import LandingZones
from transfer.errors import Corrupt, PeerLost
from transfer.frames import (
    HEADER_BYTES,
    FrameHeader,
    FrameKind,
    check_payload,
    decode_header,
    encode_invite,
    encode_join,
    encode_message,
    encode_segment_header,
)
from transfer.waiting import Wakeup

_log = logging.getLogger(__name__)

_DESCRIPTOR = b"tcp"
MAX_LANES = 16
"""Data connections that a source lets a sink open for one hand-off."""
_PIECE = 1 << 20
"""Most bytes of a frame on the control connection while data connections may be joining."""
_JOIN_TIMEOUT_S = 5.0

Dial = Callable[[], Awaitable[Stream]]


class Striping(msgspec.Struct, frozen=True, kw_only=True):
    """When to use data connections, and how many."""

    connections: int = 2
    """What a sink opens for one hand-off, at most MAX_LANES; 0: none."""
    segment_bytes: int = 8 << 20
    """A source stripes segments of at least this length; for shorter ones the threads cost more than they bring."""
    handoff_bytes: int = 16 << 20
    """A source invites once so much is to be written; shorter hand-offs are over before it would be of use."""

    def __post_init__(self) -> None:
        if self.connections not in range(MAX_LANES + 1):
            raise ValueError(f"{self.connections!r} data connections; there may be 0 to {MAX_LANES}")


async def read_frame(stream: Stream, header: FrameHeader) -> bytes:
    """The payload that belongs to `header`, checked."""
    payload = bytearray(header.length)
    await stream.fill(memoryview(payload))
    check_payload(header, payload)
    return bytes(payload)


async def read_header(stream: Stream) -> FrameHeader:
    """The next frame's header."""
    data = bytearray(HEADER_BYTES)
    await stream.fill(memoryview(data))
    return decode_header(data)


class TcpLink(Link):
    """The control connection. A frame that was begun and not finished makes it useless: `_is_torn`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._zones = LandingZones()
        self._sending = asyncio.Lock()
        self._is_torn = False
        self._striped = 0
        """Segments that this side has striped."""

    @property
    def bytes_heard(self) -> int:
        """Of the control connection, and of the data connections."""
        return self._stream.heard

    def register(self, zones: Sequence[Buffer]) -> bytes:
        """Data connections in the middle of a zone that is taken away are shut down."""
        self._zones.replace([zone.view for zone in zones], self._evict)
        return _DESCRIPTOR

    def attach(self, descriptor: bytes) -> None:
        """Checks the descriptor; zones are known by number."""
        if descriptor != _DESCRIPTOR:
            raise Corrupt(f"not a descriptor of tcp zones: {descriptor[:32]!r}")

    async def write(self, zone: int, data: memoryview) -> None:
        """In one frame on the control connection."""
        await self._in_turn(lambda: self._stream.send(encode_segment_header(zone, len(data)), data))

    async def send(self, message: bytes) -> None:
        """In one frame, which also says how many striped segments come before it."""
        await self._in_turn(lambda: self._stream.send(encode_message(message, self._striped)))

    async def receive(self) -> bytes:
        """The next message whose segments have all landed."""
        while True:
            header = await read_header(self._stream)
            match header.kind:
                case FrameKind.SEGMENT:
                    await self._stream.fill(self._zones.target(header))
                case FrameKind.MESSAGE:
                    message = await read_frame(self._stream, header)
                    await self._until_landed(header.mark)
                    return message
                case FrameKind.INVITE:
                    self._invited(await read_frame(self._stream, header))
                case _:
                    raise Corrupt(f"a {header.kind.name} frame in the middle of a connection")

    async def close(self) -> None:
        """Close the socket."""
        self._is_torn = True
        self._stream.close()

    async def _in_turn(self, work: Callable[[], Awaitable[None]]) -> None:
        """One frame, or one striped segment, at a time: while this side is stuck in a segment it gives no sign of
        life, so that a stalled data connection is noticed by the other side."""
        async with self._sending:
            if self._is_torn:
                raise PeerLost("the connection is closed, or broke off within a frame that this side was sending")
            self._is_torn = True
            await work()
            self._is_torn = False

    def _evict(self) -> None:
        """Make whoever fills a zone in a thread leave it."""

    async def _until_landed(self, segments: int) -> None:
        if segments:
            raise Corrupt("a message claims striped segments, and there are no data connections this way")

    def _invited(self, token: bytes) -> None:  # noqa: ARG002 - the sink's end uses it
        raise Corrupt("an invitation from a peer that cannot be joined")


class SourceLink(TcpLink):
    """P's end: invites, and writes by stripes when all have joined."""

    def __init__(self, stream: Stream, invitations: Invitations, striping: Striping) -> None:
        super().__init__(stream)
        self._striping = striping
        self._invitations = invitations
        self._token: bytes | None = None
        self._joined: dict[int, Stream] = {}
        self._expected: int | None = None
        """Data connections that will join, as the first of them has said."""
        self._lanes: list[SendingLane] = []
        self._written = 0

    async def write(self, zone: int, data: memoryview) -> None:
        """In stripes when all data connections have joined and it is worth it. Cancelled, it ends them."""
        await self._in_turn(lambda: self._write(zone, data))

    async def close(self) -> None:
        """Also the data connections and their threads."""
        await super().close()
        self._revoke()
        for stream in self._joined.values():
            stream.close()
        await end_all(self._lanes)

    async def _write(self, zone: int, data: memoryview) -> None:
        """On the control connection piece by piece, until all data connections have joined: the rest by stripes."""
        self._written += len(data)
        if self._token is None and self._is_worth_it(len(data)):
            self._token = self._invitations.issue(self._join)
            await self._stream.send(encode_invite(self._token))
        for start in range(0, len(data), _PIECE):
            rest = data[start:]
            if self._lanes and len(rest) >= self._striping.segment_bytes:
                self._striped += 1
                await send_striped(self._lanes, zone, rest, start)
                return
            piece = rest[:_PIECE]
            await self._stream.send(encode_segment_header(zone, len(piece), start), piece)

    def _is_worth_it(self, length: int) -> bool:
        return length >= self._striping.segment_bytes and self._written >= self._striping.handoff_bytes

    def _join(self, stream: Stream, index: int, count: int) -> None:
        """Connection `index` of `count` has shown the token. Owns the stream, unless it raises a TransferError."""
        if count not in range(1, MAX_LANES + 1) or index not in range(count) or index in self._joined:
            raise Corrupt(f"data connection {index!r} of {count!r}: a number seen before, or beyond {MAX_LANES}")
        if self._expected not in (None, count):
            raise Corrupt(f"data connection {index!r} of {count!r}; the first was one of {self._expected!r}")
        self._expected = count
        self._joined[index] = stream
        if len(self._joined) == count:
            self._revoke()
            joined, self._joined = self._joined, {}
            self._lanes = _sending_lanes([joined[number] for number in range(count)])

    def _revoke(self) -> None:
        if self._token is not None:
            self._invitations.revoke(self._token)


def _sending_lanes(streams: Sequence[Stream]) -> list[SendingLane]:
    """At work; raises PeerLost, and then every stream is closed."""
    lanes = [SendingLane(pipe) for pipe in into_pipes(streams)]
    start_all(lanes)
    return lanes


class SinkLink(TcpLink):
    """D's end: joins when invited, and hands out a message when all stripes before it have landed."""

    def __init__(self, stream: Stream, dial: Dial, striping: Striping) -> None:
        """`dial` opens another connection to the same peer."""
        super().__init__(stream)
        self._dial = dial
        self._num_lanes = striping.connections
        self._lanes: list[ReceivingLane] = []
        self._landed = Wakeup()
        self._loop = asyncio.get_running_loop()
        self._tasks = TaskScope("tcp-link")
        self._joining: asyncio.Task[None] | None = None

    @property
    def bytes_heard(self) -> int:
        """Also on the data connections: a segment on its way is a sign of life."""
        return super().bytes_heard + sum(lane.heard for lane in self._lanes)

    async def close(self) -> None:
        """Also the data connections and their threads."""
        await super().close()
        self._evict()
        await self._tasks.close()
        await end_all(self._lanes)

    def _evict(self) -> None:
        for lane in self._lanes:
            lane.shut()

    def _invited(self, token: bytes) -> None:
        if self._joining is not None:
            raise Corrupt("a second invitation to open data connections")
        if self._num_lanes:
            self._joining = self._tasks.start(self._join(token), "join")

    async def _join(self, token: bytes) -> None:
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                pipes = into_pipes(await self._open_streams(token))
            lanes = [ReceivingLane(pipe, self._zones, self._lane_changed) for pipe in pipes]
            start_all(lanes)
        except (PeerLost, TimeoutError) as error:
            _log.warning("no data connections, one connection must do: %s: %s", type(error).__name__, error)
            return
        self._lanes = lanes
        self._landed.wake()

    async def _open_streams(self, token: bytes) -> list[Stream]:
        """All of them, each introduced; or none is left open."""
        with ExitStack() as undo:
            streams = []
            for index in range(self._num_lanes):
                streams.append(await self._dial())
                undo.callback(streams[-1].close)
                await streams[-1].send(encode_join(token, index, self._num_lanes))
            undo.pop_all()
        return streams

    def _lane_changed(self, changed: ReceivingLane) -> None:
        """In the lane's thread. The last stripe of a segment wakes who waits, and so does a failure."""
        if changed.failure is not None or all(lane.landed >= changed.landed for lane in self._lanes):
            post(self._loop, self._landed.wake)

    async def _until_landed(self, segments: int) -> None:
        while not self._have_landed(segments):
            await self._landed.wait()

    def _have_landed(self, segments: int) -> bool:
        if segments and not self._lanes and (self._joining is None or self._joining.done()):
            raise Corrupt("a message claims striped segments, and there are no data connections")
        for lane in self._lanes:
            if lane.landed < segments and lane.failure is not None:
                raise lane.failure
        return segments == 0 or (bool(self._lanes) and all(lane.landed >= segments for lane in self._lanes))
